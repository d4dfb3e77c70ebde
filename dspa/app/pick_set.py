"""The candidates of a picking job in the form the page needs: counts for any thresholds at once.

A slider has a few hundred places, so the number of candidates that pass is counted beforehand for
every pair of places. The browser gets that table, a few hundred kilobytes whether there are a
thousand candidates or ten million, and looks numbers up while the mouse moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io.micrographs import read_micrographs, rows_turned
from dspa.io.particles import read_particles
from dspa.project.lineage import resolve
from dspa.stages.picks.inspect import scores, suggested
from dspa.stages.picks.junk_masks import read_junk
from dspa.stages.stage import Input, Stage

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.ops.picks.thresholds import Thresholds
    from dspa.project.project import Project

    Floats = NDArray[np.float64]

DIAMETER = 160.0  # A, where the picks do not say
NCC_STEP, POWER_STEPS = 0.005, 300
SCATTER = 4_000
# Places on a slider at most: scores of other programs may have any range.
PLACES = 400
# What the page asks of a job: its picks, and the micrographs of the jobs it came from.
WANTED = Stage(
    "inspect-picks", "", object, (Input("picks", "picks"), Input("micrographs", "micrographs")),
    lambda context, inputs, params: {},
)  # fmt: skip


@dataclass(frozen=True)
class Cuts:
    """Places of the sliders, and how many candidates pass at each pair of them.

    Attributes
    ----------
    ncc : (i,) float64
        Lowest NCC that passes.
    power : (j,) float64
        Limits of the power.
    below, upto : (i, j) int32
        Candidates of at least ``ncc[i]`` whose power is below, or at most, ``power[j]``.
    start : Thresholds
        What ``--auto`` takes; its values are among the places.
    """

    ncc: Floats
    power: Floats
    below: NDArray[np.int32]
    upto: NDArray[np.int32]
    start: Thresholds

    def count(self, ncc: int, low: int, high: int) -> int:
        """Return how many candidates pass, by places of the sliders."""
        return int(self.upto[ncc, high] - self.below[ncc, low])

    @property
    def places(self) -> tuple[int, int, int]:
        """Places of the automatic thresholds: NCC, lowest and highest power."""
        return (
            _nearest(self.ncc, self.start.ncc),
            _nearest(self.power, self.start.power_low),
            _nearest(self.power, self.start.power_high),
        )


@dataclass(frozen=True)
class PickSet:
    """The candidates of a job and the micrographs they lie on.

    Attributes
    ----------
    picks : Dataset
    micrographs : tuple of (name, path, pixel size)
        Of the whole job, A.
    turned : tuple of bool
        Whose rows are turned over on reading.
    folder : Path
        Of the picking job.
    """

    picks: xr.Dataset
    micrographs: tuple[tuple[str, str, float], ...]
    turned: tuple[bool, ...]
    folder: Path

    @cached_property
    def _order(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        row = self.picks["micrograph"].values
        table = [str(name) for name in self.picks["micrograph_name"].values]
        row_of = {name: number for number, (name, _, _) in enumerate(self.micrographs)}
        to_row = np.array([row_of.get(name, -1) for name in table] or [-1])
        number = np.where(row >= 0, to_row[row], -1)
        order = np.argsort(number, kind="stable")
        return order, np.searchsorted(number[order], np.arange(len(self.micrographs) + 1))

    def of_micrograph(self, number: int) -> NDArray[np.int64]:
        """Return the rows of the candidates on a micrograph.

        Parameters
        ----------
        number : int
            Into ``micrographs``.
        """
        order, first = self._order
        return order[first[number] : first[number + 1]]

    @cached_property
    def uid(self) -> NDArray[np.uint64]:
        """Identities, (n,)."""
        return np.asarray(self.picks["uid"].values)

    def junk(self, number: int) -> NDArray[np.uint8] | None:
        """Return where the picker saw junk: (v, u), 0 or 1; None if it kept no mask.

        Parameters
        ----------
        number : int
        """
        mask = read_junk(self.folder, number)
        return None if mask is None else mask.astype(np.uint8)

    @cached_property
    def _by_uid(self) -> NDArray[np.int64]:
        return np.argsort(self.uid, kind="stable")

    def rows(self, uid: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the rows of some candidates.

        Parameters
        ----------
        uid : (k,) uint64
            All among the candidates.
        """
        return self._by_uid[np.searchsorted(self.uid, uid, sorter=self._by_uid)]

    @cached_property
    def coordinate(self) -> Floats:
        """Places, (n, 2) in A."""
        return np.asarray(self.picks["coordinate"].values, np.float64)

    @cached_property
    def diameter(self) -> Floats:
        """Diameters, (n,) in A."""
        if "pick_diameter" not in self.picks:
            return np.full(len(self.uid), DIAMETER)
        given = np.asarray(self.picks["pick_diameter"].values, np.float64)
        return np.where(given > 0, given, DIAMETER)

    @lru_cache(maxsize=2)  # noqa: B019
    def scores(self, *, calibrate: bool) -> tuple[Floats, Floats]:
        """Return NCC and power as thresholds see them.

        Parameters
        ----------
        calibrate : bool
            Relative to the defocus trend, or as measured.
        """
        return scores(self.picks, calibrate=calibrate)

    @lru_cache(maxsize=2)  # noqa: B019
    def cuts(self, *, calibrate: bool) -> Cuts:
        """Return the places of the sliders and their counts.

        Parameters
        ----------
        calibrate : bool
            As for `scores`.
        """
        ncc, power = self.scores(calibrate=calibrate)
        # Asked for here, in a thread, so that no click waits for it.
        self.of_micrograph(0)
        self.rows(self.uid[:1])
        return make_cuts(ncc, power, suggested(self.picks, calibrate=calibrate))

    def __hash__(self) -> int:
        """Hash by identity: two readings of a job are two sets."""
        return id(self)


def make_cuts(ncc: Floats, power: Floats, start: Thresholds) -> Cuts:
    """Choose places for the sliders and count what passes at each.

    Parameters
    ----------
    ncc, power : (n,)
        NaN never passes.
    start : Thresholds
    """
    known = np.isfinite(ncc) & np.isfinite(power)
    ncc, power = ncc[known], power[known]
    ncc_cuts = _steps(ncc, start.ncc)
    power_cuts = _powers(power, (start.power_low, start.power_high))
    size = (len(ncc_cuts), len(power_cuts))
    passes = np.searchsorted(ncc_cuts, ncc, side="right") - 1  # highest place it passes
    counted = []
    for side in ("right", "left"):
        place = np.searchsorted(power_cuts, power, side=side)
        inside = (passes >= 0) & (place < size[1])
        table = np.bincount(passes[inside] * size[1] + place[inside], minlength=size[0] * size[1])
        table = table.reshape(size)[::-1].cumsum(axis=0)[::-1].cumsum(axis=1)
        counted.append(table.astype(np.int32))
    return Cuts(ncc_cuts, power_cuts, counted[0], counted[1], start)


def _steps(values: Floats, chosen: float) -> Floats:
    """Places of the NCC slider, three decimals: below all values up to the largest."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    step = max(NCC_STEP, round((high - low) / PLACES, 3))
    count = math.floor((high - low) / step) + 2
    places = math.floor(low / step) * step + step * np.arange(count)
    return np.unique(np.round(np.append(places, chosen), 3))


def _powers(values: Floats, chosen: tuple[float, float]) -> Floats:
    """Places of the power slider, four digits: even in the logarithm, from below to above all."""
    positive = values[values > 0]
    low, high = (positive.min(), positive.max()) if positive.size else (1.0, 10.0)
    places = np.geomspace(low, max(high, low * 1.01), POWER_STEPS)
    digits = 3 - math.floor(math.log10(low)), 3 - math.floor(math.log10(high))
    least = math.floor(low * 10.0 ** digits[0]) / 10.0 ** digits[0]
    most = math.ceil(high * 10.0 ** digits[1]) / 10.0 ** digits[1]
    inner = [value for value in (*places[1:-1], *chosen) if least < value < most]
    first = [0.0] if values.size and values.min() <= 0 else []
    return np.unique([*first, *(float(f"{value:.4g}") for value in (least, *inner, most))])


def _nearest(places: Floats, value: float) -> int:
    if not math.isfinite(value):
        return len(places) - 1 if value > 0 else 0
    return int(np.argmin(np.abs(places - value)))


def read_pick_set(project: Project, job: str) -> PickSet:
    """Read the candidates of a job, and where the micrographs are.

    Parameters
    ----------
    project : Project
    job : str
        ``J3``.
    """
    given = resolve(project, WANTED, [job], {})
    return _read(_path(given["picks"]), _path(given["micrographs"]))


def _path(given: Any) -> Path:
    return given.path


@lru_cache(maxsize=3)
def _read(picks: Path, micrographs: Path) -> PickSet:
    """Read once: pages of several tabs, and a page opened again, share what was read."""
    found = read_particles(picks)
    if not found.sizes["particle"]:
        raise InputError(f"{picks}: there are no candidates to look at")
    table = read_micrographs(micrographs)
    pixel_size = table["pixel_size"].values[np.maximum(table["optics"].values, 0)]
    rows = zip(table["micrograph_name"].values, table["path"].values, pixel_size, strict=True)
    named = tuple((str(name), str(path), float(size)) for name, path, size in rows)
    return PickSet(found, named, tuple(rows_turned(table).tolist()), picks.parent)
