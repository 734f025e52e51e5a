"""The handbook's settings: `make docs` builds it with Sphinx.

Sphinx reads from the root of the repository, so that a relative link leads to the same place as on GitHub,
also one to README.md or to a file of conf/.
"""

from __future__ import annotations

import ast
import contextlib
import io
from pathlib import Path

# What the theme brings tells standard output that pictures of titles would need matplotlib.
with contextlib.redirect_stdout(io.StringIO()):
    import sphinxext.opengraph  # noqa: F401

_ROOT = Path(__file__).parent.parent

project = "fedproxy"
author = "the fedproxy contributors"
project_copyright = "the fedproxy contributors"
# Read and not imported: the handbook is built without what the program needs.
release = version = next(
    ast.literal_eval(node.value)
    for node in ast.parse((_ROOT / "fedproxy" / "__init__.py").read_text("utf-8")).body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
)

extensions = ["myst_parser", "sphinx_design"]
root_doc = "docs/index"
include_patterns = ["docs/**", "*.md", "benchmarks/results/*.md"]
exclude_patterns = ["docs/_build", ".*", "build", "dist", "fedproxy", "tests", "conf", "requirements"]
myst_enable_extensions = ["colon_fence", "tasklist"]
# The anchors of headings are GitHub's.
myst_heading_anchors = 4

templates_path = ["_templates"]
html_theme = "jupyterhub_sphinx_theme"
html_title = "fedproxy"
html_static_path = ["_static"]
html_extra_path = ["_root"]
html_favicon = "_static/favicon.svg"
html_show_sourcelink = False
html_copy_source = False
html_logo = "_static/favicon.svg"
# All pages at the side, in the index's order, and none in the header, which has room for a few only.
html_sidebars = {"**": ["pages.html"]}
html_theme_options = {
    "logo": {"text": "fedproxy"},
    "navbar_center": [],
    "show_toc_level": 2,
}
ogp_social_cards = {"enable": False}
linkcheck_ignore = [r"https?://(127\.0\.0\.1|[\w.-]*\bexample\.org)\b"]
