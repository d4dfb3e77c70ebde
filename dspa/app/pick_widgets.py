"""The parts of the page of picks: plots, sliders, buttons, and the scripts between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bokeh.events import SelectionGeometry
from bokeh.layouts import column, row
from bokeh.models import (
    AutocompleteInput,
    BoxSelectTool,
    Button,
    Checkbox,
    ColumnDataSource,
    CustomJS,
    CustomJSTickFormatter,
    Div,
    LinearColorMapper,
    RadioButtonGroup,
    Range1d,
    RangeSlider,
    Select,
    Slider,
    Span,
    Spinner,
    WheelZoomTool,
)
from bokeh.plotting import figure

from dspa.app import pick_scripts
from dspa.app.frame import DIM, TEXT

# px: of the micrograph, of the scatter, of a histogram.
FRAME, SCATTER, HISTOGRAM = (790, 690), (500, 250), (215, 90)
RIGHT = 545
POINTS = ("x", "y", "radius", "ncc", "power", "state", "colour", "alpha")
CLOUD = ("ncc", "power", "colour")
BARS = ("left", "right", "top")
LIMIT: dict[str, Any] = {"line_color": TEXT, "line_width": 1.5, "line_dash": "dashed"}


def _source(*names: str, **named: Any) -> Any:
    """Make an empty source of these columns; ``name`` is the model's."""
    return ColumnDataSource({name: [] for name in names}, **named)


@dataclass
class Sources:
    """The data of the page.

    Attributes
    ----------
    image, junk : w, h in A
        The micrograph in eight bits, and where it is junk.
    points : of the micrograph's picks.
    cloud : some of all candidates.
    table : how many pass at each pair of places, flat.
    ncc_cuts, power_cuts : the places.
    totals : how many candidates there are.
    edits : what was done by hand, on all micrographs.
    presses : keys that the server answers.
    """

    image: Any = field(default_factory=lambda: _source("image", "w", "h", name="image"))
    junk: Any = field(default_factory=lambda: _source("image", "w", "h", name="junk"))
    points: Any = field(default_factory=lambda: _source(*POINTS, name="points"))
    cloud: Any = field(default_factory=lambda: _source(*CLOUD, name="cloud"))
    table: Any = field(default_factory=lambda: _source("below", "upto", name="table"))
    ncc_cuts: Any = field(default_factory=lambda: _source("value", name="ncc_cuts"))
    power_cuts: Any = field(default_factory=lambda: _source("value", name="power_cuts"))
    totals: Any = field(default_factory=lambda: _source("all", name="totals"))
    edits: Any = field(default_factory=lambda: _source("state", "ncc", "power", name="edits"))
    ncc_bars: Any = field(default_factory=lambda: _source(*BARS, name="ncc_bars"))
    power_bars: Any = field(default_factory=lambda: _source(*BARS, name="power_bars"))
    presses: Any = field(default_factory=lambda: _source("what", "when", name="presses"))


class Widgets:
    """Everything on the page but the head and the command."""

    def __init__(self) -> None:
        self.data = Sources()
        self._choices()
        self._turning()
        self._looking()
        self._plots()

    def _choices(self) -> None:
        """Make what decides which picks are kept."""
        places = {
            name: CustomJSTickFormatter(code=pick_scripts.PLACE, args={"cuts": cuts})
            for name, cuts in (("ncc", self.data.ncc_cuts), ("power", self.data.power_cuts))
        }
        wide: dict[str, Any] = {"sizing_mode": "stretch_width", "start": 0, "end": 1, "step": 1}
        self.jobs = Select(title="picking job", width=330, name="job")
        self.calibrate = Checkbox(label="relative to the defocus trend", active=True,
                                  name="calibrate", margin=(24, 5, 5, 10))  # fmt: skip
        self.ncc = Slider(title="lowest NCC", value=0, format=places["ncc"], name="ncc", **wide)
        self.power = RangeSlider(title="power", value=(0, 1), format=places["power"],
                                 name="power", **wide)  # fmt: skip
        self.auto = Button(label="Auto", width=80, name="auto")
        self.undo = Button(label="Undo", width=80, disabled=True, name="undo")
        self.counts = Div(name="counts", sizing_mode="stretch_width", height=36)
        self.message = Div(name="message", sizing_mode="stretch_width")

    def _turning(self) -> None:
        """Make what turns to another micrograph."""
        self.number = Spinner(low=1, high=1, step=1, value=1, width=70, name="number")
        self.total = Div(text="", width=60, styles={"color": DIM}, margin=(11, 5, 5, 0))
        self.names = AutocompleteInput(
            width=350, restrict=True, case_sensitive=False, search_strategy="includes",
            min_characters=1, max_completions=20, placeholder="name of a micrograph", name="names",
        )  # fmt: skip
        self.previous = Button(label="‹ Previous", width=90, name="previous")
        self.next = Button(label="Next ›", width=90, name="next")
        for button, step in ((self.previous, -1), (self.next, 1)):
            code = pick_scripts.STEP.replace("step", str(step))
            button.js_on_click(CustomJS(code=code, args={"number": self.number}))

    def _looking(self) -> None:
        """Make what decides how the micrograph looks."""
        self.low_pass = Slider(title="low-pass (Å), 0 for none", start=0, end=60, step=1, value=20,
                               width=230, name="low_pass")  # fmt: skip
        self.contrast = Slider(title="contrast", start=2, end=8, step=0.5, value=3, width=150,
                               name="contrast")  # fmt: skip
        self.dropped = Checkbox(label="dropped", active=True, name="dropped")
        self.mask = Checkbox(label="junk mask", active=False, disabled=True, name="mask")
        self.tool = RadioButtonGroup(labels=["Look", "Edit"], active=0, width=110, name="tool")

    def _plots(self) -> None:
        data = self.data
        self.micrograph = self._micrograph()
        self.scatter = figure(
            frame_width=SCATTER[0] - 60, frame_height=SCATTER[1] - 20, y_axis_type="log",
            tools="", toolbar_location=None, min_border=2, x_axis_label="NCC",
            y_axis_label="power", name="scatter",
        )  # fmt: skip
        self.scatter.scatter("ncc", "power", source=data.cloud, size=3, line_color=None,
                             fill_color="colour", fill_alpha=0.7)  # fmt: skip
        box = BoxSelectTool(renderers=[])
        self.scatter.add_tools(box)
        self.scatter.toolbar.active_drag = box
        self.ncc_plot = self._histogram(data.ncc_bars, "NCC", "linear")
        self.power_plot = self._histogram(data.power_bars, "power", "log")
        self.lines = {
            "ncc_line": _limit(self.scatter, "height"),
            "ncc_line_below": _limit(self.ncc_plot, "height"),
            "low_line": _limit(self.scatter, "width"),
            "high_line": _limit(self.scatter, "width"),
            "low_line_below": _limit(self.power_plot, "height"),
            "high_line_below": _limit(self.power_plot, "height"),
        }

    def _micrograph(self) -> Any:
        plot = figure(
            frame_width=FRAME[0], frame_height=FRAME[1], min_border=0, tools="pan,wheel_zoom,reset",
            toolbar_location="right", x_range=Range1d(0, FRAME[0]), y_range=Range1d(FRAME[1], 0),
            name="micrograph",
        )  # fmt: skip
        plot.axis.visible = plot.grid.visible = False
        plot.toolbar.logo = None
        plot.toolbar.active_scroll = plot.select_one(WheelZoomTool)
        grey = LinearColorMapper(palette="Greys256", low=127.5 - 85, high=127.5 + 85)
        plot.image("image", x=0, y=0, dw="w", dh="h", source=self.data.image, color_mapper=grey)
        junk = LinearColorMapper(palette=["#ff50c800", "#ff50c855"],
                                 low=0, high=1)  # fmt: skip
        self.junk = plot.image("image", x=0, y=0, dw="w", dh="h", source=self.data.junk,
                               color_mapper=junk, visible=False)  # fmt: skip
        plot.circle("x", "y", radius="radius", source=self.data.points, fill_alpha=0.0,
                    line_color="colour", line_alpha="alpha", line_width=1.6)  # fmt: skip
        self.mask.js_link("active", self.junk, "visible")
        code = "[mapper.low, mapper.high] = [127.5 - 255 / this.value, 127.5 + 255 / this.value]"
        self.contrast.js_on_change("value", CustomJS(code=code, args={"mapper": grey}))
        return plot

    def _histogram(self, source: Any, label: str, kind: str) -> Any:
        plot = figure(
            frame_width=HISTOGRAM[0], frame_height=HISTOGRAM[1], x_axis_type=kind, tools="",
            toolbar_location=None, min_border=2, x_axis_label=label, name=f"{label}-histogram",
        )  # fmt: skip
        plot.yaxis.visible = plot.ygrid.visible = False
        plot.y_range.start = 0
        plot.quad("left", "right", "top", 0, source=source, fill_color="#6c7a89", line_color=None)
        return plot

    def connect(self, command: Any, document: Any) -> None:
        """Let the scripts run where what they read changes.

        Parameters
        ----------
        command : Div
            Where the command is written.
        document : Document or None
        """
        data = self.data
        args = {
            "ncc": self.ncc, "power": self.power, "ncc_cuts": data.ncc_cuts,
            "power_cuts": data.power_cuts, "table": data.table, "points": data.points,
            "cloud": data.cloud, "edits": data.edits, "totals": data.totals,
            "dropped": self.dropped, "calibrate": self.calibrate, "job": self.jobs,
            "counts": self.counts, "command": command, **self.lines,
        }  # fmt: skip
        update = CustomJS(code=pick_scripts.UPDATE, args=args)
        for slider in (self.ncc, self.power):
            slider.js_on_change("value", update)
        for source in (data.table, data.points, data.edits, data.cloud):
            source.js_on_change("data", update)
        self.dropped.js_on_change("active", update)
        args = {"ncc": self.ncc, "power": self.power, "ncc_cuts": data.ncc_cuts,
                "power_cuts": data.power_cuts}  # fmt: skip
        self.scatter.js_on_event(SelectionGeometry, CustomJS(code=pick_scripts.BOX, args=args))
        if document is not None:
            args = {"number": self.number, "presses": data.presses, "tool": self.tool,
                    "dropped": self.dropped}  # fmt: skip
            document.js_on_event("document_ready", CustomJS(code=pick_scripts.KEYS, args=args))

    def arrange(self, head: Any, command: Any) -> Any:
        """Return the whole page.

        Parameters
        ----------
        head : Div
        command : Command
        """
        turning = row(self.previous, self.number, self.total, self.next, self.names, self.tool)
        looking = row(self.low_pass, self.contrast,
                      column(self.dropped, self.mask, margin=(2, 0, 0, 12)))  # fmt: skip
        left = column(turning, self.micrograph, looking)
        right = column(
            row(self.jobs, self.calibrate),
            self.counts,
            self.ncc,
            self.power,
            self.scatter,
            row(self.ncc_plot, self.power_plot),
            row(self.auto, self.undo, command.button),
            command.text,
            command.status,
            self.message,
            width=RIGHT,
        )
        return column(head, row(left, right), sizing_mode="stretch_width")


def _limit(plot: Any, dimension: str) -> Any:
    line = Span(dimension=dimension, **LIMIT)
    plot.add_layout(line)
    return line
