"""Python source text to a page of HTML, as a handler: knows nothing of files, sockets or processes.

gaspar-serve examples/highlight.py:highlight
"""

import pygments
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

# Made once, at import, before the consumers are forked: all of them share this memory copy-on-write.
_LEXER = PythonLexer(stripnl=False)
_FORMATTER = HtmlFormatter(full=True, encoding="utf-8")


def highlight(source: bytes) -> bytes:
    """Return a whole page, in UTF-8, that shows `source`.

    Raises:
        UnicodeDecodeError: `source` is not UTF-8.
    """
    return pygments.highlight(source.decode(), _LEXER, _FORMATTER)
