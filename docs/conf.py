"""Sphinx's settings: `make docs` builds the site, strictly, for a browser without a network."""

import re
from pathlib import Path

from depthdial import __version__

ROOT = Path(__file__).parents[1]

project = "depthdial"
author = "the depthdial contributors"
project_copyright = "the depthdial contributors, Apache-2.0"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["images/*"]
nitpicky = False  # signatures name types of torch and transformers, which have no pages here

myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # the log's headings skip levels

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
default_role = "literal"  # docstrings are plain text in which `code` is code

html_theme = "furo"
html_title = f"depthdial {release}"
html_static_path = ["static"]
html_css_files = ["depthdial.css"]
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
html_copy_source = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
copybutton_prompt_text = "$ "


def _links(app, document, text):
    """Files outside docs/ that are pages of the site are linked as such; included ones link as seen from docs/."""
    text[0] = re.sub(r"\]\(\.\./CONTRIBUTING\.md", "](contributing.md", text[0])
    text[0] = re.sub(r"\]\(\.\./([\w./-]+)\)", _file, text[0])


def _file(link):
    """A folder of a map is linked as its page."""
    path = link[1].rstrip("/")
    return f"](../{path}/page.html)" if (ROOT / path).is_dir() else link[0]


def _included(app, relative, document, content):
    content[0] = re.sub(r"\]\(docs/", "](", content[0])
    content[0] = re.sub(r"\]\((src/|examples/|benchmarks/|recipes/)", r"](../\1", content[0])
    content[0] = content[0].replace("](CONTRIBUTING.md", "](contributing.md")


LANDMARKS = {
    '<aside class="sidebar-drawer"': '<aside aria-label="Pages" class="sidebar-drawer"',
    '<aside class="toc-drawer': '<aside aria-label="On this page" class="toc-drawer',
    'class="caption" role="heading"': 'class="caption" role="heading" aria-level="2"',
    '<th class="head"><p></p></th>': '<td class="head"></td>',
    "<pre>": '<pre tabindex="0">',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
    '<div id="search-results"': '<h1>Search</h1><div id="search-results"',
}
"""What the theme leaves without a name or a level, and the same for who hears the page."""


def _named(app, error):
    for page in Path(app.outdir).glob("*.html") if error is None else ():
        text = page.read_text("utf-8")
        for bare, said in LANDMARKS.items():
            text = text.replace(bare, said)
        page.write_text(text, "utf-8")


def setup(app):
    app.connect("build-finished", _named)
    app.connect("source-read", _links)
    app.connect("include-read", _included)
