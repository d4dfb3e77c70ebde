"""Choose among candidates by shape (NCC) and density (power): given thresholds, or found ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError, NothingLeft
from dspa.io.micrographs import read_micrographs
from dspa.io.particles import read_particles
from dspa.io.picture import histogram, scatter
from dspa.ops.picks.model_threshold import model_threshold
from dspa.ops.picks.thresholds import Thresholds, automatic_thresholds
from dspa.stages.exposures.tasks import contained, micrograph_tasks
from dspa.stages.picks.edits import (
    FILE,
    Edits,
    added_picks,
    apply_edits,
    read_edits,
    with_added,
    write_edits,
)
from dspa.stages.picks.junk_masks import read_junk
from dspa.stages.picks.tables import SCATTER_POINTS, micrograph_picture, write_picks
from dspa.stages.stage import Context, Input, Stage, check, param

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

# Micrographs drawn in the report.
SHOWN = 3
EDITS_HELP = "Picks added, kept, removed by hand: a JSON file, or a job that had some"


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa inspect-picks``."""

    min_ncc: float | None = param(None, "Lowest NCC kept.", minimum=-1, maximum=1)
    power: tuple[float, float] | None = param(
        None, "Lowest and highest power kept.", minimum=-1e09, maximum=1e09
    )
    auto: bool = param(False, "Find the thresholds that are not given from the scores.")
    calibrate: bool = param(True, "Use the scores relative to the defocus trend.")
    min_diameter: float | None = param(
        None, "Smallest diameter of a pick kept.", unit="A", minimum=0, maximum=5000
    )
    max_diameter: float | None = param(
        None, "Largest diameter of a pick kept.", unit="A", minimum=0, maximum=5000
    )

    def together(self) -> None:
        """Refuse limits in the wrong order."""
        if self.power is not None and self.power[0] > self.power[1]:
            low, high = self.power
            raise InputError(f"--power {low:g} {high:g}: the first must be the lower one")


def scores(
    picks: xr.Dataset, *, calibrate: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return NCC and power as they are compared with the thresholds.

    Parameters
    ----------
    picks : Dataset
    calibrate : bool
        Whether relative to the defocus trend, where the picks have that.
    """
    suffix = "_relative" if calibrate else ""
    for name in ("ncc", "power"):
        if name not in picks:
            raise InputError(f"the picks have no {name} score; they come from another program")

    def column(name: str) -> NDArray[np.float64]:
        chosen = name + suffix if name + suffix in picks else name
        return np.asarray(picks[chosen].values, np.float64)

    return column("ncc"), column("power")


def suggested(picks: xr.Dataset, *, calibrate: bool) -> Thresholds:
    """Return the thresholds that ``--auto`` takes.

    Candidates on micrographs without a CTF are not asked: they were searched in another way, or
    the micrograph is bad.

    Parameters
    ----------
    picks : Dataset
    calibrate : bool
        As for `scores`.
    """
    ncc, power = scores(picks, calibrate=calibrate)
    if "model_score" in picks:
        # A model has weighed shape and density; what it scored decides alone.
        keep = picks["model_score"].values >= model_threshold(picks["model_score"].values)
        return _typed(Thresholds(float(ncc[keep].min(initial=1.0)), 0.0, math.inf))
    usual = np.ones(ncc.size, bool)
    if "defocus_u" in picks and np.isfinite(picks["defocus_u"].values).any():
        usual = np.isfinite(picks["defocus_u"].values)
    return _typed(automatic_thresholds(ncc[usual], power[usual]))


def _typed(limits: Thresholds) -> Thresholds:
    """Round thresholds outwards to digits that can be typed: what is printed gives the same."""
    powers = []
    for value, whole in ((limits.power_low, math.floor), (limits.power_high, math.ceil)):
        if 0 < value < math.inf:
            unit = 10.0 ** (math.floor(math.log10(value)) - 3)
            value = float(f"{whole(value / unit) * unit:.4g}")
        powers.append(value)
    return Thresholds(math.floor(limits.ncc * 1000) / 1000, *powers)


def _thresholds(picks: xr.Dataset, params: Params) -> Thresholds:
    """Given thresholds; what is missing is found if ``auto``, else open."""
    found = Thresholds(-1.0, 0.0, math.inf)
    if params.auto:
        found = suggested(picks, calibrate=params.calibrate)
    low, high = params.power or (found.power_low, found.power_high)
    return Thresholds(found.ncc if params.min_ncc is None else params.min_ncc, low, high)


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> Mapping[str, Path]:
    """Apply the thresholds and show what they do."""
    check(params)
    picks = read_particles(inputs["picks"])
    chosen_by = (params.min_ncc, params.power, params.min_diameter, params.max_diameter)
    if not params.auto and all(value is None for value in chosen_by):
        raise InputError("give --min-ncc and --power LOW HIGH, or --auto")
    ncc, power = scores(picks, calibrate=params.calibrate)
    if not ncc.size:
        raise NothingLeft(f"{inputs['picks']}: there are no candidates to choose from")
    limits = _thresholds(picks, params)
    keep = limits.keeps(ncc, power)
    if "pick_diameter" in picks:
        diameter = picks["pick_diameter"].values
        keep &= diameter >= (params.min_diameter or 0.0)
        keep &= diameter <= (params.max_diameter or math.inf)
    micrographs = read_micrographs(inputs["micrographs"]) if inputs.get("micrographs") else None
    edits = read_edits(inputs["edits"]) if inputs.get("edits") else Edits()
    keep, added = apply_edits(edits, picks, keep), added_picks(edits, picks, micrographs)
    if not keep.any() and not edits.added:
        raise NothingLeft(
            f"no candidate of {keep.size} passes: NCC {ncc.min():.2f} to {ncc.max():.2f}, power "
            f"{power.min():.0f} to {power.max():.0f}; choose thresholds within these"
        )
    chosen = with_added(picks.isel(particle=np.flatnonzero(keep)), added)
    outputs = write_picks(context.folder, chosen)
    if edits:
        outputs["edits"] = write_edits(edits, context.folder / FILE)
    shape = "model score" if "model_score" in picks else "NCC"
    _show_scores(context, (ncc, power), keep, limits=limits, shape=shape)
    if micrographs is not None:
        _show_micrographs(context, micrographs, picks, keep, picker=inputs["picks"].parent)
    by_hand = f"; by hand {edits}" if edits else ""
    context.events.message(
        f"{int(keep.sum())} of {counted(keep.size, 'candidate')} kept: {limits.words()}{by_hand}"
    )
    figures = {"kept": int(chosen.sizes["particle"]), "candidates": int(keep.size)}
    context.events.emit("result", **figures)
    return outputs


def _show_scores(
    context: Context,
    scores: tuple[NDArray[np.float64], NDArray[np.float64]],
    keep: NDArray[np.bool_],
    *,
    limits: Thresholds,
    shape: str,
) -> None:
    ncc, power = scores
    step = max(1, ncc.size // SCATTER_POINTS)
    energy = np.maximum(power, 1e-3)
    lines = [p for p in (limits.power_low, limits.power_high) if 0 < p < math.inf]
    context.events.picture(
        "ncc_power",
        scatter(
            ncc[::step],
            energy[::step],
            colour=keep[::step],
            xlabel=shape,
            ylabel="power",
            vertical=[limits.ncc],
            horizontal=lines,
            logarithmic=True,
        ),
        title=f"{shape} against power, and what is kept",
    )
    context.events.picture(
        "ncc",
        histogram({"dropped": ncc[~keep], "kept": ncc[keep]}, xlabel=shape,
                  thresholds=[limits.ncc]),
        title=shape,
    )  # fmt: skip
    context.events.picture(
        "power",
        histogram({"dropped": energy[~keep], "kept": energy[keep]}, xlabel="power",
                  thresholds=lines, logarithmic=True),
        title="power",
    )  # fmt: skip


def _show_micrographs(
    context: Context,
    micrographs: xr.Dataset,
    picks: xr.Dataset,
    keep: NDArray[np.bool_],
    *,
    picker: Path,
) -> None:
    """Draw kept and dropped candidates on a few micrographs, and what the picker took as junk."""
    rows = np.asarray(picks["micrograph"].values)
    present = np.unique(rows)
    names = np.asarray(picks["micrograph_name"].values)
    tasks = {task.name: task for task in micrograph_tasks(micrographs)}
    diameter = 100.0
    if "pick_diameter" in picks:
        diameter = float(np.median(picks["pick_diameter"].values))
    spread = np.unique(np.round(np.linspace(0, present.size - 1, min(SHOWN, present.size))))
    for row in present[spread.astype(int)]:
        task = tasks.get(str(names[row]))
        if task is None:
            continue
        mine = rows == row
        coordinate = picks["coordinate"].values
        groups = {
            "kept": (coordinate[mine & keep], "#00e08a"),
            "dropped": (coordinate[mine & ~keep], "#b06050"),
        }
        junk = read_junk(picker, int(row))
        draw = partial(micrograph_picture, task, groups, diameter=diameter, junk=junk)
        png = contained(draw)
        if isinstance(png, bytes):
            context.events.picture(f"micrograph_{row:05d}", png, title=str(names[row]))


STAGE = Stage(
    name="inspect-picks",
    summary="choose picks by NCC and power",
    params=Params,
    inputs=(
        Input("picks", "picks"),
        Input("micrographs", "micrographs", optional=True),
        Input("edits", "edits", positional=False, optional=True, help=EDITS_HELP),
    ),
    run=run,
    grows=True,
)
