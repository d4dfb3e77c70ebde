"""A page of ours in the Dask dashboard: ``/dspa``, with a tab, and ``/dspa/state.json``.

Dask imports this module before it builds its dashboard when the setting
``distributed.scheduler.http.routes`` names it. The names it hooks into are Dask's own and not
promised; where they have changed, the JSON route still works and the tab is missing.
"""

from __future__ import annotations

import html
import json
import logging
from typing import Any

import distributed.dashboard.scheduler as dask_dashboard
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, Div
from bokeh.plotting import figure
from distributed.dashboard.components import add_periodic_callback
from distributed.dashboard.components.scheduler import BOKEH_THEME, env
from distributed.http.utils import RequestHandler

TOPIC = "dspa"
LINES = 18
logger = logging.getLogger(__name__)


def events_of(scheduler: Any) -> list[dict[str, Any]]:
    """Return the events that jobs have sent to the scheduler, oldest first.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    """
    return [event for _, event in scheduler.get_events(topic=TOPIC) if isinstance(event, dict)]


def since_start(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events of the newest job: those after its state became running.

    Parameters
    ----------
    events : list of dict
    """
    first = 0
    for number, event in enumerate(events):
        if event.get("kind") == "state" and event.get("state") == "running":
            first = number
    return events[first:]


class Progress:
    """Resolution over iterations, and the last lines of the log.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.source = ColumnDataSource({"iteration": [], "resolution": []})
        plot = figure(
            title="resolution (Å) by iteration",
            height=280,
            sizing_mode="stretch_width",
            name="dspa",
        )
        plot.line("iteration", "resolution", source=self.source, line_width=2)
        plot.scatter("iteration", "resolution", source=self.source, size=6)
        self.log = Div(sizing_mode="stretch_width", text="no job has reported yet")
        self.root = column(plot, self.log, sizing_mode="stretch_width")
        self._seen = -1

    def update(self) -> None:
        """Read new events; runs on the scheduler's own loop, so it must be quick."""
        events = events_of(self.scheduler)
        if len(events) == self._seen:
            return
        self._seen = len(events)
        events = since_start(events)
        steps = [(e.get("iteration"), _resolution(e)) for e in events if e["kind"] == "iteration"]
        steps = [(number, found) for number, found in steps if found is not None]
        self.source.data = {
            "iteration": [number for number, _ in steps],
            "resolution": [found for _, found in steps],
        }
        lines = [html.escape(_line(event)) for event in events[-LINES:]]
        self.log.text = f"<pre>{chr(10).join(lines)}</pre>"


def _resolution(event: dict[str, Any]) -> float | None:
    """Return what halves agree to; in a refinement it is judged at the end only."""
    found: float | None = event.get("resolution", event.get("unjudged_resolution"))
    return found


def _line(event: dict[str, Any]) -> str:
    rest = {k: v for k, v in event.items() if k not in ("kind", "time")}
    words = ", ".join(f"{name} {value}" for name, value in rest.items())
    return f"{event['kind']}: {words}"


def page(scheduler: Any, extra: dict[str, Any], document: Any) -> None:
    """Fill a document of the dashboard.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    extra : dict
        Template variables of the dashboard.
    document : bokeh.document.Document
    """
    progress = Progress(scheduler)
    progress.update()
    add_periodic_callback(document, progress, 1000)
    document.title = "dspa"
    document.add_root(progress.root)
    document.template = env.get_template("simple.html")
    document.template_variables.update(extra)
    document.theme = BOKEH_THEME


class StateJSON(RequestHandler):  # type: ignore[misc]
    """``/dspa/state.json``: the events, for other programs."""

    def get(self) -> None:
        """Answer with the events of all jobs."""
        self.set_header("Content-Type", "application/json")
        self.write(json.dumps(events_of(self.server)))


def _add_tab() -> None:
    """Put the page into the dashboard and its name into the row of tabs."""
    try:
        original = dask_dashboard.template_variables
        dask_dashboard.applications["/dspa"] = page
    except AttributeError:
        logger.warning("this Dask has another dashboard; the dspa tab is missing")
        return

    def with_tab(scheduler: Any) -> Any:
        variables = original(scheduler)
        if "dspa" not in variables["pages"]:
            variables["pages"].insert(1, "dspa")
        return variables

    dask_dashboard.template_variables = with_tab


if "/dspa" not in dask_dashboard.applications:
    _add_tab()

routes: list[tuple[str, type, dict[str, Any]]] = [(r"dspa/state.json", StateJSON, {})]
