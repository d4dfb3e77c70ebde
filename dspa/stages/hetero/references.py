"""The maps that heterogeneous refinement begins with: given ones, copies of one, and noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.ops.maps.mask import soft_sphere
from dspa.stages.refine.maps import low_shells
from dspa.stages.refine.reference import starting_maps
from dspa.stages.refine.start import place_axes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.dataflow.events import Events
    from dspa.stages.refine.plan import Settings

SAME = 0.999  # correlation of two maps, low-passed, from which on images cannot tell them apart


def first_references(
    volumes: Sequence[Path],
    mask: Path | None,
    settings: Settings,
    events: Events,
    *,
    junk: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Read the maps onto the grid of the cropped images; copy one, add noise.

    Parameters
    ----------
    volumes : sequence of Path
        One, of which there are to be copies, or as many as there are to be maps without the noise.
    mask : Path, optional
    settings : Settings
        Its ``classes`` count the noise, too.
    events : Events
    junk : int
        Maps of noise, which gather images that no map explains.

    Returns
    -------
    densities : (k, n, n, n) float32
        Each of variance 1: the first pass fits its own grey scale.
    mask : (n, n, n) float32 or None

    Raises
    ------
    InputError
        If one of them cannot be of these particles, or two of them are one.
    """
    made, held = [], None
    for volume in volumes:
        density, held = starting_maps(volume, mask, settings.spec, events)
        made.append(place_axes(density, settings, events))
    if len(made) == 1:
        made *= settings.classes - junk
    else:
        _refuse_same(volumes, made, settings)
    made += [noise_map(settings, number) for number in range(junk)]
    return np.stack([each / each.std() for each in made]).astype(np.float32), held


def noise_map(settings: Settings, number: int) -> NDArray[np.float32]:
    """Make a map of nothing but noise inside the mask of the images."""
    spec = settings.spec
    rng = np.random.default_rng([settings.seed, 0x10, number])
    white = rng.standard_normal((spec.crop,) * 3).astype(np.float32)
    radius = 0.4 * spec.mask_diameter / spec.crop_pixel_size
    sphere = soft_sphere(spec.crop, radius, pixel_size=1.0, edge=3.0)
    return np.asarray(low_shells(white, settings.initial_radius) * sphere, np.float32)


def _refuse_same(
    volumes: Sequence[Path], made: Sequence[NDArray[np.float32]], settings: Settings
) -> None:
    smooth = [low_shells(each, settings.initial_radius).ravel() for each in made]
    for other in range(1, len(smooth)):
        for one in range(other):
            if float(np.corrcoef(smooth[one], smooth[other])[0, 1]) > SAME:
                resolution = settings.spec.extent / settings.initial_radius
                raise InputError(
                    f"--volumes: {volumes[one]} and {volumes[other]} are one map at "
                    f"{resolution:.0f} A, which no image can tell apart; name one map and "
                    "--classes to begin with copies of it, or a finer --initial-lowpass"
                )


def describe_references(volumes: Sequence[Any], *, classes: int, junk: int) -> str:
    """Say what there is to begin with."""
    noise = f" and {junk} of noise" if junk else ""
    if len(volumes) == 1 and classes - junk > 1:
        return f"{classes - junk} copies of {volumes[0]}{noise}"
    return ", ".join(str(volume) for volume in volumes) + noise
