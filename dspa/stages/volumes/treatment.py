"""What `dspa volume` does to a map, step by step, in its one order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial.transform import Rotation

from dspa.data.errors import InputError
from dspa.geometry.symmetry import symmetry_operators
from dspa.io.volumes import Volume, check_cubic
from dspa.ops.maps.align import align
from dspa.ops.maps.motion import Motion, half_space, regrid, turned
from dspa.ops.maps.sharpen import high_pass, low_pass
from dspa.stages.refine.reference import check_mask_values
from dspa.stages.refine.start import find_axes, resample, symmetric_mean
from dspa.stages.volumes.reading import read_map

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.dataflow.events import Events
    from dspa.stages.volumes.volume import VolumeParams

AXES_TO, ALIGNED_TO = 18.0, 10.0  # A, the detail that the search of axes and of a motion looks at
ALIKE = 0.3  # score of maps of one molecule; those of two are below
SAME_SIZE = 1e-3  # relative difference of voxel sizes that are one
LARGEST_BOX = 2048
MIRROR = np.diag([-1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Others:
    """Maps and masks that take part.

    Attributes
    ----------
    align_to, add, subtract, multiply : (Path, Volume) or None
        By the names of the options.
    """

    align_to: tuple[Path, Volume] | None = None
    add: tuple[Path, Volume] | None = None
    subtract: tuple[Path, Volume] | None = None
    multiply: tuple[Path, Volume] | None = None


def new_grid(volume: Volume, params: VolumeParams) -> Volume:
    """Return an empty map with the grid of the result, the centre n//2 where it was.

    Parameters
    ----------
    volume : Volume
    params : VolumeParams

    Raises
    ------
    InputError
        If its box is larger than any.
    """
    old, shape = volume.pixel_size, volume.density.shape
    size = old if params.pixel_size is None else params.pixel_size
    box = params.box or max(shape)
    if params.box is None and params.pixel_size is not None:
        box = max(2, 2 * round(0.5 * max(shape) * old / size))
    if box > LARGEST_BOX:
        raise InputError(
            f"--pixel-size {size:g}: a box of {box} voxels would cover the map; give a smaller one "
            f"with --box (at most {LARGEST_BOX})"
        )
    middle = [start + (n // 2) * old for start, n in zip(volume.origin, shape[::-1], strict=True)]
    x, y, z = (place - (box // 2) * size for place in middle)
    # The array is never written: one voxel stands for all.
    empty = np.broadcast_to(np.float32(0.0), (box, box, box))
    return Volume(empty, size, origin=(x, y, z))


def check_grids(given: Others, grid: Volume) -> None:
    """Refuse maps and masks whose voxels are not those of the result.

    Parameters
    ----------
    given : Others
    grid : Volume
        From `new_grid`.
    """
    box, size = grid.density.shape[0], grid.pixel_size
    for option in ("add", "subtract", "multiply"):
        other = getattr(given, option)
        if other is None:
            continue
        path, volume = other
        shape, own = volume.density.shape, volume.pixel_size
        if shape != grid.density.shape or abs(own - size) > SAME_SIZE * size:
            raise InputError(
                f"--{option} {path}: {shape[2]} x {shape[1]} x {shape[0]} voxels of {own:.4g} A, "
                f"and the map has {box} of {size:.4g} A by then; add --pixel-size {own:.6g} --box "
                f"{max(shape)}"
            )


def find_motion(
    volume: Volume, params: VolumeParams, others: Others, events: Events
) -> tuple[Motion, tuple[float, float, float]]:
    """Put together how a map is moved, each step found on the map as the steps before leave it.

    Parameters
    ----------
    volume : Volume
        A cube.
    params : VolumeParams
    others : Others
    events : Events

    Returns
    -------
    motion : Motion
    origin : (x, y, z) float
        Of the grid of the map, A: another one where the map was moved onto another.
    """
    motion, origin = Motion(), volume.origin
    if params.flip_hand:
        motion = motion.then(Motion(MIRROR))
    if params.symmetry and len(symmetry_operators(params.symmetry)) > 1:
        motion = motion.then(_onto_axes(_moved(volume, motion), params.symmetry, events))
    if others.align_to is not None:
        path, target = others.align_to
        motion = motion.then(
            _onto_map(_moved(volume, motion), path, target, hand=params.hand, events=events)
        )
        origin = _origin_over(volume, target)
    if params.rotate is not None:
        matrix = Rotation.from_rotvec(params.rotate, degrees=True).as_matrix()
        motion = motion.then(Motion(matrix))
    if params.shift is not None:
        motion = motion.then(Motion(shift=np.array(params.shift)))
    return motion, origin


def _moved(volume: Volume, motion: Motion) -> Volume:
    size = volume.pixel_size
    density = turned(volume.density, motion.matrix)
    shift = motion.shift / size
    if shift.any():
        density = regrid(density, box=density.shape[0], shift=shift.tolist())
    return replace(volume, density=density)


def _onto_axes(volume: Volume, symmetry: str, events: Events) -> Motion:
    """Find the motion that takes the axes of a map to the convention."""
    box, size = volume.density.shape[0], volume.pixel_size
    radius = min(box * size / AXES_TO, (box - 1) // 2)
    axes = find_axes(volume.density, symmetry, radius=radius, events=events)
    if axes.in_place:
        events.message(f"the axes of {symmetry} lie in place already: the map is not turned")
        return Motion()
    # An aligned map is V'(x) = V(Q^T x + centre).
    motion = Motion(axes.rotation, -axes.rotation @ axes.centre * size)
    events.message(f"onto the axes of {symmetry}: {_words(motion)}")
    return motion


def _onto_map(volume: Volume, path: Path, target: Volume, *, hand: bool, events: Events) -> Motion:
    """Find the motion that takes a map onto another."""
    box, size = volume.density.shape[0], volume.pixel_size
    reference = resample(target, box=box, pixel_size=size)
    radius = max(8, int(box * size / ALIGNED_TO))
    found = align(volume.density, reference, radius=radius, mirror="allow" if hand else "forbid")
    motion = Motion(found.rotation @ (MIRROR if found.mirrored else np.eye(3)), found.shift * size)
    other_hand = ", its other hand" if found.mirrored else ""
    events.message(f"onto {path.name}: {_words(motion)}{other_hand}; score {found.score:.2f}")
    if found.score < ALIKE:
        advice = "" if hand else ", or --hand if it may be of the other hand"
        events.warning(
            f"the score of the alignment onto {path} is {found.score:.2f} to {ALIGNED_TO:g} A: "
            f"the maps may not be of one molecule; look at the result{advice}"
        )
    return motion


def _origin_over(volume: Volume, target: Volume) -> tuple[float, float, float]:
    """Origin for which the centre of a map's grid is that of another's."""

    def middle(n: int, size: float) -> float:
        return (n // 2) * size

    n, size = volume.density.shape[0], volume.pixel_size
    x, y, z = (
        start + middle(m, target.pixel_size) - middle(n, size)
        for start, m in zip(target.origin, target.density.shape[::-1], strict=True)
    )
    return x, y, z


def _words(motion: Motion) -> str:
    rotation = motion.matrix if np.linalg.det(motion.matrix) > 0 else motion.matrix @ MIRROR
    vector = Rotation.from_matrix(rotation).as_rotvec(degrees=True)
    angle = float(np.linalg.norm(vector))
    axis = ", ".join(f"{number:.2f}" for number in vector / max(angle, 1e-9))
    move = ", ".join(f"{number:.2f}" for number in motion.shift)
    return f"turned by {angle:.1f} degrees about ({axis}), then moved by ({move}) A"


def treat(
    volume: Volume, motion: Motion, grid: Volume, params: VolumeParams, others: Others
) -> NDArray[np.float32]:
    """Do to a map, its sign changed already, what the parameters say, in their order.

    Parameters
    ----------
    volume : Volume
        A cube.
    motion : Motion
        From `find_motion`.
    grid : Volume
        From `new_grid`.
    params : VolumeParams
    others : Others
        On the grid.

    Returns
    -------
    (n, n, n) float32
    """
    size, box = grid.pixel_size, grid.density.shape[0]
    density = regrid(
        turned(volume.density, motion.matrix),
        box=box,
        ratio=size / volume.pixel_size,
        shift=(motion.shift / volume.pixel_size).tolist(),
    )
    if params.highpass > 0:
        density = _plain(high_pass(density, params.highpass, pixel_size=size))
    if params.lowpass > 0:
        density = _plain(low_pass(density, params.lowpass, pixel_size=size))
    if params.symmetrise:
        density = symmetric_mean(density, symmetry_operators(params.symmetry))
    if params.normalise:
        density = _normalised(density)
    if others.add is not None:
        density = density + others.add[1].density
    if others.subtract is not None:
        density = density - others.subtract[1].density
    if params.threshold is not None:
        density = np.where(density < np.float32(params.threshold), np.float32(0.0), density)
    if params.cut is not None:
        *normal, distance = params.cut
        density = density * half_space(
            box, normal=normal, distance=distance, pixel_size=size, edge=params.cut_edge
        )
    if others.multiply is not None:
        density = density * others.multiply[1].density.clip(0.0, 1.0)
    return _plain(density)


def _plain(density: Any) -> NDArray[np.float32]:
    return np.asarray(density, np.float32)


def _normalised(density: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take off the mean and divide by the standard deviation."""
    mean, deviation = density.mean(dtype=np.float64), density.std(dtype=np.float64)
    if not deviation > 0:
        raise InputError("--normalise: every voxel is the same by then; check the steps before")
    return _plain((density - mean) / deviation)


def read_others(inputs: Mapping[str, Any], events: Events) -> Others:
    """Read the maps and masks that the options name.

    Parameters
    ----------
    inputs : mapping
    events : Events
        Warned of a mask with values a little beyond 0 to 1.
    """
    found: dict[str, tuple[Path, Volume]] = {}
    for option in ("align_to", "add", "subtract", "multiply"):
        if inputs.get(option) is None:
            continue
        path = inputs[option]
        volume = read_map(path)
        check_cubic(path, volume)
        if option == "multiply":
            check_mask_values(path, volume, events)
        found[option] = (path, volume)
    return Others(**found)
