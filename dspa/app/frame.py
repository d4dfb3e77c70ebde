"""What all pages share: the row of links at the top, the colours, and which jobs can be chosen."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from bokeh.models import Div
from bokeh.themes import Theme

from dspa.data.errors import InputError
from dspa.project.lineage import find_job

if TYPE_CHECKING:
    from collections.abc import Collection

    from bokeh.document import Document

    from dspa.project.job import Record
    from dspa.project.project import Project

# Address of each page below the token, and what the link to it says.
PAGES = {
    "./": "jobs",
    "exposures": "curate exposures",
    "picks": "inspect picks",
    "classes": "select classes",
}
BACK, PANEL, LINE = "#17191c", "#202327", "#3a3f46"
TEXT, DIM, BLUE = "#d9dce0", "#949ba5", "#5b9dd9"
# States of picks, exposures and classes alike.
KEPT, DROPPED, ADDED, REMOVED = "#2fd48f", "#d98b3a", "#5cc8ff", "#ff5a5f"
# For the widgets, whose parts a page's own style sheet does not reach.
SHEET = f"""
:host {{ color: {TEXT}; font-size: 13px; --background-color: {PANEL};
  --surface-background-color: {LINE}; }}
.bk-input {{ background-color: {PANEL}; color: {TEXT}; border-color: {LINE}; min-height: 28px; }}
.bk-input:focus {{ border-color: {BLUE}; box-shadow: none; }}
select.bk-input option {{ background-color: {PANEL}; color: {TEXT}; }}
.bk-btn {{ background-color: {PANEL}; color: {TEXT}; border-color: {LINE}; padding: 5px 12px;
  text-shadow: none; }}
.bk-btn:hover {{ background-color: {LINE}; border-color: {DIM}; }}
.bk-btn.bk-active, .bk-btn-primary {{ background-color: #2b67a0; border-color: #2b67a0;
  color: #fff; }}
.bk-btn-primary:hover {{ background-color: #3478b8; }}
.bk-btn[disabled], .bk-btn[disabled]:hover {{ background-color: {PANEL}; color: #666d76;
  border-color: {LINE}; opacity: 1; }}
.bk-slider-title {{ font-size: 13px; }}
.noUi-target {{ background-color: #33383f; border-color: {LINE}; box-shadow: none; }}
.noUi-connect {{ background-color: {BLUE} !important; }}
.noUi-handle {{ background-color: #c8ccd2; border-color: #8d949d; box-shadow: none; }}
.slick-header-column {{ background: {PANEL}; color: {TEXT}; border-color: {LINE}; }}
.slick-row, .slick-row.odd {{ background: {BACK}; color: {TEXT}; }}
.slick-row:hover {{ background: {PANEL}; }}
.slick-cell {{ border-color: {LINE}; }}
.slick-cell.selected {{ background: #2b4a66; color: #fff; }}
.bk-description {{ color: {DIM}; }}
a {{ color: {BLUE}; }}
"""
PAGE = f"""
{{% block preamble %}}
<meta name="referrer" content="no-referrer">
<style>
  html, body {{ background: {BACK}; color: {TEXT}; margin: 0;
    font: 13px/1.45 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color-scheme: dark; }}
  html body {{ padding: 4px 12px !important; box-sizing: border-box; }}
</style>
{{% endblock %}}
"""
_TEXTS = {"text_color": TEXT, "text_font": "system-ui, DejaVu Sans, sans-serif"}
THEME = Theme(
    json={
        "attrs": {
            "Plot": {
                "background_fill_color": "#101214",
                "border_fill_color": BACK,
                "outline_line_color": LINE,
            },
            "Grid": {"grid_line_color": "#2a2e33"},
            "Axis": {
                "axis_line_color": LINE,
                "major_tick_line_color": LINE,
                "minor_tick_line_alpha": 0,
                "major_label_text_color": DIM,
                "axis_label_text_color": DIM,
                "major_label_text_font_size": "11px",
                "axis_label_text_font_size": "12px",
                "axis_label_text_font_style": "normal",
            },
            "Title": _TEXTS,
            "Widget": {"stylesheets": [SHEET]},
        }
    }
)
_HEAD = (
    f"<nav style='display:flex;gap:18px;align-items:baseline;border-bottom:1px solid {LINE};"
    "padding:2px 0 7px;width:calc(100vw - 34px)'><b style='font-size:15px'>dspa</b>{links}"
    f"<span style='margin-left:auto;color:{DIM}'>{{folder}}</span></nav>"
)


def head(project: Project, here: str) -> Div:
    """Return the row at the top of a page: where one can go, and which project this is.

    Parameters
    ----------
    project : Project
    here : str
        Address of the page, a key of ``PAGES``.
    """
    links = "".join(
        f"<span style='color:{TEXT};font-weight:600'>{words}</span>"
        if address == here
        else f"<a style='color:{BLUE};text-decoration:none' href='{address}'>{words}</a>"
        for address, words in PAGES.items()
    )
    text = _HEAD.format(links=links, folder=html.escape(str(project.folder)))
    return Div(text=text, sizing_mode="stretch_width", name="head-row")


def asked_job(
    project: Project, document: Document | None, choices: Collection[str], top: Div
) -> str:
    """Return the job that the address of a page asks for (``?job=J3``); empty if none.

    Parameters
    ----------
    project : Project
    document : bokeh.document.Document or None
    choices : collection of str
        The jobs that the page can show.
    top : Div
        From `head`; says so if the page cannot show the job.
    """
    context = getattr(document, "session_context", None)
    if context is None or context.request is None:
        return ""
    text = (context.request.arguments.get("job") or [b""])[0].decode(errors="replace")
    if not text:
        return ""
    try:
        job = find_job(project, text)
        if job.name in choices:
            return job.name
        record = job.read()
        why = f"{job.name} ({record.stage}, {record.state}) has nothing for this page"
    except InputError as error:
        why = str(error)
    top.text += f"<div style='color:{DROPPED}'>{html.escape(why)}</div>"
    return ""


def dress(document: Document, title: str) -> None:
    """Give a document its title, its colours and its page.

    Parameters
    ----------
    document : bokeh.document.Document
    title : str
    """
    document.title = f"dspa: {title}"
    document.theme = THEME
    document.template = PAGE


def finished(
    project: Project, stages: Collection[str] = (), *, output: str = ""
) -> dict[str, Record]:
    """Return completed jobs, the newest last: name to record.

    Parameters
    ----------
    project : Project
    stages : collection of str
        As typed: ``pick blob``; all if empty.
    output : str
        What they must have given: ``picks``.
    """
    found = {}
    for job in project.jobs:
        try:
            record = job.read()
        except InputError:
            continue
        wanted = not stages or record.stage in stages
        if record.state == "completed" and wanted and (not output or output in record.outputs):
            found[job.name] = record
    return found
