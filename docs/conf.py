"""Configuration of the documentation: ``make docs`` builds it without warnings."""

import inspect
import sys
from pathlib import Path
from typing import Any

from sphinx.util.inspect import stringify_signature
from sphinx.util.nodes import make_refnode

sys.path.insert(0, str(Path(__file__).parent))

import pages

import avalanche_clip

project = "avalanche_clip"
author = "the avalanche_clip authors"
copyright = author
version = release = avalanche_clip.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"avalanche_clip {release}"
html_show_copyright = False
default_role = "code"
python_maximum_signature_line_length = 80
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
viewcode_enable_epub = False

pages.write(Path(__file__).parent)


def signature(
    app: Any, what: str, name: str, value: Any, options: Any, given: str, returns: str
) -> tuple[str, str] | None:
    """Show the arguments of strategies, whose metaclass takes any."""
    if what == "class" and given and given.startswith("(*args"):
        return stringify_signature(inspect.signature(value)), returns
    return None


def by_last_name(app: Any, env: Any, node: Any, text: Any) -> Any:
    """Link a name to the only object that ends in it, wherever it is defined."""
    name = node.get("reftarget", "").rpartition(".")[2]
    found = [
        (full, entry)
        for full, entry in env.domaindata["py"]["objects"].items()
        if full.rpartition(".")[2] == name and not entry.aliased
    ]
    if node.get("refdomain") != "py" or len(found) != 1:
        return None
    full, entry = found[0]
    return make_refnode(
        app.builder, node["refdoc"], entry.docname, entry.node_id, text, full
    )


def setup(app: Any) -> None:
    """Sphinx calls this once."""
    app.connect("autodoc-process-signature", signature)
    app.connect("missing-reference", by_last_name)
