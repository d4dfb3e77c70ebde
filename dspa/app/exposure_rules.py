"""Sliders under histograms: one for each figure that exposures can be chosen by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, RangeSlider, Select, Slider
from bokeh.plotting import figure

from dspa.app import frame
from dspa.stages.exposures.figures import QUALITIES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from dspa.stages.exposures.figures import Figure

BINS = 40
WIDTH = 260
STEPS = 200
# Figure, and the parameters it sets: the high end alone, or both ends.
RULES = {
    "ctf_resolution": ("max_ctf_resolution",),
    "defocus": ("defocus",),
    "astigmatism": ("max_astigmatism",),
    "ice": ("max_ice",),
    "picks": ("min_picks", "max_picks"),
}
ANY = "any"


@dataclass(frozen=True)
class _Span:
    """The ends of a slider, on multiples of its step, so that they hold every value."""

    low: float
    high: float
    step: float


class RuleWidgets:
    """What sets the rules.

    Parameters
    ----------
    changed : callable
        Called when a rule changes.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.changed = changed
        self.root = column(width=WIDTH + 20)
        self.quality = Select(title="worst CTF fit", options=[ANY, *QUALITIES[1:]], value=ANY,
                              width=WIDTH, name="ctf_quality")  # fmt: skip
        self.quality.on_change("value", lambda attr, old, new: self.changed())
        self.sliders: dict[str, Slider | RangeSlider] = {}
        self.bars: dict[str, ColumnDataSource] = {}
        self.figures: dict[str, Figure] = {}

    def show(self, figures: Mapping[str, Figure]) -> None:
        """Make the widgets of the figures that there are; those that stay keep their values.

        Parameters
        ----------
        figures : mapping
            From `exposure_figures`.
        """
        self.figures = {name: figures[name] for name in RULES if name in figures}
        self.figures = {name: f for name, f in self.figures.items() if f.varies}
        before = self.values()
        self.sliders, self.bars, parts = {}, {}, []
        for name, each in self.figures.items():
            span = _span(each.shown)
            self.sliders[name] = self._slider(name, each.label, span, before)
            parts += [self._histogram(name, each, span), self.sliders[name]]
        if "ctf_quality" in figures:
            parts.append(self.quality)
        self.root.children = parts

    def _slider(
        self, name: str, label: str, span: _Span, before: Mapping[str, Any]
    ) -> Slider | RangeSlider:
        ends = {"start": span.low, "end": span.high, "step": span.step, "width": WIDTH,
                "name": f"limit_{name}", "format": "0,0.[00]"}  # fmt: skip
        slider: Slider | RangeSlider
        if name in ("defocus", "picks"):
            low, high = span.low, span.high
            if name == "picks":
                low, high = before.get("min_picks", low), before.get("max_picks", high)
            elif "defocus" in before:
                low, high = before["defocus"]
            value = (max(low, span.low), min(high, span.high))
            slider = RangeSlider(title=label, value=value, **ends)
        else:
            most = before.get(RULES[name][0], span.high)
            slider = Slider(title=f"largest {label}", value=min(most, span.high), **ends)
        slider.on_change("value", lambda attr, old, new: self.changed())
        return slider

    def _histogram(self, name: str, each: Figure, span: _Span) -> Any:
        edges = np.linspace(span.low, span.high, BINS + 1)
        counts = np.histogram(each.shown[np.isfinite(each.shown)], edges)[0]
        self.bars[name] = ColumnDataSource(
            {"left": edges[:-1], "right": edges[1:], "all": counts, "kept": counts}
        )
        plot = figure(height=70, width=WIDTH, toolbar_location=None, tools="",
                      x_range=(span.low, span.high), min_border=0)  # fmt: skip
        plot.axis.visible = plot.grid.visible = False
        for field, colour in (("all", frame.DROPPED), ("kept", frame.KEPT)):
            plot.quad(left="left", right="right", bottom=0, top=field, source=self.bars[name],
                      color=colour, line_color=None)  # fmt: skip
        return plot

    def values(self) -> dict[str, Any]:
        """Return the parameters of ``curate-exposures`` that the widgets set.

        A slider at its end sets none.
        """
        found: dict[str, Any] = {}
        for name, slider in self.sliders.items():
            names = RULES[name]
            if isinstance(slider, RangeSlider):
                low, high = (_typed(value) for value in slider.value)
                below, above = low > slider.start, high < slider.end
                if name == "picks":
                    found |= {names[0]: int(low)} if below else {}
                    found |= {names[1]: int(high)} if above else {}
                elif below or above:
                    found[names[0]] = (low, high)
            elif slider.value < slider.end:
                found[names[0]] = _typed(slider.value)
        if self.quality.value != ANY and self.quality in self.root.children:
            found["min_ctf_quality"] = self.quality.value
        return found

    def paint(self, keep: NDArray[np.bool_]) -> None:
        """Show in the histograms what is accepted.

        Parameters
        ----------
        keep : (m,) bool
        """
        for name, source in self.bars.items():
            values = self.figures[name].shown
            edges = np.append(source.data["left"], source.data["right"][-1])
            counts = np.histogram(values[keep & np.isfinite(values)], edges)[0]
            source.patch({"kept": [(slice(BINS), counts)]})


def _typed(value: float) -> float:
    """Return a value as it reads back from the command line."""
    return float(f"{value:g}")


def _span(values: NDArray[np.float64]) -> _Span:
    known = values[np.isfinite(values)]
    low, high = float(known.min()), float(known.max())
    rough = (high - low) / STEPS
    step = 10.0 ** math.floor(math.log10(rough))
    step = next(step * factor for factor in (1, 2, 5, 10) if step * factor >= rough)
    if np.all(known == np.round(known)):
        step = max(1.0, step)
    ends = (math.floor(low / step) * step, math.ceil(high / step) * step)
    return _Span(round(ends[0], 9), round(ends[1], 9), step)
