"""Formulas become MathML when the site is built: every current browser shows it without a script or a network."""

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.util import logging

_CONVERTER = LatexToMathML(fancy_error=False)
_LOG = logging.getLogger(__name__)


def _mathml(node, displaystyle):
    try:
        return _CONVERTER.convert_with_local_state(node.astext().strip(), displaystyle=displaystyle)
    except LatexError as error:
        _LOG.warning("formula %r: %s", node.astext(), error, location=node)
        return ""


def inline(translator, node):
    translator.body.append(_mathml(node, displaystyle=False))
    raise nodes.SkipNode


def block(translator, node):
    translator.body.append(translator.starttag(node, "div", CLASS="math") + _mathml(node, displaystyle=True) + "</div>")
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
