"""How `make docs` builds the site: nothing is fetched, each build draws the pictures anew."""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import pictures  # noqa: E402

project = "strnn-kernels"
author = "the strnn-kernels authors"
copyright = f"2026, {author}"
version = release = version_of(project)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
exclude_patterns = ["_pictures"]

html_theme = "furo"
html_title = f"{project} {version}"
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"

autodoc_member_order = "groupwise"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True


def _letters(app, what, name, obj, options, lines):
    """A letter and a full stop ("input_size: C.") would be the start of a numbered list."""
    lines[:] = [re.sub(r"^(\s+\w+: [A-Z])\.$", r"\1", line) for line in lines]


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _letters, priority=400)  # before napoleon
    app.connect("builder-inited", lambda _: pictures.main(HERE / "_pictures"))
