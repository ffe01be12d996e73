"""Sphinx configuration: `make docs` builds with warnings as errors."""

project = "AIGovTool"
copyright = "the AIGovTool developers"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "AIGovTool"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]  # pages link to files of the repository, too
