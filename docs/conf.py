"""Sphinx: the pages in this folder as HTML, warnings as errors (``nox -s docs``)."""

from __future__ import annotations

import importlib
from typing import Any

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.logging import getLogger
from sphinx.util.nodes import make_refnode

project = "sandai-op"
author = "sandai-op contributors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build", "examples"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "sandai-op"
html_show_copyright = False
copybutton_prompt_text = "$ "

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
add_module_names = False
python_maximum_signature_line_length = 88

DOCUMENTED = [
    "sandai.op.models",
    "sandai.op.client",
    "sandai.op.aio",
    "sandai.op.transport",
    "sandai.op.transport.testing",
    "sandai.operator_client",
]


def find_by_last_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element
) -> Element | None:
    """
    Resolve a name that docstrings and signatures say without its package.

    They name what is defined in private modules, and the reference has it where it is imported
    from.
    """
    if node.get("refdomain") != "py":
        return None
    objects = env.domains.python_domain.objects
    last = node["reftarget"].rpartition(".")[2]
    found = {
        (entry.docname, entry.node_id)
        for name, entry in objects.items()
        if name.rpartition(".")[2] == last and not entry.aliased
    }
    if len(found) != 1:
        return None
    document, anchor = found.pop()
    return make_refnode(app.builder, node["refdoc"], document, anchor, content)


def find_undocumented(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Warn of each public name that no page documents."""
    there = {name.rpartition(".")[2] for name in env.domains.python_domain.objects}
    for module in DOCUMENTED:
        for name in importlib.import_module(module).__all__:
            if name not in there:
                getLogger(__name__).warning("%s.%s is on no page of api/", module, name)
    return []


def setup(app: Sphinx) -> dict[str, Any]:
    """Have Sphinx call what is above."""
    app.connect("missing-reference", find_by_last_name)
    app.connect("env-check-consistency", find_undocumented)
    return {"parallel_read_safe": True}
