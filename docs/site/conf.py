"""Settings of Sphinx for the site; `build.py` beside this file puts the pages together."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from latex2mathml.converter import convert

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "dspa"
author = "the dspa developers"
copyright = "the dspa developers, BSD-3-Clause"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3
# Types in docstrings are short names, some of which two modules share.
suppress_warnings = ["autodoc.mocked_object", "ref.python"]

# Optional packages: the pages build where they are not installed.
autodoc_mock_imports = ["cupy", "cupyx", "dask_cuda", "topaz"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give shapes and units, which types cannot
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Shapes", "Parameters")]  # what a kernel takes
default_role = "code"
highlight_language = "none"  # a fence without a language is a command or a table of text

html_theme = "furo"
html_title = "dspa"
html_static_path = ["static"]
html_css_files = ["style.css"]
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"

CODE = re.compile(r"(``.*?``)", re.DOTALL)


def setup(app: Sphinx) -> None:
    """Add formulas as MathML, which browsers draw without a script, and moduli in docstrings."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("autodoc-process-docstring", _plain, priority=400)  # before napoleon


def _inline(writer: Any, node: Any) -> None:
    writer.body.append(convert(node.astext()))
    raise _skip()


def _block(writer: Any, node: Any) -> None:
    writer.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise _skip()


def _skip() -> Exception:
    from docutils.nodes import SkipNode

    return SkipNode()


def _plain(*event: Any) -> None:
    """Docstrings are plain text: |k| is a modulus, an indented block a formula as it stands."""
    lines: list[str] = event[-1]
    text: list[str] = []
    for line in lines:
        after = next((row for row in reversed(text) if row.strip()), "")
        opens = line.startswith("    ") and after[:1] not in (" ", "-", "") and not text[-1]
        if opens and not after.endswith("::"):
            text += ["::", ""]
        text.append(line)
    parts = CODE.split("\n".join(text))
    parts[::2] = [re.sub(r"\*(?=\w+\))", r"\\*", part.replace("|", "\\|")) for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")
