"""Post-processing: resolution in a mask, sharpening, weighting of the half maps of a refinement."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io import picture
from dspa.io.rendering import volume_rendering
from dspa.io.volumes import Volume, read_volume, write_volume
from dspa.ops.maps.fsc import fsc, resolution_shell
from dspa.ops.maps.postprocess import SharpenedMap, sharpen_map, treat_as_given
from dspa.ops.maps.resolution import Resolution, measure_resolution
from dspa.stages.em.parameters import mask_diameter
from dspa.stages.refine.half_maps import (
    FEWEST_SHELLS,
    cut_off,
    judge_halves,
    reason_beside,
    symmetry_beside,
    tell,
)
from dspa.stages.refine.output import draw_fsc, write_fsc
from dspa.stages.refine.reference import (
    DOUBTFUL,
    check_contrast,
    check_mask,
    check_mask_holds,
    read_fitting,
    skewness,
    smoothed,
)
from dspa.stages.refine.start import resample
from dspa.stages.stage import Context, Input, Stage, check, check_symmetry, param

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dspa.dataflow.events import Events
    from dspa.stages.particles.chunks import ImageSpec

SYMMETRY_HELP = (
    "point group that was applied to the half maps; that of their refinement if left out"
)


@dataclass(frozen=True)
class PostprocessParams:
    """Parameters of `dspa postprocess`."""

    bfactor: float | None = param(
        None, "B-factor to apply, negative sharpens; fitted if left out",
        unit="A^2", minimum=-1000.0, maximum=1000.0,
    )  # fmt: skip
    fit_from: float = param(
        10.0, "coarse end of the B-factor fit", unit="A", minimum=4.0, maximum=50.0
    )
    lowpass: float = param(
        0.0, "low-pass; 0: where the corrected FSC falls below 0.143",
        unit="A", minimum=0.0, maximum=100.0,
    )  # fmt: skip
    mask_diameter: float = mask_diameter("diameter of the spherical mask", "the whole box")
    symmetry: str = param("", SYMMETRY_HELP)

    def together(self) -> None:
        """Refuse a group that is none."""
        if self.symmetry:
            check_symmetry(self.symmetry)


def run(context: Context, inputs: Mapping[str, Any], params: PostprocessParams) -> dict[str, Path]:
    """Sharpen a map and measure its resolution.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``volume``: a map whose folder holds ``half1.mrc`` and ``half2.mrc``; ``mask``: optional.
    params : PostprocessParams

    Returns
    -------
    outputs : dict of name to path
    """
    check(params)
    volume = Path(inputs["volume"])
    first, second = read_halves(volume)
    refuse_dark(volume, first, second, context.events)
    pixel_size, box = first.pixel_size, first.density.shape[0]
    both = 0.5 * (first.density + second.density)
    measured = measure_halves(context, inputs, (first, second), diameter=params.mask_diameter)
    reason = no_figure(context, (volume,), (first, second), measured, symmetry=params.symmetry)
    lowpass = params.lowpass if params.lowpass > 0 else None
    if reason:
        sharp = treat_as_given(
            both, pixel_size=pixel_size, bfactor=params.bfactor, resolution=lowpass
        )
    else:
        extent, shells = box * pixel_size, float((box - 1) // 2)
        sharp = sharpen_map(
            both,
            pixel_size=pixel_size,
            fsc=measured.curve("corrected"),
            mask=measured.mask,
            bfactor=params.bfactor,
            fit_from=params.fit_from,
            resolution=lowpass or extent / max(min(measured.shell, shells), 1.0),
        )
    return _write(
        context, measured, sharp, halves=first, given=params.bfactor is not None, reason=reason
    )


def read_halves(volume: Path) -> tuple[Volume, Volume]:
    """Read the half maps that lie beside a map.

    Parameters
    ----------
    volume : Path
        The map of a refinement, or one of its halves.
    """
    folder = volume.parent
    paths = [folder / f"half{number}.mrc" for number in (1, 2)]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise InputError(
            f"{folder}: {' and '.join(missing)} not found; both half maps of a refinement are "
            "needed beside the map"
        )
    return read_pair(*paths)


def refuse_dark(name: Path, first: Volume, second: Volume, events: Events) -> None:
    """Refuse half maps of dark particles: masks are made around what is bright.

    Parameters
    ----------
    name : Path
        For messages.
    first, second : Volume
    events : Events
    """
    # Noise is neither dark nor bright: the FSC tells that nothing is shared.
    if resolution_shell(fsc(first.density, second.density)) < FEWEST_SHELLS:
        return
    # One that is bright says that the other has the wrong sign, which is told with the FSC.
    if all(skewness(half) < DOUBTFUL for half in (first, second)):
        both = replace(first, density=first.density + second.density)
        check_contrast(name, smoothed(both)[0], events)


def measure_halves(
    context: Context,
    inputs: Mapping[str, Any],
    halves: tuple[Volume, Volume],
    *,
    diameter: float = 0.0,
) -> Resolution:
    """Measure the resolution of half maps in the mask among the inputs, if there is one.

    Otherwise in a sphere of a diameter in A; 0 is the whole box.
    """
    (first, second), pixel_size = (half.density for half in halves), halves[0].pixel_size
    mask = read_mask(
        inputs.get("mask"), 0.5 * (first + second), pixel_size=pixel_size, events=context.events
    )
    return measure_resolution(
        first, second, pixel_size=pixel_size, seed=context.seed, mask=mask,
        diameter=diameter if diameter > 0 else first.shape[0] * pixel_size,
    )  # fmt: skip


def judge(
    context: Context,
    maps: tuple[Path, ...],
    halves: tuple[Volume, Volume],
    measured: Resolution,
    *,
    symmetry: str,
) -> str:
    """Say why half maps have no resolution; what their refinement said of them counts too.

    Parameters
    ----------
    context : Context
    maps : tuple of Path
        As given: one beside its halves, or the two.
    halves : tuple of Volume
    measured : Resolution
        Of the two.
    symmetry : str
        As given; nothing for that of the refinement.
    """
    table, (first, second) = table_beside(maps), halves
    return judge_halves(
        first.density,
        second.density,
        measured,
        pixel_size=first.pixel_size,
        symmetry=symmetry_beside(symmetry, table),
        seed=context.seed,
        events=context.events,
    ) or (reason_beside(table) if table is not None else "")


def no_figure(
    context: Context,
    maps: tuple[Path, ...],
    halves: tuple[Volume, Volume],
    measured: Resolution,
    *,
    symmetry: str,
) -> str:
    """Say why no resolution is given: half maps have none, or end where they still agree.

    Parameters
    ----------
    context, maps, halves, measured, symmetry
        As of `judge`.
    """
    first = halves[0]
    cut = cut_off(
        context.events, measured, table_beside(maps),
        extent=first.density.shape[0] * first.pixel_size,
    )  # fmt: skip
    return judge(context, maps, halves, measured, symmetry=symmetry) or cut


def table_beside(maps: tuple[Path, ...]) -> Path | None:
    """Return the ``fsc.star`` of the refinement that made half maps; it need not exist.

    Parameters
    ----------
    maps : tuple of Path
        One beside its halves, or the two.
    """
    folders = {path.parent for path in maps}
    halves = len(maps) == 1 or {path.name for path in maps} == {"half1.mrc", "half2.mrc"}
    return folders.pop() / "fsc.star" if halves and len(folders) == 1 else None


def given_maps(inputs: Mapping[str, Any]) -> tuple[Path, ...]:
    """Return the maps that are given as ``volume``: one, or several."""
    given = inputs["volume"]
    return tuple(Path(each) for each in (given if isinstance(given, list | tuple) else (given,)))


def read_pair(first: Path, second: Path) -> tuple[Volume, Volume]:
    """Read two maps of one cube and pixel size.

    Parameters
    ----------
    first, second : Path
    """
    one, other = read_volume(first), read_volume(second)
    if one.density.shape != other.density.shape or len(set(one.density.shape)) != 1:
        raise InputError(
            f"{first} is {one.density.shape} and {second.name} {other.density.shape} voxels; both "
            "must be one cube"
        )
    if abs(one.pixel_size - other.pixel_size) > 1e-3 * one.pixel_size:
        raise InputError(
            f"{first} has voxels of {one.pixel_size:g} and {second.name} of {other.pixel_size:g} "
            "A; both must be the same"
        )
    # Under a mask the level of both would correlate in every shell.
    one, other = (
        replace(each, density=each.density - each.density.mean()) for each in (one, other)
    )
    return one, other


def read_mask(
    path: str | Path | None, density: NDArray[np.float32], *, pixel_size: float, events: Events
) -> NDArray[np.float32] | None:
    """Read a mask onto the grid of a map, and refuse one that cannot be of it.

    Parameters
    ----------
    path : path or None
        Nothing is returned where there is none.
    density : (n, n, n) float32
        The map.
    pixel_size : float
        A.
    events : Events

    Returns
    -------
    (n, n, n) float32 or None
        Between 0 and 1.
    """
    if path is None:
        return None
    box = density.shape[0]
    given = read_fitting(path, box=box, pixel_size=pixel_size, events=events, to="maps")
    check_mask(path, given, events)
    mask = np.clip(resample(given, box=box, pixel_size=pixel_size), 0.0, 1.0).astype(np.float32)
    check_mask_holds(path, mask, density, pixel_size, events, of="map")
    return mask


def agreeing_halves(
    context: Context, inputs: Mapping[str, Any], *, use: str
) -> tuple[tuple[Volume, Volume], Resolution]:
    """Read half maps that particles are held against; refuse maps of no resolution.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``volume`` with half maps beside; ``mask``, if given, is that of the FSC.
    use : str
        What agreement is needed for; ends the message.
    """
    path = Path(inputs["volume"])
    halves = read_halves(path)
    measured = measure_halves(context, inputs, halves)
    reason = judge(context, (path,), halves, measured, symmetry="")
    if reason:
        raise InputError(f"{path}: no resolution can be given ({reason}); {use}")
    return halves, measured


def masked_half(volume: Volume, mask: NDArray[np.float32], spec: ImageSpec) -> NDArray[np.float32]:
    """Bring a half map under a mask to the box of the images.

    Parameters
    ----------
    volume : Volume
    mask : (n, n, n) float32
        On the grid of the map.
    spec : ImageSpec
    """
    masked = replace(volume, density=volume.density * mask)
    return resample(masked, box=spec.crop, pixel_size=spec.crop_pixel_size)


def _write(
    context: Context,
    measured: Resolution,
    sharp: SharpenedMap,
    *,
    halves: Volume,
    given: bool,
    reason: str,
) -> dict[str, Path]:
    """Write maps and curves, draw pictures, and say what was found."""
    folder, events = context.folder, context.events
    box, pixel_size = halves.density.shape[0], halves.pixel_size
    extent, shells = box * pixel_size, (box - 1) // 2
    shell = min(measured.shell, float(shells))
    resolution = extent / max(shell, 1e-3)
    outputs = {name: folder / f"{name}.mrc" for name in ("volume", "volume_masked", "mask")}
    maps: dict[str, NDArray[np.float32]] = {
        "volume": sharp.density,
        "volume_masked": sharp.density * measured.mask,
        "mask": measured.mask,
    }
    for name, density in maps.items():
        write_volume(outputs[name], density, pixel_size=pixel_size)
    outputs["fsc"] = folder / "fsc.star"
    write_fsc(
        outputs["fsc"], measured.curves, extent=extent, shells=shells, resolution=resolution,
        reason=reason,
    )  # fmt: skip
    tell(events, reason)
    how = "fitted" if sharp.fitted else "as given" if given else "too few shells beyond 7 A to fit"
    unknown = "unknown (no resolution)"
    bfactor = unknown if sharp.bfactor is None else f"{sharp.bfactor:.0f} A^2 ({how})"
    lowpass = unknown if sharp.resolution is None else f"{sharp.resolution:.2f} A"
    events.message(
        f"B-factor {bfactor}; low-pass {lowpass}; phases random beyond "
        f"{extent / measured.random_from:.1f} A"
    )
    what = "mean of the half maps, not sharpened" if sharp.bfactor is None else "sharpened map"
    chance = measured.curve("random phases")[int(shell)]
    if not reason and chance > 0.1 and shell >= measured.random_from + 2:
        events.warning(
            f"with random phases the masked halves still correlate by {chance:.2f} at "
            f"{resolution:.1f} A: the mask is too tight; use a wider or softer one"
        )
    draw_fsc(events, measured.curves, extent=extent, shells=shells)
    events.picture(
        "slices", picture.volume_slices(sharp.density, pixel_size=pixel_size), title=what
    )
    events.picture("rendering", volume_rendering(sharp.density), title=what)
    if reason:
        events.emit("result", resolution=None, reason=reason, bfactor=sharp.bfactor)
    else:
        events.emit(
            "result",
            resolution=resolution,
            unmasked_resolution=extent / max(min(measured.unmasked, shells), 1e-3),
            bfactor=sharp.bfactor,
        )
    return outputs


STAGE = Stage(
    "postprocess",
    "sharpen a map and measure its resolution in a mask",
    PostprocessParams,
    (
        Input("volume", "volume", help="refinement job, or a map with half1.mrc, half2.mrc beside"),
        Input("mask", "mask", positional=False, optional=True, help="mask; made if left out"),
    ),
    run,
)
