"""The page of a 2D classification: click on classes to choose them."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.events import DoubleTap, Tap
from bokeh.layouts import column, row
from bokeh.models import Button, ColumnDataSource, Div, LinearColorMapper, Select, Slider
from bokeh.plotting import figure

from dspa.app import frame
from dspa.app.class_set import ORDERS, ClassSet, read_class_set
from dspa.app.commands import Command
from dspa.app.later import Later
from dspa.data.counts import counted
from dspa.project.lineage import find_job
from dspa.stages.class2d.select2d import TRIM

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from bokeh.document import Document
    from numpy.typing import NDArray

    from dspa.data.errors import InputError
    from dspa.project.project import Project

STAGE = "class2d"
RIGHT, MEMBER_COLUMNS = 380, 6
LINE = 0.38  # below the middle of a class: where its picture ends and its line begins
HINT = (
    "A click on a picture chooses the class or lets it go; Shift and a click: all from the class "
    "clicked before. A click on the line under it shows some of its particles and what its score "
    "is made of. The line: number, particles, resolution in Å, score."
)


class ClassPage:
    """Class averages in rows; the chosen ones make a ``dspa select2d`` command.

    Parameters
    ----------
    project : Project
    document : Document, optional
    pool : ThreadPoolExecutor, optional
    """

    def __init__(
        self,
        project: Project,
        document: Document | None = None,
        pool: ThreadPoolExecutor | None = None,
    ) -> None:
        self.project, self.later = project, Later(document, pool)
        self.command = Command(project, document, label="Save")
        self.set: ClassSet | None = None
        self.chosen: NDArray[np.bool_] = np.zeros(0, bool)
        self.order: NDArray[np.int64] = np.zeros(0, np.int64)
        self.last: int | None = None  # place clicked before
        self.trim = False  # after Auto: particles that noise explains go, whatever is clicked
        self._widgets()
        self._plots()
        for event in (Tap, DoubleTap):  # the second of two quick clicks is a double tap
            self.plot.on_event(event, self.tap)
        self.root = self._arrange()
        names = list(frame.finished(project, [STAGE]))
        self.jobs.options = names
        if names:
            self.jobs.value = frame.asked_job(project, document, names, self.top) or names[-1]
        else:
            self.message.text = "no 2D classification is completed yet"
            self.command.show([])

    def _widgets(self) -> None:
        self.message = Div(name="message", sizing_mode="stretch_width")
        self.counts = Div(name="counts", sizing_mode="stretch_width", height=58)
        self.figures = Div(name="figures", width=RIGHT, styles={"font-size": "11px"})
        self.jobs = Select(title="classification", options=[], width=170, name="job")
        self.jobs.on_change("value", lambda attr, old, new: self.open())
        self.by = Select(title="in order of", options=list(ORDERS), value="particles", width=170,
                         name="order")  # fmt: skip
        self.by.on_change("value", lambda attr, old, new: self.sort())
        self.limit = Slider(title="choose the first", start=0, end=1, step=1, value=0, name="limit",
                            sizing_mode="stretch_width")  # fmt: skip
        self.limit.on_change("value", lambda attr, old, new: self.first(round(new)))
        self.buttons = {
            name: Button(label=label, width=82, name=name)
            for name, label in (("auto", "Auto"), ("all", "All"), ("none", "None"),
                                ("invert", "Invert"))
        }  # fmt: skip
        for name, button in self.buttons.items():
            button.on_click(partial(self.press, name))

    def _plots(self) -> None:
        self.images = ColumnDataSource({"image": [], "x": [], "y": []}, name="images")
        self.frames = ColumnDataSource(
            {"x": [], "y": [], "foot": [], "label": [], "line": []}, name="frames"
        )
        self.members = ColumnDataSource({"image": [], "x": [], "y": []}, name="members")
        self.plot = figure(sizing_mode="stretch_both", match_aspect=True, tools="",
                           toolbar_location=None, min_border=0, name="classes")  # fmt: skip
        self.plot.axis.visible = self.plot.grid.visible = False
        self.plot.image("image", x="x", y="y", dw=0.94, dh=0.94, source=self.images,
                        palette="Greys256")  # fmt: skip
        self.plot.rect("x", "y", 0.97, 1.13, source=self.frames, fill_alpha=0.0, line_width=4,
                       line_color=frame.KEPT, line_alpha="line")  # fmt: skip
        self.plot.text("x", "foot", "label", source=self.frames, text_align="center",
                       text_font_size="11px", text_color=frame.BLUE, anchor="center")  # fmt: skip
        self.strip = figure(width=RIGHT, height=RIGHT * 4 // MEMBER_COLUMNS + 30, tools="",
                            match_aspect=True, toolbar_location=None, min_border=0,
                            name="strip",
                            title="click on the line under a class to see particles")  # fmt: skip
        self.strip.axis.visible = self.strip.grid.visible = False
        self.grey = LinearColorMapper(palette="Greys256", low=0, high=1)
        self.strip.image("image", x="x", y="y", dw=0.95, dh=0.95, source=self.members,
                         color_mapper=self.grey)  # fmt: skip

    def _arrange(self) -> Any:
        buttons = row(*self.buttons.values())
        right = column(
            row(self.jobs, self.by), self.counts, self.limit, buttons, self.command.button,
            self.command.text, self.command.status, self.message, self.strip, self.figures,
            Div(text=HINT, width=RIGHT, styles={"color": frame.DIM}), width=RIGHT + 10,
        )  # fmt: skip
        left = column(self.plot, sizing_mode="stretch_both", min_height=420)
        body = row(left, right, sizing_mode="stretch_both")
        self.top = frame.head(self.project, "classes")
        return column(self.top, body, sizing_mode="stretch_width",
                      styles={"height": "calc(100vh - 10px)"})  # fmt: skip

    def open(self) -> None:
        """Show the classes of the chosen job."""
        job = find_job(self.project, self.jobs.value)
        self.message.text = f"reading {job.name} …"
        self.set = None
        self.command.show([])
        self.later.do("open", lambda: read_class_set(job), then=self._opened, failed=self._say)

    def _opened(self, found: ClassSet) -> None:
        self.set, self.last = found, None
        self.message.text = ""
        self.chosen = np.zeros(len(found.averages), bool)
        self.limit.end = len(found.averages)
        self.members.data = {"image": [], "x": [], "y": []}
        self.figures.text = ""
        self.trim = False
        self.sort()

    def sort(self) -> None:
        """Put the classes in the chosen order."""
        if self.set is None:
            return
        self.order, self.last = self.set.order(self.by.value), None
        count = len(self.order)
        place = np.arange(count)
        across = max(5, math.ceil(math.sqrt(1.5 * count)))
        x, y = place % across, -1.17 * (place // across)
        averages = [self.set.averages[each] for each in self.order]
        self.images.data = {"image": averages, "x": list(x - 0.47), "y": list(y - 0.37)}
        figures = {name: values[self.order] for name, values in self.set.figures.items()}
        rows = zip(*(figures[n] for n in ("number", "count", "resolution", "score")), strict=True)
        labels = [f"{n:.0f}: {count:,.0f}, {size:.1f}, {score:.2f}"
                  for n, count, size, score in rows]  # fmt: skip
        self.frames.data = {"x": list(x), "y": list(y), "foot": list(y - 0.46), "label": labels,
                            "line": [0.0] * count}  # fmt: skip
        self.show()

    def tap(self, event: Any) -> None:
        """Look at the class whose line is under the mouse, or choose the one whose picture is.

        With Shift all from the picture clicked before are chosen, or let go.
        """
        if self.set is None or not len(self.order):
            return
        below = np.array(self.frames.data["y"]) - event.y
        distance = np.maximum(np.abs(np.array(self.frames.data["x"]) - event.x), np.abs(below))
        place = int(np.argmin(distance))
        if distance[place] > 0.57:
            return
        if below[place] > LINE:
            self._look(int(self.order[place]))
            return
        modifiers = getattr(event, "modifiers", None)
        shift = modifiers["shift"] if isinstance(modifiers, dict) else False
        if shift and self.last is not None:
            low, high = sorted((self.last, place))
            self.chosen[self.order[low : high + 1]] = self.chosen[self.order[self.last]]
        else:
            self.chosen[self.order[place]] ^= True
        self.last = place
        self.show()

    def _look(self, number: int) -> None:
        """Show particles of a class, and what its score is made of."""
        assert self.set is not None
        wanted = self.set
        self.figures.text = figures_table(wanted, number)

        def done(images: NDArray[np.float32]) -> None:
            """Show particles of the class that was clicked."""
            place = np.arange(len(images))
            x, y = place % MEMBER_COLUMNS, -(place // MEMBER_COLUMNS)
            if images.size:
                self.grey.low, self.grey.high = (float(v) for v in np.percentile(images, (1, 99)))
            self.members.data = {"image": list(images), "x": list(x), "y": list(y)}
            total = wanted.figures["count"][number]
            self.strip.title.text = f"class {number + 1}: {len(images)} of {total:,.0f} particles"

        self.later.do("look", lambda: wanted.members(number), then=done, failed=self._say)

    def first(self, count: int) -> None:
        """Choose the first classes of the order.

        Parameters
        ----------
        count : int
        """
        if self.set is None:
            return
        self.chosen[:], self.trim = False, False
        self.chosen[self.order[:count]] = True
        name, _ = ORDERS[self.by.value]
        to = f"{self.set.figures[name][self.order[count - 1]]:.4g}" if count else "none"
        self.limit.title = f"choose the first, to {self.by.value} {to}"
        self.show()

    def press(self, name: str) -> None:
        """Choose many at once.

        Parameters
        ----------
        name : str
            ``auto``, ``all``, ``none`` or ``invert``.
        """
        if self.set is None:
            return
        self.trim = name == "auto" or (name == "invert" and self.trim)
        if name == "auto":
            self.chosen = self.set.automatic()
        elif name == "invert":
            self.chosen = ~self.chosen
        else:
            self.chosen[:] = name == "all"
        self.show()

    def show(self) -> None:
        """Draw what is chosen, count it, and turn it into the command."""
        assert self.set is not None
        chosen = self.chosen[self.order]
        self.frames.patch({"line": [(slice(len(chosen)), [float(each) for each in chosen])]})
        count = self.set.figures["count"]
        kept, total = int(count[self.chosen].sum()), int(count.sum())
        kept = self.set.trimmed(self.chosen) if self.trim else kept
        number, words = f"font-size:22px;color:{frame.KEPT}", f"color:{frame.DIM}"
        self.counts.text = (
            f"<span style='{number}'>{int(chosen.sum())}</span> "
            f"<span style='{words}'>of {counted(len(chosen), 'class')}</span><br>"
            f"<span style='{number}'>{kept:,}</span> <span style='{words}'>of {total:,} "
            f"particles</span>"
        )
        numbers = ",".join(str(each + 1) for each in np.flatnonzero(self.chosen))
        choice = ["--classes", numbers]
        if self.trim:
            as_found = np.array_equal(self.chosen, self.set.automatic())
            choice = ["--auto"] if as_found else [*choice, "--trim", f"{TRIM:g}"]
        words_of = ["select2d", self.jobs.value, *choice]
        self.command.show(words_of if numbers else [])

    def _say(self, error: InputError) -> None:
        self.message.text = str(error)


def figures_table(found: ClassSet, number: int) -> str:
    """Write what the score of a class is made of as a table.

    Parameters
    ----------
    found : ClassSet
    number : int
        From 0.
    """
    head = ("", "class", "median", "penalty")
    lines = [
        (each.name, f"{each.value:.3g}", f"{each.usual:.3g}", f"{each.penalty:.1f}")
        for each in found.ranking(number)
    ]
    rows = []
    for line in (head, *lines):
        colour = frame.DROPPED if line is not head and float(line[3]) > 0 else frame.DIM
        cells = "".join(f"<td style='padding-right:14px;color:{colour}'>{c}</td>" for c in line)
        rows.append(f"<tr>{cells}</tr>")
    score = found.figures["score"][number]
    return f"class {number + 1}: score {score:.2f}<table>{''.join(rows)}</table>"


def page(project: Project, pool: ThreadPoolExecutor, document: Document) -> None:
    """Fill a document.

    Parameters
    ----------
    project : Project
    pool : ThreadPoolExecutor
        Shared by the pages of a server.
    document : bokeh.document.Document
    """
    frame.dress(document, "classes")
    document.add_root(ClassPage(project, document, pool).root)
