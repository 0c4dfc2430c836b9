"""Sphinx: the pages in this folder as HTML, warnings as errors (``nox -s docs``)."""

project = "sandai-op"
author = "sandai-op contributors"
extensions = ["myst_parser", "sphinxcontrib.mermaid"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "examples"]
html_theme = "furo"
