"""The page of a picking job: thresholds and clicks, over the micrographs they act on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.events import DoubleTap, Tap

from dspa.app import frame
from dspa.app.commands import Command
from dspa.app.later import Later, make_pool
from dspa.app.micrograph_view import Views, shown
from dspa.app.pick_clicks import ADDED, BY_HAND, CANDIDATE, REMOVED, History, Shown, click
from dspa.app.pick_set import DIAMETER, SCATTER, Cuts, PickSet, read_pick_set
from dspa.app.pick_widgets import Widgets
from dspa.stages.picks.edits import write_edits

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    from bokeh.document import Document

    from dspa.data.errors import InputError
    from dspa.project.project import Project

NOT_PICKED = ("inspect-picks", "curate")
BINS = 60


@dataclass
class Shelf:
    """What the pages of several tabs share: read micrographs, threads, edits not yet saved."""

    views: Views = field(default_factory=Views)
    pool: ThreadPoolExecutor = field(default_factory=make_pool)
    histories: dict[str, History] = field(default_factory=dict)

    def history(self, job: str) -> History:
        """Return the edits of a job.

        Parameters
        ----------
        job : str
        """
        return self.histories.setdefault(job, History())


class PickPage:
    """A micrograph with its picks; thresholds and clicks make a ``dspa inspect-picks`` command.

    Parameters
    ----------
    project : Project
    document : Document, optional
        Whose loop must not wait: what takes long is done in threads. Without one all is done at
        once.
    shelf : Shelf, optional
    """

    def __init__(
        self, project: Project, document: Document | None = None, shelf: Shelf | None = None
    ) -> None:
        self.project, self.document, self.shelf = project, document, shelf or Shelf()
        self.command = Command(project, document, label="Save", words=self.words)
        self.set: PickSet | None = None
        self.cuts: Cuts | None = None
        self.row = 0  # of the micrograph shown
        self._drawn: Any = None
        self.later = Later(document, self.shelf.pool)
        self.widgets = parts = Widgets()
        parts.connect(self.command.text, document)
        self.top = frame.head(project, "picks")
        self.root = parts.arrange(self.top, self.command)
        parts.jobs.on_change("value", lambda attr, old, new: self.open())
        parts.calibrate.on_change("active", lambda attr, old, new: self.recount())
        parts.number.on_change("value", lambda attr, old, new: self.turn(int(new or 1) - 1))
        parts.names.on_change("value", lambda attr, old, new: self.jump(new))
        parts.low_pass.on_change("value", lambda attr, old, new: self.look())
        parts.flat.on_change("active", lambda attr, old, new: self.look())
        parts.auto.on_click(self.automatic)
        parts.undo.on_click(self.undo)
        for event in (Tap, DoubleTap):  # the second of two quick clicks is a double tap
            parts.micrograph.on_event(event, self.tap)
        parts.undo.on_change("tags", lambda attr, old, new: self.undo())  # Ctrl+Z
        self.command.button.disabled = True
        self._list()

    def _list(self) -> None:
        jobs = frame.finished(self.project, output="picks")
        jobs = {name: each for name, each in jobs.items() if each.stage not in NOT_PICKED}
        options = [(name, f"{name} {record.stage}") for name, record in jobs.items()]
        self.widgets.jobs.options = options
        if not options:
            self.widgets.message.text = "no picking job is completed yet"
            return
        asked = frame.asked_job(self.project, self.document, jobs, self.top)
        self.widgets.jobs.value = asked or options[-1][0]

    def open(self) -> None:
        """Read the picks of the chosen job."""
        job = self.widgets.jobs.value
        calibrate = bool(self.widgets.calibrate.active)
        self.widgets.message.text = f"reading {job} …"
        self.command.button.disabled = True
        self.set = None

        def read() -> tuple[PickSet, Cuts]:
            found = read_pick_set(self.project, job)
            return found, found.cuts(calibrate=calibrate)

        self.later.do("open", read, then=self._opened, failed=self._say)

    def _opened(self, found: tuple[PickSet, Cuts]) -> None:
        self.set, cuts = found
        names = [name for name, _, _ in self.set.micrographs]
        self.widgets.names.completions = names
        self.widgets.number.high = len(names)
        self.widgets.total.text = f"of {len(names):,}"
        self.widgets.message.text = ""
        self._count(cuts)
        self.automatic()
        self._show_edits()
        self.command.button.disabled = self.command.running is not None
        self.row = -1
        if self.widgets.number.value == 1:
            self.turn(0)
        else:
            self.widgets.number.value = 1

    def recount(self) -> None:
        """Go over to calibrated scores, or to those measured; thresholds stay where they are."""
        if self.set is None:
            return
        wanted, calibrate = self.set, bool(self.widgets.calibrate.active)
        self.later.do("open", lambda: wanted.cuts(calibrate=calibrate),
                      then=self._recounted, failed=self._say)  # fmt: skip

    def _recounted(self, cuts: Cuts) -> None:
        before = self.limits()
        self._count(cuts)
        places = [int(np.argmin(np.abs(cuts.ncc - before[0])))]
        places += [int(np.argmin(np.abs(cuts.power - value))) for value in before[1:]]
        self._place(*places)
        self._show_edits()
        self._show_points()

    def _count(self, cuts: Cuts) -> None:
        """Send the browser what it counts with, and draw the distributions."""
        assert self.set is not None
        self.cuts = cuts
        data = self.widgets.data
        self.widgets.ncc.end = len(cuts.ncc) - 1
        self.widgets.power.end = len(cuts.power) - 1
        data.ncc_cuts.data = {"value": cuts.ncc}
        data.power_cuts.data = {"value": cuts.power}
        ncc, power = self.scores()
        data.totals.data = {"all": [len(ncc)]}
        data.table.data = {"below": cuts.below.ravel(), "upto": cuts.upto.ravel()}
        known = np.flatnonzero(np.isfinite(ncc) & np.isfinite(power))
        rng = np.random.default_rng(0)
        some = rng.choice(known, min(SCATTER, known.size), replace=False)
        data.cloud.data = {
            "ncc": ncc[some],
            "power": power[some],
            "colour": ["#7d858f"] * some.size,
        }
        data.ncc_bars.data = _bars(ncc[known], np.linspace(cuts.ncc[0], cuts.ncc[-1], BINS))
        limits = cuts.power[cuts.power > 0]
        data.power_bars.data = _bars(power[known], np.geomspace(limits[0], limits[-1], BINS))
        self._axes(limits)

    def _axes(self, power: Any) -> None:
        """Fit the axes of scatter and histograms to the scores."""
        assert self.cuts is not None and self.set is not None
        ncc, parts = self.cuts.ncc, self.widgets
        rim = 0.02 * (ncc[-1] - ncc[0])
        parts.ncc_range.update(start=ncc[0] - rim, end=ncc[-1] + rim)
        parts.power_range.update(start=power[0] / 1.08, end=power[-1] * 1.08)
        decades = np.arange(np.floor(np.log10(power[0])), np.ceil(np.log10(power[-1])) + 1)
        parts.ticks.ticks = [float(m * 10**d) for d in decades for m in (1, 2, 5)]
        shape = "model score (0.5: even odds)" if "model_score" in self.set.picks else "NCC"
        parts.ncc.title = f"lowest {shape}"
        parts.scatter.xaxis.axis_label = parts.ncc_plot.xaxis.axis_label = shape

    def scores(self) -> Any:
        """NCC and power of all candidates as thresholds see them."""
        assert self.set is not None
        return self.set.scores(calibrate=bool(self.widgets.calibrate.active))

    def automatic(self) -> None:
        """Set the thresholds to those of ``--auto``."""
        if self.cuts is not None:
            self._place(*self.cuts.places)

    def _place(self, ncc: int, low: int, high: int) -> None:
        self.widgets.ncc.value = ncc
        self.widgets.power.value = (low, high)

    def limits(self) -> tuple[float, float, float]:
        """Return lowest NCC, lowest and highest power."""
        assert self.cuts is not None
        low, high = (round(place) for place in self.widgets.power.value)
        last = len(self.cuts.power) - 1
        ncc = self.cuts.ncc[min(round(self.widgets.ncc.value), len(self.cuts.ncc) - 1)]
        return float(ncc), float(self.cuts.power[min(low, last)]), float(
            self.cuts.power[min(high, last)])  # fmt: skip

    def jump(self, name: str) -> None:
        """Go to a micrograph by its name."""
        if self.set is None:
            return
        for number, (each, _, _) in enumerate(self.set.micrographs):
            if each == name:
                self.widgets.number.value = number + 1

    def turn(self, row: int) -> None:
        """Show a micrograph.

        Parameters
        ----------
        row : int
        """
        if self.set is None or not 0 <= row < len(self.set.micrographs) or row == self.row:
            return
        self.row = row
        self.widgets.names.value = self.set.micrographs[row][0]
        self.look()

    def look(self) -> None:
        """Filter and show the micrograph; its picks come with it."""
        if self.set is None or self.row < 0:
            return
        wanted, row = self.set, self.row
        _, path, pixel_size = wanted.micrographs[row]
        resolution, flat = float(self.widgets.low_pass.value), bool(self.widgets.flat.active)
        views = self.shelf.views

        def draw() -> tuple[Any, Any, Any]:
            """Read a micrograph and its junk, and filter it for the screen: in a thread."""
            small = views.ask(path, turned=wanted.turned[row]).result()
            junk = wanted.junk(row)
            return (
                small,
                junk,
                shown(small, pixel_size=pixel_size, resolution=resolution, flat=flat),
            )

        def done(found: tuple[Any, Any, Any]) -> None:
            """Put the picture on the page."""
            small, junk, image = found
            height, width = (n * small.step * pixel_size for n in image.shape)
            self.widgets.data.image.data = {
                "image": [image], "w": [width], "h": [height],
                "row": [f"{self.widgets.jobs.value} {row}"],
            }  # fmt: skip
            if self._drawn != (wanted, row):
                self._drawn = wanted, row
                self._show_junk(junk, (width, height))
                self._show_points()
            self.widgets.message.text = ""
            for near in (row + 1, row - 1):
                if 0 <= near < len(wanted.micrographs):
                    views.ask(wanted.micrographs[near][1], turned=wanted.turned[near])

        self.later.do("look", draw, then=done, failed=self._unseen)

    def _show_junk(self, junk: Any, size: tuple[float, float]) -> None:
        masks = [] if junk is None else [junk]
        ends = {"w": [size[0]] * len(masks), "h": [size[1]] * len(masks)}
        self.widgets.data.junk.data = {"image": masks, **ends}
        self.widgets.mask.disabled = junk is None

    def _unseen(self, error: InputError) -> None:
        """Show the picks of a micrograph that cannot be read, on nothing."""
        self.widgets.data.image.data = {"image": [], "w": [], "h": [], "row": []}
        self.widgets.message.text = str(error)
        self._show_points()

    def here(self) -> tuple[Shown, dict[str, Any]]:
        """Return the picks of the micrograph shown, and what is drawn of them."""
        assert self.set is not None
        name = self.set.micrographs[self.row][0]
        edits = self.shelf.history(self.widgets.jobs.value).now
        rows = self.set.of_micrograph(self.row)
        added = np.array([place for each, *place in edits.added if each == name]).reshape(-1, 2)
        uid = self.set.uid[rows]
        state = np.full(len(uid) + len(added), CANDIDATE)
        state[: len(uid)][np.isin(uid, np.array(sorted(edits.kept), np.uint64))] = BY_HAND
        state[: len(uid)][np.isin(uid, np.array(sorted(edits.removed), np.uint64))] = REMOVED
        state[len(uid) :] = ADDED
        diameter = self.set.diameter[rows]
        usual = float(np.median(diameter)) if len(rows) else DIAMETER
        blank = np.full(len(added), np.nan)
        ncc, power = (np.append(score[rows], blank) for score in self.scores())
        at = np.vstack([self.set.coordinate[rows], added])
        least, low, high = self.limits()
        passes = (ncc >= least) & (power >= low) & (power <= high)
        radius = np.append(diameter, np.full(len(added), usual)) / 2
        drawn = {"x": at[:, 0], "y": at[:, 1], "radius": radius, "ncc": ncc, "power": power,
                 "state": state.astype(np.int32), "colour": [frame.DROPPED] * len(state),
                 "alpha": np.zeros(len(state))}  # fmt: skip
        return Shown(name, uid, at[:, 0], at[:, 1], radius, state, passes), drawn

    def _show_points(self) -> None:
        if self.set is not None and self.row >= 0:
            self.widgets.data.points.data = self.here()[1]

    def _show_edits(self) -> None:
        """Send the scores of what was changed by hand: they correct the counts of the whole set."""
        assert self.set is not None
        history = self.shelf.history(self.widgets.jobs.value)
        edits = history.now
        uid = np.array([*edits.kept, *edits.removed], np.uint64)
        rows = self.set.rows(uid)
        blank = np.full(len(edits.added), np.nan)
        ncc, power = (np.append(score[rows], blank) for score in self.scores())
        state = np.repeat([BY_HAND, REMOVED, ADDED],
                          [len(edits.kept), len(edits.removed), len(edits.added)])  # fmt: skip
        data = {"state": state.astype(np.int32), "ncc": ncc, "power": power}
        self.widgets.data.edits.data = data
        self.widgets.undo.disabled = not history.before

    def tap(self, event: Any) -> None:
        """Add, keep or remove a pick where the user clicked, if that is what clicks do now."""
        if self.set is None or self.row < 0 or self.widgets.tool.active != 1:
            return
        history = self.shelf.history(self.widgets.jobs.value)
        image = self.widgets.data.image.data
        inside = len(image["w"]) and 0 <= event.x <= image["w"][0] and 0 <= event.y <= image["h"][0]
        if not inside:
            return
        history.change(click(history.now, self.here()[0], float(event.x), float(event.y)))
        self._show_edits()
        self._show_points()

    def undo(self) -> None:
        """Take the last click back."""
        if self.set is not None and self.shelf.history(self.widgets.jobs.value).undo():
            self._show_edits()
            self._show_points()

    def words(self) -> list[str]:
        """Return the command that saves what the page shows; edits go to a file."""
        if self.set is None:
            return []
        ncc, low, high = (f"{value:.10g}" for value in self.limits())
        job = self.widgets.jobs.value
        words = ["inspect-picks", job, "--min-ncc", ncc, "--power", low, high]
        if not self.widgets.calibrate.active:
            words.append("--no-calibrate")
        edits = self.shelf.history(job).now
        if edits:
            words += ["--edits", str(write_edits(edits, self._given(job)))]
        return words

    def _given(self, job: str) -> Path:
        folder = self.project.folder / "given"
        folder.mkdir(exist_ok=True)
        number = 1
        while (path := folder / f"edits-{job}-{number}.json").exists():
            number += 1
        return path

    def _say(self, error: InputError) -> None:
        self.widgets.message.text = str(error)


def _bars(values: Any, edges: Any) -> dict[str, Any]:
    counts, edges = np.histogram(values, edges)
    return {"left": edges[:-1], "right": edges[1:], "top": counts.astype(float)}


def page(project: Project, shelf: Shelf, document: Document) -> None:
    """Fill a document.

    Parameters
    ----------
    project : Project
    shelf : Shelf
        Shared by the pages of a server.
    document : bokeh.document.Document
    """
    frame.dress(document, "picks")
    document.add_root(PickPage(project, document, shelf).root)
