"""Tools for maps: moved, resampled, filtered, symmetrised, cut, masked, added up."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.io.picture import volume_slices
from dspa.io.rendering import volume_rendering
from dspa.io.volumes import Volume, check_cubic, write_volume
from dspa.ops.images.normalise import is_flat
from dspa.ops.maps.motion import regrid
from dspa.ops.maps.region import automatic_level
from dspa.stages.stage import Context, Input, Stage, check, check_symmetry, param
from dspa.stages.volumes.reading import is_mask, read_map
from dspa.stages.volumes.treatment import (
    Others,
    check_grids,
    find_motion,
    new_grid,
    read_others,
    treat,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

OTHERS = ("align_to", "add", "subtract", "multiply")
LOST = 0.01  # of the particle's voxels; more beyond a smaller box is told
APART = 0.5  # voxels between the origins of maps that are added


@dataclass(frozen=True)
class VolumeParams:
    """Parameters of `dspa volume`, in the order in which they are done."""

    invert_contrast: bool = param(False, "1: change the sign of the density")
    flip_hand: bool = param(False, "2: the mirror image, along x about the centre")
    symmetry: str = param("", "3: turn the map so that the axes of this point group are in place")
    hand: bool = param(False, "4: with --align-to, the mirror image is tried too")
    rotate: tuple[float, float, float] | None = param(
        None, "5: turn about the axis x, y, z by its length, counterclockwise seen from its tip",
        unit="deg", minimum=-3600.0, maximum=3600.0,
    )  # fmt: skip
    shift: tuple[float, float, float] | None = param(
        None, "6: move by x, y, z", unit="A", minimum=-10000.0, maximum=10000.0
    )
    pixel_size: float | None = param(
        None, "7: resample to this voxel size", unit="A", minimum=0.1, maximum=100.0
    )
    box: int | None = param(
        None, "7: crop or pad to this box; left out: the even one that covers the map",
        unit="px", minimum=2, maximum=2048,
    )  # fmt: skip
    highpass: float = param(0.0, "8: high-pass; 0: none", unit="A", minimum=0.0, maximum=10000.0)
    lowpass: float = param(0.0, "9: low-pass; 0: none", unit="A", minimum=0.0, maximum=1000.0)
    symmetrise: bool = param(False, "10: average over the point group of --symmetry")
    normalise: bool = param(False, "11: mean 0 and standard deviation 1 over the box")
    threshold: float | None = param(
        None,
        "14 (after --add, --subtract): 0 where the density is below this",
        minimum=-1e12,
        maximum=1e12,
    )
    cut: tuple[float, float, float, float] | None = param(
        None, "15: keep what lies along the direction x, y, z beyond a plane at this distance "
        "(the fourth number, A) from the centre", minimum=-1e12, maximum=1e12
    )  # fmt: skip
    cut_edge: float = param(
        5.0, "width of the cosine edge of --cut", unit="A", minimum=0.0, maximum=200.0
    )
    halves: bool = param(False, "do the same to half1.mrc and half2.mrc beside the map")

    def together(self) -> None:
        """Refuse a group that is none, and what does not go with the half maps."""
        if self.symmetrise and not self.symmetry:
            raise InputError("--symmetrise averages over a point group; give --symmetry too")
        if self.symmetry:
            check_symmetry(self.symmetry)
        if self.cut is not None and not any(self.cut[:3]):
            raise InputError(
                "--cut 0 0 0: the direction has no length; give x, y, z and a distance"
            )
        if self.halves and (self.normalise or self.threshold is not None):
            raise InputError(
                "--halves with --normalise or --threshold: the halves would no longer add up to "
                "the map; leave one of them out"
            )


def prepare(
    inputs: Mapping[str, Any], params: VolumeParams, events: Events | None = None
) -> tuple[Volume, Volume, Others]:
    """Read all maps, and refuse what does not fit together.

    Parameters
    ----------
    inputs : mapping
    params : VolumeParams
    events : Events, optional

    Returns
    -------
    volume : Volume
        A cube.
    grid : Volume
        An empty map with the grid of the result.
    others : Others
    """
    plain = {item.name: item.default for item in fields(VolumeParams)}
    aside = {"hand", "cut_edge", "halves"}
    given = any(getattr(params, name) != plain[name] for name in plain if name not in aside)
    if not given and not any(inputs.get(name) is not None for name in OTHERS):
        raise InputError("nothing to do to the map; give an option (dspa volume --help)")
    if params.hand and inputs.get("align_to") is None:
        raise InputError("--hand is of an alignment; give --align-to MAP too (or --flip-hand)")
    path = Path(inputs["volume"])
    volume = read_map(path)
    if params.box is None:
        check_cubic(path, volume)
    grid = new_grid(volume, params)
    others = read_others(inputs, Events(None, ()) if events is None else events)
    check_grids(others, grid)
    if params.halves:
        if inputs.get("add") is not None or inputs.get("subtract") is not None:
            raise InputError("--halves: nothing is added to half maps; leave --add, --subtract out")
        missing = [half.name for half in _halves(path) if not half.exists()]
        if missing:
            raise InputError(f"{path.parent}: --halves, but {' and '.join(missing)} not found")
    return volume, grid, others


def run(context: Context, inputs: Mapping[str, Any], params: VolumeParams) -> dict[str, Path]:
    """Change a map.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``volume``: the map; ``align_to``, ``add``, ``subtract``: maps, ``multiply``: a mask.
    params : VolumeParams

    Returns
    -------
    outputs : dict of name to path
    """
    check(params)
    path, events = Path(inputs["volume"]), context.events
    volume, grid, others = prepare(inputs, params, events)
    if is_mask(volume.density):
        events.warning(
            f"{path}: is a mask (0 to 1); where a mask is asked for, name the result with its "
            "output (--mask J5.volume)"
        )
    volume = _cube(volume, params)
    _tell_of_loss(volume, grid, events)
    motion, origin = find_motion(volume, params, others, events)
    grid = new_grid(replace(volume, origin=origin), params)
    _tell_of_origins(others, grid, events)
    outputs = {"volume": context.folder / "volume.mrc"}
    density = treat(volume, motion, grid, params, others)
    if is_flat(density):
        raise InputError("nothing is left of the map; check --threshold, --cut, --box and --shift")
    write_volume(outputs["volume"], density, pixel_size=grid.pixel_size, origin=grid.origin)
    for half in _halves(path) if params.halves else ():
        read = _cube(read_map(half), params)
        if read.density.shape != volume.density.shape:
            raise InputError(f"{half}: {read.density.shape} voxels, and the map has another box")
        outputs[half.stem] = context.folder / half.name
        made = treat(read, motion, grid, params, others)
        write_volume(outputs[half.stem], made, pixel_size=grid.pixel_size, origin=grid.origin)
    pixel_size, box = grid.pixel_size, density.shape[0]
    events.picture("slices", volume_slices(density, pixel_size=pixel_size), title="central slices")
    events.picture("rendering", volume_rendering(density), title="the map")
    place = ", ".join(f"{number:.5g}" for number in grid.origin)
    events.message(f"{box} voxels of {pixel_size:.6g} A along each edge, origin ({place}) A")
    events.emit("result", box=box, pixel_size=pixel_size)
    return outputs


def plan(inputs: Mapping[str, Any], params: VolumeParams) -> Mapping[str, Any]:
    """Say the grid of the result."""
    _, grid, _ = prepare(inputs, params)
    return {"box": grid.density.shape[0], "voxel size": f"{grid.pixel_size:g} A"}


def _halves(path: Path) -> tuple[Path, ...]:
    return tuple(path.with_name(f"half{number}.mrc") for number in (1, 2))


def _cube(volume: Volume, params: VolumeParams) -> Volume:
    """Change the sign of a map if asked to; pad it to a cube, its centre to the centre."""
    if params.invert_contrast:
        volume = replace(volume, density=-volume.density)
    shape, size = volume.density.shape, volume.pixel_size
    edge = max(shape)
    if len(set(shape)) == 1:
        return volume
    x, y, z = (
        start - (edge // 2 - n // 2) * size
        for start, n in zip(volume.origin, shape[::-1], strict=True)
    )
    return replace(volume, density=regrid(volume.density, box=edge), origin=(x, y, z))


def _tell_of_loss(volume: Volume, grid: Volume, events: Events) -> None:
    """Warn if a smaller box cuts into the particle."""
    box = volume.density.shape[0]
    room = 0.5 * grid.density.shape[0] * grid.pixel_size / volume.pixel_size
    if room >= 0.5 * box:
        return
    axis = np.abs(np.arange(box) - box // 2) <= room
    inside = axis[:, None, None] & axis[:, None] & axis
    region = volume.density >= np.float32(automatic_level(volume.density).value)
    lost = float((region & ~inside).sum()) / max(float(region.sum()), 1.0)
    if lost > LOST:
        events.warning(
            f"{lost:.0%} of the dense voxels lie outside of the new box; use a larger --box"
        )


def _tell_of_origins(others: Others, grid: Volume, events: Events) -> None:
    """Warn if what is added lies elsewhere by its header."""
    for option in ("add", "subtract", "multiply"):
        other = getattr(others, option)
        if other is None:
            continue
        apart = np.abs(np.subtract(other[1].origin, grid.origin)).max() / grid.pixel_size
        if apart > APART:
            events.warning(
                f"--{option} {other[0]}: by its header it lies {apart:.1f} voxels from the map; "
                "voxels are taken as they lie in the files"
            )


STAGE = Stage(
    "volume",
    "move, resample, filter, symmetrise, cut, mask and add up maps",
    VolumeParams,
    (
        Input("volume", "volume", help="the map"),
        Input(
            "align_to", "volume", positional=False, optional=True,
            help="4: map to move it onto; voxel size and box may differ",
        ),
        Input("add", "volume", positional=False, optional=True, help="12: map to add"),
        Input("subtract", "volume", positional=False, optional=True, help="13: map to subtract"),
        Input("multiply", "mask", positional=False, optional=True, help="16: mask to multiply by"),
    ),
    run,
    plan,
    admit=prepare,
)  # fmt: skip
