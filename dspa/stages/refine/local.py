"""Local resolution of half maps, and the map that is filtered to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io import mrc, picture
from dspa.io.coloured import coloured_slices
from dspa.io.rendering import volume_rendering
from dspa.io.volumes import Volume, write_volume
from dspa.ops.maps.local import (
    BY_CHANCE,
    IN_ALL,
    WAVES,
    Bands,
    filter_locally,
    measure_local,
    plan_bands,
    resolved_on_voxels,
)
from dspa.ops.maps.postprocess import FIT_FROM, sharpen_map
from dspa.ops.maps.resolution import THRESHOLD
from dspa.ops.maps.sharpen import apply_bfactor
from dspa.stages.particles.lead import BASE
from dspa.stages.refine.half_maps import symmetry_beside, tell
from dspa.stages.refine.output import draw_fsc, write_fsc
from dspa.stages.refine.postprocess import (
    SYMMETRY_HELP,
    given_maps,
    measure_halves,
    no_figure,
    read_halves,
    read_pair,
    refuse_dark,
    table_beside,
)
from dspa.stages.stage import Context, Input, Stage, check, check_symmetry, param

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.dataflow.events import Events
    from dspa.ops.maps.resolution import Resolution

UNMEASURED = 100.0  # A: what colours a surface by this map paints such voxels as the worst
WIDE = 6.0  # global resolutions across the window
NARROWEST, WIDEST = 40.0, 200.0  # A, of the window that is chosen
ACROSS = 1.5  # windows at half height across all that a window holds
FINER = 8.0  # steps across the window
COARSEST_STEP = 3.0  # of them at least
VOLUMES = 24  # of float32, at the worst moment: judging the half maps in double precision
UNEVEN = 1.3  # between the quartiles
EMPTY = 0.1  # of the mask without resolution


@dataclass(frozen=True)
class LocalResolutionParams:
    """Parameters of `dspa local-resolution`."""

    threshold: float = param(THRESHOLD, "FSC that counts as resolved", minimum=0.1, maximum=0.9)
    window: float = param(
        0.0, "width of the soft window at half height; 0: 6 times the resolution of the whole, "
        "at least 40",
        unit="A", minimum=0.0, maximum=500.0,
    )  # fmt: skip
    step: float = param(
        0.0, "distance of the places at which windows lie; 0: an eighth of the window",
        unit="A", minimum=0.0, maximum=100.0,
    )  # fmt: skip
    symmetry: str = param("", f"{SYMMETRY_HELP}; windows at its axes hold copies")
    bfactor: float | None = param(
        None, "B-factor to apply to the filtered map, negative sharpens, 0 none; fitted if left "
        "out",
        unit="A^2", minimum=-1000.0, maximum=1000.0,
    )  # fmt: skip
    fit_from: float = param(
        FIT_FROM, "coarse end of the B-factor fit", unit="A", minimum=4.0, maximum=50.0
    )

    def together(self) -> None:
        """Refuse a group that is none, and steps that miss what a window sees."""
        if self.symmetry:
            check_symmetry(self.symmetry)
        if 0.0 < self.window < COARSEST_STEP * self.step:
            raise InputError(
                f"--step {self.step:g} is too coarse for --window {self.window:g}; use at most "
                f"{self.window / COARSEST_STEP:.3g} A"
            )


@dataclass(frozen=True, eq=False)
class _Found:
    """Frequency of each voxel, 0 for none; figures of those in the mask; what the pixel allows."""

    frequency: NDArray[np.float32]
    quartiles: tuple[float, ...]
    none: float
    inside: NDArray[np.float32]
    finest: float


def admit(inputs: Mapping[str, Any], params: LocalResolutionParams) -> tuple[Volume, Volume]:
    """Read the half maps, and refuse windows that do not fit into them.

    Parameters
    ----------
    inputs : mapping
    params : LocalResolutionParams
    """
    maps = given_maps(inputs)
    if len(maps) > 2:
        raise InputError(f"{len(maps)} maps; give a job with half maps, or two half maps")
    first, second = read_halves(maps[0]) if len(maps) == 1 else read_pair(*maps)
    extent = first.density.shape[0] * first.pixel_size
    if params.window > extent / ACROSS:
        raise InputError(
            f"--window {params.window:g} is too wide for a box of {extent:.0f} A; use at most "
            f"{extent / ACROSS:.0f} A"
        )
    if 0.0 < params.window < 2.0 * WAVES * first.pixel_size:
        raise InputError(
            f"--window {params.window:g} does not hold two wavelengths of any frequency of "
            f"{maps[0]}; use at least {4.0 * WAVES * first.pixel_size:.0f} A"
        )
    return first, second


def plan(inputs: Mapping[str, Any], params: LocalResolutionParams) -> Mapping[str, Any]:
    """Say box, window and bands as far as they are known."""
    first, _ = admit(inputs, params)
    box, pixel_size = first.density.shape[0], first.pixel_size
    window = params.window or min(NARROWEST, box * pixel_size / ACROSS)
    bands = _bands(box, pixel_size, window, place=(box * pixel_size) ** 3)
    known = "" if params.window else f", wider if the map is coarser than {window / WIDE:.1f} A"
    return {
        "box": box,
        "window": f"{window:.0f} A{known}",
        "bands": bands.frequency.size if params.window else f"at most {bands.frequency.size}",
    }


def lead(inputs: Mapping[str, Any], _params: LocalResolutionParams) -> int:
    """Return the bytes that the job needs, from the header of a map."""
    first = given_maps(inputs)[0]
    return BASE + VOLUMES * 4 * max(mrc.read_header(first).shape) ** 3


def run(
    context: Context, inputs: Mapping[str, Any], params: LocalResolutionParams
) -> dict[str, Path]:
    """Measure the resolution about each voxel, and filter the map to it.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``volume``: a map whose folder holds ``half1.mrc`` and ``half2.mrc``, or two half maps;
        ``mask``: optional.
    params : LocalResolutionParams

    Returns
    -------
    outputs : dict of name to path
        Without ``volume`` and ``local_resolution`` where the half maps have no resolution.
    """
    check(params)
    first, second = admit(inputs, params)
    maps, events = given_maps(inputs), context.events
    refuse_dark(maps[0], first, second, events)
    pixel_size, box = first.pixel_size, first.density.shape[0]
    both = 0.5 * (first.density + second.density)
    measured = measure_halves(context, inputs, (first, second))
    params = replace(params, symmetry=symmetry_beside(params.symmetry, table_beside(maps)))
    reason = no_figure(context, maps, (first, second), measured, symmetry=params.symmetry)
    extent, shells = box * pixel_size, (box - 1) // 2
    resolution = extent / max(min(measured.shell, float(shells)), 1e-3)
    outputs = {name: context.folder / f"{name}.mrc" for name in ("mask", "local_resolution")}
    outputs |= {"fsc": context.folder / "fsc.star"}
    outputs |= {"volume": context.folder / "volume_filtered.mrc"}
    write_volume(outputs["mask"], measured.mask, pixel_size=pixel_size, origin=first.origin)
    write_fsc(
        outputs["fsc"], measured.curves, extent=extent, shells=shells, resolution=resolution,
        reason=reason,
    )  # fmt: skip
    tell(events, reason)
    draw_fsc(events, measured.curves, extent=extent, shells=shells)
    if reason:
        events.emit("result", resolution=None, reason=reason)
        return {name: outputs[name] for name in ("mask", "fsc")}
    found, bands = _measure(events, (first, second), measured, resolution, params)
    values = np.full_like(found.frequency, UNMEASURED)
    np.divide(1.0, found.frequency, out=values, where=found.frequency > 0.0)
    write_volume(outputs["local_resolution"], values, pixel_size=pixel_size, origin=first.origin)
    made = _filtered(events, both, pixel_size, found, measured, bands=bands, params=params)
    write_volume(outputs["volume"], made, pixel_size=pixel_size, origin=first.origin)
    _show(events, made, values, found, pixel_size=pixel_size)
    _say(events, found, resolution, params.threshold)
    return outputs


def _measure(
    events: Events,
    halves: tuple[Volume, Volume],
    measured: Resolution,
    resolution: float,
    params: LocalResolutionParams,
) -> tuple[_Found, Bands]:
    """Measure in the mask; the quartiles are of where it is 0.5 and above."""
    first, second = halves
    box, pixel_size = first.density.shape[0], first.pixel_size
    widest = min(WIDEST, box * pixel_size / ACROSS)
    window = params.window or float(np.clip(WIDE * resolution, min(NARROWEST, widest), widest))
    step = params.step or window / FINER
    if step > window / COARSEST_STEP:
        raise InputError(
            f"--step {step:g} is too coarse for the window of {window:.0f} A; use at most "
            f"{window / COARSEST_STEP:.3g} A"
        )
    place = float(np.count_nonzero(measured.mask)) * pixel_size**3
    bands = _bands(box, pixel_size, window, place=place)
    events.message(
        f"a window of {window:.1f} A (at half height), every {step:.1f} A; {bands.frequency.size} "
        f"bands {bands.width:.4f} 1/A wide, the coarsest at {window / WAVES:.1f} A: a window "
        f"narrower than {WAVES:g} wavelengths tells nothing of them"
    )
    events.message(
        f"what noise gives: a correlation of {bands.needed[0]:.2f} in the coarsest and "
        f"{bands.needed[-1]:.2f} in the finest band in 1 of {1.0 / BY_CHANCE:.0f} windows, in "
        f"{bands.coefficients[0]:.0f} and {bands.coefficients[-1]:.0f} independent coefficients; "
        f"more is asked for, and of all bands of a voxel together what noise gives nowhere in "
        f"{1.0 - IN_ALL:.0%} of maps"
    )

    def told(done: int, total: int) -> None:
        events.emit("progress", task="bands", done=done, total=total)

    local = measure_local(
        first.density, second.density, bands, pixel_size=pixel_size, step=step,
        threshold=params.threshold, symmetry=params.symmetry, progress=told,
    )  # fmt: skip
    frequency = resolved_on_voxels(local, box)
    frequency[measured.mask <= 0.0] = 0.0
    inside = frequency[measured.mask >= 0.5]
    known = 1.0 / inside[inside > 0.0]
    quartiles = tuple(float(q) for q in np.percentile(known, (25, 50, 75))) if known.size else ()
    none = 1.0 - known.size / max(inside.size, 1)
    return _Found(frequency, quartiles, none, known, 1.0 / local.finest), bands


def _bands(box: int, pixel_size: float, window: float, *, place: float) -> Bands:
    finest = ((box - 1) // 2) / (box * pixel_size)
    return plan_bands(window=window, extent=box * pixel_size, finest=finest, place=place)


def _filtered(
    events: Events,
    both: NDArray[np.float32],
    pixel_size: float,
    found: _Found,
    measured: Resolution,
    *,
    bands: Bands,
    params: LocalResolutionParams,
) -> NDArray[np.float32]:
    """Sharpen the mean of the half maps, and low-pass each voxel to its resolution."""
    fitted = sharpen_map(
        both, pixel_size=pixel_size, fsc=measured.curve("corrected"), mask=measured.mask,
        bfactor=params.bfactor, fit_from=params.fit_from,
    )  # fmt: skip
    bfactor = fitted.bfactor or 0.0
    how = "fitted" if fitted.fitted else "too few shells beyond 7 A to fit"
    how = how if params.bfactor is None else "as given"
    events.message(f"B-factor {bfactor:.0f} A^2 ({how}) of the filtered map")
    sharp = apply_bfactor(both, bfactor, pixel_size=pixel_size)
    coarsest = float(bands.frequency[0])
    # From the mask outwards detail fades, as the mask does, to what no voxel is coarser than.
    frequency = np.maximum(found.frequency, np.float32(coarsest))
    frequency = coarsest + np.clip(measured.mask, 0.0, 1.0) * (frequency - coarsest)
    frequency = frequency.astype(np.float32, copy=False)
    return filter_locally(sharp, frequency, pixel_size=pixel_size, coarsest=coarsest)


def _show(
    events: Events,
    density: NDArray[np.float32],
    values: NDArray[np.float32],
    found: _Found,
    *,
    pixel_size: float,
) -> None:
    """Draw the slices coloured by resolution, the distribution, and the filtered map."""
    if found.quartiles:
        low, high = (float(each) for each in np.percentile(found.inside, (2, 98)))
        events.picture(
            "local_resolution",
            coloured_slices(
                density, np.where(found.frequency > 0.0, values, np.nan),
                limits=(low, max(high, low * 1.05)), label="local resolution (A)",
                beside="the map, filtered to its local resolution", pixel_size=pixel_size,
            ),
            title="local resolution",
        )  # fmt: skip
        first, middle, last = found.quartiles
        events.picture(
            "histogram",
            picture.histogram(
                found.inside, thresholds=found.quartiles, xlabel="local resolution (A)",
                title=f"median {middle:.2f} A, quartiles {first:.2f} and {last:.2f} A",
            ),
            title="voxels of the mask by their resolution",
        )  # fmt: skip
    events.picture("rendering", volume_rendering(density), title="locally filtered map")


def _say(events: Events, found: _Found, resolution: float, threshold: float) -> None:
    """Say the verdict and the figures."""
    if not found.quartiles:
        reason = "no window of the mask holds more than noise"
        events.warning(f"no local resolution: {reason}; use a wider --window, or look at --mask")
        events.emit(
            "result", resolution=resolution, median_resolution=None, reason=reason, unresolved=1.0
        )
        return
    first, middle, last = found.quartiles
    even = "the parts of the map differ little"
    if middle <= found.finest * (1.0 + 1e-3):
        even = (
            "that is all that the pixel lets see; extract with smaller pixels to tell parts apart"
        )
    elif last > UNEVEN * first:
        even = (
            f"the parts of the map differ: do not read detail finer than {last:.1f} A where it is "
            "coloured red; such parts move, or few particles have them"
        )
    events.message(
        f"half of the mask is resolved to {middle:.2f} A or better at FSC {threshold:g} (quartiles "
        f"{first:.2f} and {last:.2f} A; the whole to {resolution:.2f} A at {THRESHOLD}), "
        f"{found.none:.1%} of it not at all: {even}"
    )
    if found.none > EMPTY:
        events.warning(
            f"{found.none:.0%} of the mask has no resolution ({UNMEASURED:g} A in the map): it "
            "holds solvent, or parts coarser than half the window; try a tighter --mask or a wider "
            "--window"
        )
    events.emit(
        "result",
        resolution=resolution,
        median_resolution=middle,
        lower_quartile_resolution=first,
        upper_quartile_resolution=last,
        unresolved=found.none,
    )


STAGE = Stage(
    "local-resolution",
    "measure the resolution about each voxel of half maps, and filter the map to it",
    LocalResolutionParams,
    (
        Input(
            "volume", "volume", many=True,
            help="job with half maps, a map with half1.mrc, half2.mrc beside, or two half maps",
        ),
        Input("mask", "mask", positional=False, optional=True, help="mask; made if left out"),
    ),
    run,
    plan,
    admit=admit,
    lead=lead,
)  # fmt: skip
