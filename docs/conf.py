"""How Sphinx builds the site: `sphinx-build -W -n --keep-going docs OUT`, with gaspar's extra `docs` installed."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]  # this checkout's gaspar, not one that is installed

from gaspar.version import __version__  # noqa: E402

project = "gaspar"
version = release = __version__
copyright = "the authors of gaspar"
language = "en"

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "commands", "page_links"]
exclude_patterns = ["_build"]
default_role = "literal"  # as the docstrings use it
smartquotes = False  # they would turn --option into a dash
highlight_language = "none"  # of blocks that do not say what they are

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False

nitpicky = True
# the site is built without the network, so there is no inventory of Python's own documentation to look these up in
nitpick_ignore_regex = [("py:.*", r"(asyncio|collections\.abc|concurrent\.futures|types|typing|_asyncio)\..*")]

html_theme = "furo"
html_title = f"gaspar {__version__}"
html_copy_source = False
html_show_sphinx = False


def _join_raises(_app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Keep a section that refers to another one, "Raises: as `request` does", from being read as exceptions' names."""
    lines[:] = re.sub(r"^Raises:\n +as ", "Raises: as ", "\n".join(lines), flags=re.MULTILINE).split("\n")


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    app.connect("autodoc-process-docstring", _join_raises, priority=400)  # before napoleon's 500
