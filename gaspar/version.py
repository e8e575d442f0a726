"""The one place that says which gaspar this is."""

__version__ = "2.0.0.dev0"
