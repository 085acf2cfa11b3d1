"""The site: the Markdown pages of this folder as they are, the examples run and shown, a reference from docstrings.

`make docs` builds it, every warning an error, without a network. What is generated lies below `docs/gallery`,
`docs/generated` and `build/site`, none of it kept.
"""

import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_site"))  # for `gallery_order` and `mathml`

import gallery_order

import skjepa

project = "skjepa"
author = "The skjepa developers"
copyright = "The skjepa developers, BSD-3-Clause"
release = version = skjepa.__version__

extensions = [
    "mathml",
    "myst_parser",
    "sphinx_design",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_site", "images", "**/GALLERY_HEADER.rst", "gallery/*.ipynb", "gallery/*.py"]
templates_path = ["_site/templates"]
highlight_language = "text"  # of indented blocks: formulas and commands

# Pages of the repository that lie elsewhere are shown too, in the place of these.
ELSEWHERE = {
    "developer/readme": "README.md",
    "developer/contributing": "CONTRIBUTING.md",
    "developer/changes": "CHANGELOG.md",
    "developer/model-card": "skjepa/encoders/bundled/MODEL_CARD.md",
}

# Pages. Links between them are relative, as a code host has them; a heading is linked to by its text.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "dollarmath"]  # cards, and $...$ and $$...$$, as a code host reads them
html_math_renderer = "mathml"

# Reference. `name` in a docstring is a link where there is such an object, code where there is none; what looks like
# one of this package must exist.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!skjepa\.).*")]
autosummary_generate = True
autodoc_typehints = "none"  # the docstrings tell types, shapes and units
numpydoc_show_class_members = False  # the templates list them
python_use_unqualified_type_names = True

# Examples. All whose packages are installed are run, one after the other; a failing one fails the build.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": gallery_order.runnable(),
    "within_subsection_order": "gallery_order.key",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "remove_config_comments": True,
    "min_reported_time": 0,
    "write_computation_times": False,  # its pages load a script from the network
    "matplotlib_animations": False,
    "image_srcset": ["2x"],
    "plot_gallery": "True",
}

html_theme = "pydata_sphinx_theme"
html_title = "skjepa"
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 8,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}


def skip_inherited(app, what, name, member, skip, options):
    """scikit-learn's and PyOD's own members are documented there; what this package defines is documented here."""
    module = getattr(getattr(member, "fget", member), "__module__", None)
    return True if module and not module.startswith("skjepa") else None


def relink(app, docname, source):
    """Read pages of `ELSEWHERE` where they lie, and turn links to them, and to examples, to where the site has them."""
    root = Path(app.srcdir).parent
    shown = {(root / path).resolve(): root / "docs" / f"{name}.md" for name, path in ELSEWHERE.items()}
    shown |= {path: root / "docs" / "gallery" / f"{path.stem}.rst" for path in root.glob("examples/*.py")}
    shown |= {root / "examples": root / "docs" / "gallery" / "index.rst"}
    page = root / "docs" / f"{docname}.md"
    if not page.exists():
        return
    written = root / ELSEWHERE.get(docname, page.relative_to(root))
    text = written.read_text() if docname in ELSEWHERE else source[0]

    def link(match):
        target = (written.parent / match[1]).resolve()
        return "](" + Path(os.path.relpath(shown.get(target, target), page.parent)).as_posix()

    source[0] = re.sub(r"\]\((?!https?:|#)([^)#]+)", link, text)


def setup(app):
    app.connect("autodoc-skip-member", skip_inherited)
    app.connect("source-read", relink)
