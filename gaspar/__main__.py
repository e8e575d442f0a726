"""`python -m gaspar` is `gaspar-serve`."""

from .cli import serve

serve(prog_name="python -m gaspar")
