"""Lets links between pages be written as a file browser understands them: `design.rst <design.rst>`_.

Sphinx takes such a target for a page of another site; here it becomes the page's address, and a wrong one a warning.
"""

from __future__ import annotations

import posixpath
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

log = logging.getLogger(__name__)


def _resolve(app: Sphinx, doctree: nodes.document, page: str) -> None:
    for link in doctree.findall(nodes.reference):
        path, hash_sign, fragment = link.get("refuri", "").partition("#")
        if "://" in path or not path.endswith(".rst"):
            continue
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), path[: -len(".rst")]))
        if target in app.env.found_docs:
            link["refuri"] = app.builder.get_relative_uri(page, target) + hash_sign + fragment
            link["internal"] = True
        else:
            log.warning("there is no page %s", path, location=link)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("doctree-resolved", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
