"""The parts of the page of picks: plots, sliders, buttons, and the scripts between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bokeh.events import SelectionGeometry
from bokeh.layouts import column, row
from bokeh.models import (
    AutocompleteInput,
    BasicTickFormatter,
    BoxSelectTool,
    Button,
    Checkbox,
    ColumnDataSource,
    CustomJS,
    CustomJSTickFormatter,
    DataRange1d,
    Div,
    FixedTicker,
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

# px: the scatter, a histogram, the column they are in.
SCATTER, HISTOGRAM, RIGHT = (460, 255), (215, 80), 540
PAGE = {"height": "calc(100vh - 10px)"}
POINTS = ("x", "y", "radius", "ncc", "power", "state", "colour", "alpha")
CLOUD = ("ncc", "power", "colour")
BARS = ("left", "right", "top")
HINT = (
    "Arrow keys: next and previous micrograph. Edit (e): a click on a pick takes it out, on an "
    "empty place adds one; Ctrl+Z: undo. d: dropped candidates. Draw a box in the scatter to "
    "choose from it."
)
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
    """

    image: Any = field(default_factory=lambda: _source("image", "w", "h", "row", name="image"))
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
        self.total = Div(text="", width=55, styles={"color": DIM}, margin=(11, 5, 5, 0))
        self.names = AutocompleteInput(
            sizing_mode="stretch_width", restrict=True, case_sensitive=False,
            search_strategy="includes", min_characters=1, max_completions=20,
            placeholder="name of a micrograph", name="names",
        )  # fmt: skip
        self.previous = Button(label="‹ Previous", width=85, name="previous")
        self.next = Button(label="Next ›", width=85, name="next")
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
        self.flat = Checkbox(label="even background", active=True, name="flat")
        self.mask = Checkbox(label="junk mask", active=False, disabled=True, name="mask")
        self.tool = RadioButtonGroup(labels=["Look", "Edit"], active=0, width=110, name="tool")

    def _plots(self) -> None:
        data = self.data
        self.micrograph = self._micrograph()
        self.ncc_range, self.power_range = Range1d(0, 1), Range1d(1, 10)
        self.scatter = figure(
            frame_width=SCATTER[0], frame_height=SCATTER[1], y_axis_type="log", tools="",
            toolbar_location=None, min_border=2, x_axis_label="NCC", y_axis_label="power",
            x_range=self.ncc_range, y_range=self.power_range, name="scatter",
        )  # fmt: skip
        self.ticks = FixedTicker(ticks=[1, 10])
        self.scatter.yaxis.ticker = self.ticks
        self.scatter.yaxis.formatter = BasicTickFormatter(use_scientific=False)
        self.scatter.ygrid.ticker = self.ticks
        self.scatter.scatter("ncc", "power", source=data.cloud, size=3, marker="square",
                             line_color=None, fill_color="colour", fill_alpha=0.7)  # fmt: skip
        box = BoxSelectTool(renderers=[])
        self.scatter.add_tools(box)
        self.scatter.toolbar.active_drag = box
        self.ncc_plot = self._histogram(data.ncc_bars, "NCC", self.ncc_range)
        self.power_plot = self._histogram(data.power_bars, "power", self.power_range)
        self.power_plot.xaxis.ticker = self.power_plot.xgrid.ticker = self.ticks
        self.power_plot.xaxis.formatter = BasicTickFormatter(use_scientific=False)
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
            sizing_mode="stretch_both", min_border=0, tools="pan,wheel_zoom,reset",
            toolbar_location="right", x_range=Range1d(0, 1), y_range=Range1d(1, 0),
            lod_threshold=None, name="micrograph",
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
        fit = CustomJS(code=pick_scripts.FIT, args={"plot": plot, "image": self.data.image})
        plot.js_on_change("inner_width", fit)
        plot.js_on_change("inner_height", fit)
        self.data.image.js_on_change("data", fit)
        code = "[mapper.low, mapper.high] = [127.5 - 255 / this.value, 127.5 + 255 / this.value]"
        self.contrast.js_on_change("value", CustomJS(code=code, args={"mapper": grey}))
        return plot

    def _histogram(self, source: Any, label: str, values: Any) -> Any:
        plot = figure(
            frame_width=HISTOGRAM[0], frame_height=HISTOGRAM[1], tools="", toolbar_location=None,
            x_axis_type="log" if label == "power" else "linear", x_range=values, min_border=2,
            y_range=DataRange1d(start=0, default_span=1), x_axis_label=label, margin=(0, 18, 0, 8),
            name=f"{label}-histogram",
        )  # fmt: skip
        plot.yaxis.visible = plot.ygrid.visible = False
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
            args = {"number": self.number, "undo": self.undo, "tool": self.tool,
                    "dropped": self.dropped}  # fmt: skip
            keys = CustomJS(code=pick_scripts.KEYS, args=args)
            # What was read before the page was drawn changes no more.
            document.js_on_event("document_ready", update, keys)

    def arrange(self, head: Any, command: Any) -> Any:
        """Return the whole page.

        Parameters
        ----------
        head : Div
        command : Command
        """
        turning = row(self.previous, self.next, self.number, self.total, self.names, self.tool,
                      sizing_mode="stretch_width")  # fmt: skip
        looking = row(self.low_pass, self.contrast,
                      row(self.flat, self.dropped, self.mask, margin=(20, 0, 0, 8)))  # fmt: skip
        left = column(turning, self.micrograph, looking, Div(text=HINT, styles={"color": DIM}),
                      sizing_mode="stretch_both", min_height=420, min_width=480)  # fmt: skip
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
        body = row(left, right, sizing_mode="stretch_both")
        return column(head, body, sizing_mode="stretch_width",
                      styles=PAGE)  # fmt: skip


def _limit(plot: Any, dimension: str) -> Any:
    line = Span(dimension=dimension, **LIMIT)
    plot.add_layout(line)
    return line
