"""What a local refinement begins with, and the frame it works in: the fulcrum at the centre.

With c the fulcrum, maps are moved to V'(x) = V(x + c) and shifts are t' = t - (A c)_xy: rotations
then leave the fulcrum where it is. At the end all of it goes back to the frame that was given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.ops.maps.mask import radii
from dspa.ops.maps.motion import regrid
from dspa.ops.maps.resolution import measure_resolution
from dspa.ops.maps.sharpen import filter_shells
from dspa.stages.refine.maps import low_shells, usable, whole
from dspa.stages.refine.model import Figures, MapModel, Maps, Reached
from dspa.stages.refine.start import first_nuisance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dspa.stages.refine.plan import Settings


def places(poses: NDArray[np.float64], fulcrum: NDArray[np.float64]) -> NDArray[np.float64]:
    """Say where a place (3,) of the map lies in images under poses (n, 3, 3): (n, 2)."""
    return np.asarray(np.einsum("nij,j->ni", poses[:, :2], fulcrum))


def near_state(
    state: Mapping[str, NDArray[Any]], poses: NDArray[np.float64], fulcrum: NDArray[np.float64]
) -> dict[str, NDArray[Any]]:
    """Bring what is known of particles into the frame of the fulcrum.

    Parameters
    ----------
    state : mapping
        As of `dspa.stages.refine.halves.first_state`.
    poses : (n, 3, 3) float64
        Given.
    fulcrum : (3,) float64
        x, y, z in A.
    """
    shift = state["shift"] - places(poses, fulcrum)
    return dict(state) | {
        "pose": poses.copy(),
        "prior_pose": poses,
        "shift": shift,
        "prior_shift": shift,
    }


def whole_state(
    state: Mapping[str, NDArray[Any]], fulcrum: NDArray[np.float64]
) -> dict[str, NDArray[Any]]:
    """Bring shifts back from the frame of the fulcrum.

    Parameters
    ----------
    state : mapping
    fulcrum : (3,) float64
    """
    return dict(state) | {"shift": state["shift"] + places(state["pose"], fulcrum)}


def moved(density: NDArray[np.float32], by: NDArray[np.float64]) -> NDArray[np.float32]:
    """Move a map (n, n, n) by x, y, z voxels."""
    return regrid(density, box=density.shape[0], shift=by.tolist())


def moved_maps(maps: Maps, by: NDArray[np.float64]) -> Maps:
    """Move all that is known of a map by x, y, z voxels."""
    return Maps(
        half=np.stack([moved(half, by) for half in maps.half]),
        volume=moved(maps.volume, by),
        mask=moved(maps.mask, by),
        fsc_mask=moved(maps.fsc_mask, by),
        curves=maps.curves,
    )


def near_model(
    settings: Settings,
    halves: NDArray[np.float32],
    mask: NDArray[np.float32],
    *,
    noise: Mapping[str, NDArray[np.float64]],
) -> MapModel:
    """Make the model of the first iteration: each half begins with its own half map.

    Parameters
    ----------
    settings : Settings
        With a prior on poses.
    halves : (2, n, n, n) float32
        On the grid of the cropped images, the fulcrum in the middle.
    mask : (n, n, n) float32
        Of the part, on the same grid.
    noise : mapping
        As for `dspa.stages.refine.start.first_model`.
    """
    spec = settings.spec
    measured = measure_resolution(
        halves[0], halves[1], pixel_size=spec.crop_pixel_size, diameter=spec.mask_diameter,
        seed=settings.seed, mask=mask,
    )  # fmt: skip
    fsc = usable(measured)
    grey = float(np.std(halves.mean(axis=0) * mask))
    if not grey > 0.0:
        raise InputError("the half maps are empty inside the mask; check --volume and --mask")
    reference = np.stack([filter_shells(half / grey, fsc) for half in halves]).astype(np.float32)
    low = low_shells(0.5 * (reference[0] - reference[1]), settings.initial_radius)
    reference[0] -= low
    reference[1] += low
    reference *= mask
    shell = max(min(measured.shell, float(spec.radius)), settings.initial_radius)
    size = radii(spec.crop, 3)[mask > 0.5]
    volume = np.asarray(filter_shells(halves.mean(axis=0), whole(fsc)), np.float32)
    return MapModel(
        iteration=0,
        reference=reference[:, None],
        given_mask=mask,
        history=np.zeros((0, 4)),
        reached=Reached(shell, shell, diameter=2.0 * float(np.percentile(size, 98)) / spec.crop),
        figures=np.zeros(len(Figures._fields)),
        nuisance=first_nuisance(noise, 1),
        maps=(Maps(halves, volume, mask, mask, measured.curves),),
    )
