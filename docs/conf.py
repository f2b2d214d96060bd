"""Sphinx's configuration; `nox -s docs` builds, and tests/test_docs.py checks what the pages say against the code."""

from __future__ import annotations

import sys
from pathlib import Path

import fusekit

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "fusekit"
author = "The fusekit developers"
copyright = author  # noqa: A001 - the name that Sphinx reads
release = version = fusekit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "fusekit_docs"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "examples"]

html_theme = "furo"
html_title = f"fusekit {release}"

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
default_role = "code"  # docstrings use single backticks as Markdown does
