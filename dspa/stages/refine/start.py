"""What refinement begins with: half sets, the first reference, the first model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from dspa.data.errors import InputError
from dspa.geometry.axes import Alignment, align_to_symmetry, aligned_density
from dspa.geometry.symmetry import symmetry_operators
from dspa.ops.images.transform import resize_volume
from dspa.ops.maps.resolution import CURVES
from dspa.stages.em.memory import check_fits
from dspa.stages.particles.chunks import CHUNK, good_size
from dspa.stages.refine.maps import low_shells, reference_mask
from dspa.stages.refine.model import Figures, MapModel, Maps, Reached
from dspa.stages.refine.plan import Settings, plan_iteration, worker_bytes
from dspa.stages.stage import check_symmetry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dspa.dataflow.events import Events
    from dspa.io.volumes import Volume
    from dspa.stages.particles.chunks import ImageSpec

# A map obeys its symmetry if it correlates with its mates this well, and this much better than
# with copies turned about any other axis, ...
FAITHFUL, DISTINCT = 0.6, 0.15
# ... or, noisy as first maps are, by so many standard deviations better than about axes at random;
# and under all operators about equally well: what noise takes it takes from all alike.
CLEAR, EVEN = 6.0, 0.5
IN_PLACE = 0.01  # loss of correlation for which axes are left where they are
AXES_BEYOND = 1.6  # axes are looked for in shells up to this multiple of the initial low-pass


def check_memory(settings: Settings, memory: int, *, chunk: int = CHUNK) -> None:
    """Refuse, with the numbers, if a pass does not fit a worker.

    Parameters
    ----------
    settings : Settings
    memory : int
        Bytes of a worker.
    chunk : int
        Images of a chunk.
    """
    spec = settings.spec
    needed, radius = worker_bytes(settings, chunk=chunk), spec.radius
    while radius > 4 and worker_bytes(_coarser(settings, radius), chunk=chunk) > memory:
        radius -= 1
    what = f"half maps out to {spec.extent / spec.radius:.2f} A"
    advice = f"--max-resolution {spec.extent / radius:.1f}"
    check_fits(needed, memory, what=what, advice=advice)


def _coarser(settings: Settings, radius: int) -> Settings:
    """Return the settings of a coarser resolution: a smaller box too."""
    spec = settings.spec
    crop = min(spec.box, good_size(2 * radius + 2))
    return replace(settings, spec=replace(spec, radius=radius, crop=crop))


def resample(volume: Volume, *, box: int, pixel_size: float) -> NDArray[np.float32]:
    """Bring a map to another box and pixel size, its centre to the centre.

    Parameters
    ----------
    volume : Volume
        A cube.
    box : int
        Voxels of the result.
    pixel_size : float
        A per voxel of the result.

    Returns
    -------
    (box, box, box) float32
        Low-passed before it is made coarser; zero beyond the map.
    """
    density = np.asarray(volume.density, np.float32)
    ratio = pixel_size / volume.pixel_size
    old = density.shape[0]
    if old == box and abs(ratio - 1.0) < 1e-4:
        return density
    if ratio > 1.0:
        density = low_shells(density, 0.5 * old / ratio)
    offset = old // 2 - ratio * (box // 2)
    moved = ndimage.affine_transform(
        density, np.full(3, ratio), offset=offset, output_shape=(box,) * 3, order=3
    )
    return np.asarray(moved, np.float32)


def first_model(
    settings: Settings,
    densities: NDArray[np.float32],
    *,
    noise: Mapping[str, NDArray[np.float64]],
    mask: NDArray[np.float32] | None,
) -> MapModel:
    """Make the model of the first iteration: both halves see the same low-passed maps.

    Parameters
    ----------
    settings : Settings
    densities : (k, n, n, n) float32
        On the grid of the cropped images, axes in place.
    noise : mapping
        ``noise`` (radius + 1,) float64 of the background and ``strongest`` power of an image, as
        of `dspa.stages.particles.noise.BackgroundNoise`.
    mask : (n, n, n) float32, optional
        The user's mask.
    """
    reached = Reached(
        settings.initial_radius, settings.initial_radius, shift_sigma=settings.reach / 1.5
    )
    plan = plan_iteration(settings, 1, reached)
    reference, maps, diameter = [], [], 0.0
    for density in densities:
        smooth = low_shells(density, settings.initial_radius)
        made, wide = reference_mask(plan, smooth, settings.initial_radius, given=mask)
        reference.append((smooth * made).astype(np.float32))
        if not np.any(reference[-1]):
            raise InputError(
                "the first reference is empty inside its mask; check --volume and --mask"
            )
        maps.append(_unmeasured(reference[-1], made))
        diameter = max(diameter, wide)
    return MapModel(
        iteration=0,
        reference=np.stack([reference, reference]),
        given_mask=np.zeros(0, np.float32) if mask is None else mask,
        history=np.zeros((0, 4)),
        reached=replace(reached, diameter=diameter),
        figures=np.zeros(len(Figures._fields)),
        nuisance=first_nuisance(noise, len(reference)),
        maps=tuple(maps),
    )


def first_nuisance(
    noise: Mapping[str, NDArray[np.float64]], classes: int
) -> dict[str, NDArray[np.float64]]:
    """Say what is known of noise and occupancy before the first iteration, the same of both halves.

    Parameters
    ----------
    noise : mapping
        As for `first_model`.
    classes : int
        Number of maps.
    """
    background, strongest = (np.stack([noise[name]] * 2) for name in ("noise", "strongest"))
    return {
        "noise": background,
        "background": background,
        "strongest": strongest,
        "occupancy": np.full((2, classes), 1.0 / classes),
    }


def _unmeasured(reference: NDArray[np.float32], mask: NDArray[np.float32]) -> Maps:
    """Return what is known of a map of which no halves were made."""
    half = np.zeros((2, *reference.shape), np.float32)
    curves = np.zeros((len(CURVES), reference.shape[0] // 2 + 1))
    return Maps(half, reference, mask, mask, curves)


@dataclass(frozen=True, eq=False)
class Axes:
    """The symmetry axes of a map.

    Attributes
    ----------
    rotation, centre : (3, 3), (3,) float64
        Take them to where the convention has them, as in `dspa.geometry.axes.Alignment`; the
        centre in voxels of the given map.
    in_place : bool
        Whether they lie there already.
    mean : (m, m, m) float32
        The map on fewer voxels, axes in place, averaged over the group.
    """

    rotation: NDArray[np.float64]
    centre: NDArray[np.float64]
    in_place: bool
    mean: NDArray[np.float32]


def find_axes(
    density: NDArray[np.float32], symmetry: str, *, radius: float, events: Events
) -> Axes:
    """Find the symmetry axes of a map.

    Parameters
    ----------
    density : (n, n, n) float32
    symmetry : str
        Not C1.
    radius : float
        Shells that are looked at.
    events : Events
        Told how well the map obeys the symmetry, and warned if it does not.
    """
    operators = symmetry_operators(symmetry)
    box = density.shape[0]
    # No more voxels than these shells need: the search rotates the map thousands of times.
    small = min(box, max(32, 2 * int(np.ceil(1.5 * radius))))
    smooth = resize_volume(low_shells(density, radius), small)
    found = align_to_symmetry(smooth, symmetry)
    events.message(
        f"symmetry {symmetry}: axes found; the map correlates {found.correlation:.2f} "
        f"with its symmetry mates ({found.typical:.2f} about a typical axis)"
    )
    if doubt := _doubt(found, symmetry):
        events.warning(doubt)
    turned = aligned_density(smooth, found)
    # A map whose axes are in place already stays as it is: nobody wants it permuted.
    as_given, as_found = symmetric_mean(smooth, operators), symmetric_mean(turned, operators)
    in_place = _likeness(smooth, as_given) >= _likeness(turned, as_found) - IN_PLACE
    mean = as_given if in_place else as_found
    return Axes(found.rotation, found.centre * (box / small), in_place, mean)


def place_axes(
    density: NDArray[np.float32], settings: Settings, events: Events
) -> NDArray[np.float32]:
    """Turn a map so that its symmetry axes lie where the convention has them; average over them.

    Parameters
    ----------
    density : (n, n, n) float32
    settings : Settings
    events : Events
        Told how well the map obeys the symmetry, and warned if it does not.

    Returns
    -------
    (n, n, n) float32
        Holds the shells up to 1.6 times the initial low-pass.
    """
    if len(symmetry_operators(settings.symmetry)) == 1:
        return density
    radius = min(AXES_BEYOND * settings.initial_radius, float(settings.spec.radius))
    axes = find_axes(density, settings.symmetry, radius=radius, events=events)
    return np.asarray(resize_volume(axes.mean, density.shape[0]), np.float32)


def _doubt(found: Alignment, symmetry: str) -> str:
    """Say why a map may not have a symmetry; nothing if it shows it."""
    faithful = found.correlation >= max(FAITHFUL, found.typical + DISTINCT)
    if not faithful and found.significance < CLEAR:
        return (
            f"the map obeys {symmetry} poorly: it correlates {found.correlation:.2f} with its "
            f"mates, {found.significance:.1f} standard deviations above axes at random "
            f"({CLEAR:g} or more is usual); check the symmetry, or refine in C1"
        )
    if found.least < min(EVEN * found.most, found.most - DISTINCT):
        # A group of prime order has no smaller one in it (Lagrange); all others have (Cauchy).
        order = len(symmetry_operators(symmetry))
        prime = all(order % factor for factor in range(2, order))
        obeys, smaller = ("poorly", "in C1") if prime else ("only in part", "in a smaller group")
        return (
            f"the map obeys {symmetry} {obeys}: it correlates {found.most:.2f} with some of its "
            f"mates and {found.least:.2f} with others; check the symmetry, or refine {smaller}"
        )
    return ""


def _likeness(density: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Correlate two maps."""
    return float(np.corrcoef(density.ravel(), other.ravel())[0, 1])


def symmetric_mean(
    density: NDArray[np.float32], operators: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Average a map over a point group whose axes meet at the centre n//2.

    Parameters
    ----------
    density : (n, n, n) float32
    operators : (g, 3, 3) float64
        On (x, y, z).
    """
    centre = np.full(3, density.shape[0] // 2)
    total = np.zeros(density.shape, np.float64)
    for operator in operators:
        matrix = operator[::-1, ::-1]  # arrays are (z, y, x)
        total += ndimage.affine_transform(density, matrix, offset=centre - matrix @ centre, order=3)
    return np.asarray(total / len(operators), np.float32)


def make_settings(
    spec: ImageSpec, *, symmetry: str, initial_lowpass: float, max_shift: float, **same: Any
) -> Settings:
    """Turn what the user said in A into pixels of the images.

    Parameters
    ----------
    spec : ImageSpec
    symmetry : str
    initial_lowpass, max_shift : float
        A; a shift of 0 is a tenth of the box.
    **same
        Other fields of `Settings`, as they are.

    Raises
    ------
    InputError
        If there is no such group.
    """
    check_symmetry(symmetry)
    radius = float(np.clip(spec.extent / initial_lowpass, 4.0, 0.8 * spec.radius))
    reach = max_shift / spec.crop_pixel_size if max_shift > 0 else 0.1 * spec.crop
    return Settings(spec, symmetry, radius, max(reach, 1.0), **same)
