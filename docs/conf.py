"""The site (`make docs`): Sphinx and MyST over the pages of this directory as they stand; furo shows them."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkout's rankray, whatever is installed

from generated import filled
from sphinx.application import Sphinx

import rankray

project = "rankray"
version = release = rankray.__version__
extensions = ["myst_parser"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = f"rankray {release}"
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
highlight_language = "text"


def setup(app: Sphinx) -> None:
    """Pages are filled in as they are read, and the navigation's headings are given a level."""

    def fill(_: Sphinx, page: str, source: list[str]) -> None:
        source[0] = filled(source[0])

    def level(_: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
        # Sphinx makes them headings of no level, which ARIA does not allow. furo puts its tree here at 500.
        tree = context.get("furo_navigation_tree", "")
        context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')

    app.connect("source-read", fill)
    app.connect("html-page-context", level, priority=600)
