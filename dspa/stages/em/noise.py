"""The noise of images: one spectrum for all, and how each group of images departs.

The images of a micrograph (or of an optics group, where micrographs are unknown) are a group. The
spectrum starts as that around the particles; once the averages are followed by candidates, it is
what they leave of the images (``ops/images/noise_update.py``), blended in with the step of the
pass. How groups depart from it hardly hangs on the averages: that is gathered over as many images
as the set holds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import like, to_host
from dspa.ops.images.noise import image_power, spread_shells
from dspa.ops.images.noise_update import (
    MOMENTS,
    cap_residuals,
    group_ratios,
    noise_from_moments,
    relative_deviation,
    residual_moments,
)
from dspa.ops.poses.residual import shell_terms
from dspa.ops.sums.fixed import PLACES, add_exact, exact
from dspa.stages.em.blend import blend_sums

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model, Sums
    from dspa.ops.poses.cells import Candidates
    from dspa.ops.poses.search import Searcher
    from dspa.stages.em.plan import PassPlan
    from dspa.stages.particles.chunks import ImageSpec, ParticleBatch

EVERY = 2  # one of so many images shows its residual in a pass
FADING = 8  # power of its excess by which the noise of an outlier rises
GOLDEN = 0.6180339887498949  # its multiples are spread evenly between 0 and 1


def noise_groups(
    particles: xr.Dataset, *, known: Sequence[str] = ()
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Say which images share their noise: those of a micrograph, else of an optics group.

    Parameters
    ----------
    particles : xarray.Dataset
    known : sequence of str
        Groups of an earlier part of the set; they keep their numbers.

    Returns
    -------
    group : (particles,) int32
        -1 where nothing is known.
    names : tuple of str
    """
    source, table = "micrograph", "micrograph_name"
    if source not in particles or not (particles[source].values >= 0).any():
        source, table = "optics", "optics_name"
    index = np.asarray(particles[source].values, np.int64)
    inside = index >= 0
    used = np.unique(index[inside])
    labels = (
        [str(name) for name in particles[table].values[used]]
        if table in particles
        else [f"{source} {i}" for i in used]
    )
    names = list(known)
    place = {name: number for number, name in enumerate(names)}
    for name in labels:
        if name not in place:
            place[name] = len(names)
            names.append(name)
    group = np.full(index.size, -1, np.int32)
    numbers = np.array([place[name] for name in labels], np.int32)
    group[inside] = numbers[np.searchsorted(used, index[inside])]
    return group, tuple(names)


def batch_groups(batch: ParticleBatch, rows: NDArray[np.int64]) -> NDArray[np.int32]:
    """Group of particles of a batch: (n,) int32, -1 where nobody said."""
    given = batch.state.get("group")
    if given is None:
        return np.full(rows.size, -1, np.int32)
    return np.asarray(given[rows], np.int32)


def image_noise(model: Model, group: NDArray[np.int32]) -> NDArray[np.float64]:
    """Noise power of each image: (n, radius + 1), or (1, radius + 1) where all have the same."""
    noise = np.asarray(model["noise"], np.float64)[None]
    ratio = model.get("noise_ratio")
    if ratio is None or len(ratio) < 2:
        return noise
    inside = (group >= 0) & (group < len(ratio))
    return np.asarray(noise * np.where(inside[:, None], ratio[np.where(inside, group, 0)], 1.0))


def coefficient_noise(
    model: Model, batch: ParticleBatch, place: NDArray[np.int64], *, factor: float = 1.0
) -> Any:
    """Noise power of images at ``place`` of a batch, where they live: (1 or n, F) float32.

    Where the model knows the ``strongest`` power of an image that is no outlier, images beyond it
    have so much more noise that they say the less the stronger they are: ice, contaminations.
    """
    shells = image_noise(model, batch_groups(batch, place)) * factor
    strongest = model.get("strongest")
    if strongest is not None:
        beyond = np.maximum(1.0, image_power(batch.power[place]) / strongest)
        shells = shells * (beyond**FADING)[:, None]
    return spread_shells(like(shells.astype(np.float32), reference=batch.images), batch.band)


def least_noise(model: Model) -> float:
    """Least noise power of any shell and group."""
    ratio = model.get("noise_ratio")
    least = np.asarray(model["noise"], np.float64)
    if ratio is not None and len(ratio):
        least = least * np.minimum(1.0, np.min(ratio, axis=0))
    return float(least.min())


def drawing_places(indices: NDArray[np.int64], iteration: int) -> NDArray[np.float64]:
    """Say where in its posterior each image draws a cell in a pass, 0 to 1.

    In each pass all but one of ``EVERY`` lie beyond 1 and are left out: half the work.
    """
    return EVERY * np.modf(indices * GOLDEN + iteration * GOLDEN**2)[0]


@lru_cache(maxsize=4)
def mask_power(spec: ImageSpec) -> float:
    """Mean square of the mask: what it leaves of the power of noise."""
    return float(np.mean(spec.mask().astype(np.float64) ** 2))


def empty_noise(plan: PassPlan) -> Sums:
    """Return the sums of a pass: moments of all images; power, CTF^2, number of each group."""
    shells = plan.spec.radius + 1
    return {
        "noise_moments": exact((MOMENTS, shells)),
        "noise_sums": exact((2, plan.settings.groups, shells)),
        "noise_images": exact((plan.settings.groups,)),
    }


def noise_bytes(groups: int, shells: int) -> int:
    """Bytes of the sums of a pass, and of the tables of all groups in the model."""
    sums = PLACES * ((MOMENTS + 2 * groups) * shells + groups)
    return 8 * (sums + 3 * groups * shells)


def add_residuals(
    partial: Sums,
    images: tuple[ParticleBatch, NDArray[np.int64]],
    *,
    plan: PassPlan,
    model: Model,
    searcher: Searcher,
    cells: Candidates,
    scale: NDArray[np.float32],
    y: Any,
    c2: Any,
) -> None:
    """Add what the averages leave of images to the sums of the noise.

    Parameters
    ----------
    partial : Sums
        Changed.
    images : ParticleBatch and (n,) int64
        Images, as rows of a batch.
    plan, model, searcher
    cells : Candidates
        One of each image.
    scale : (n,) float32
        Contrast of each image.
    y, c2
        As in `search`, of unit contrast.
    """
    if not images[1].size:
        return
    cross, norm = shell_terms(searcher, cells, y=y, c2=c2, radius=plan.reach)
    add_unexplained(partial, images, plan=plan, model=model, terms=(cross, norm), scale=scale)


def add_unexplained(
    partial: Sums,
    images: tuple[ParticleBatch, NDArray[np.int64]],
    *,
    plan: PassPlan,
    model: Model,
    terms: tuple[Any, Any],
    scale: NDArray[np.float32],
) -> None:
    """Add what references leave of images to the sums of the noise.

    Parameters
    ----------
    partial, images, plan, model, scale
        As for `add_residuals`.
    terms : (cross, norm), each (n, shells)
        As of `dspa.ops.poses.residual.shell_terms`, each image with its reference.
    """
    batch, place = images
    cross, norm = terms
    group = batch_groups(batch, place)
    expected = image_noise(model, group)
    contrast = scale.astype(np.float64)[:, None]
    explained = 2.0 * contrast * to_host(cross) - contrast**2 * to_host(norm)
    power, ctf = batch.power[place], batch.ctf_power[place]
    share = mask_power(plan.spec)
    left = (power - expected * plan.uncertainty * explained) / share
    members = np.bincount(batch.band.shell, minlength=plan.spec.radius + 1)
    left = cap_residuals(left, expected, np.asarray(share * members))
    add_exact(partial["noise_moments"], residual_moments(left, ctf.astype(np.float64)))
    known = (group >= 0) & (group < plan.settings.groups)
    met, row = np.unique(group[known], return_inverse=True)
    tables = np.stack([left[known], ctf[known]])
    for sums, values in zip(partial["noise_sums"], tables, strict=True):
        own = np.zeros((met.size, left.shape[1]))
        np.add.at(own, row, values)
        _add_rows(sums, met, own)
    _add_rows(partial["noise_images"], met, np.bincount(row, minlength=met.size))


def _add_rows(sums: NDArray[np.int64], rows: NDArray[Any], values: NDArray[Any]) -> None:
    """Add to some rows of exact sums."""
    part = sums[rows]
    add_exact(part, values)
    sums[rows] = part


def next_noise(plan: PassPlan, model: Model, partial: Sums) -> dict[str, NDArray[Any]]:
    """Noise of the next pass: what the model holds of it."""
    shells = plan.spec.radius + 1
    old = {
        "noise": np.asarray(model["noise"]),
        "background": np.asarray(model.get("background", model["noise"])),
        "noise_moments": np.asarray(model.get("noise_moments", np.zeros((MOMENTS, shells)))),
        "noise_sums": _grown(model.get("noise_sums"), (2, plan.settings.groups, shells)),
        "noise_images": _grown(model.get("noise_images"), (plan.settings.groups,)),
        "noise_ratio": _grown(model.get("noise_ratio"), (plan.settings.groups, shells), fill=1.0),
    }
    count = float(partial["noise_moments"][0].max())
    if count == 0.0:
        return old
    moments = blend_sums(old["noise_moments"], partial["noise_moments"], step=plan.step)
    noise, signal = noise_from_moments(moments, old["background"])
    # In the group sums images are forgotten as fast as the set passes by.
    fade = 1.0 - min(1.0, plan.share / EVERY)
    sums = fade * old["noise_sums"] + partial["noise_sums"]
    images = fade * old["noise_images"] + partial["noise_images"]
    ratio = old["noise_ratio"]
    if plan.settings.groups > 1:
        ratio = group_ratios(sums[0] - signal * sums[1], images, relative_deviation(moments))
    return {
        **old,
        "noise": noise,
        "noise_moments": moments,
        "noise_sums": sums,
        "noise_images": images,
        "noise_ratio": ratio,
    }


def _grown(table: Any, shape: tuple[int, ...], *, fill: float = 0.0) -> NDArray[np.float64]:
    """Bring a table of groups to this many groups; new ones hold ``fill``."""
    grown = np.full(shape, fill)
    if table is not None:
        grown[tuple(slice(size) for size in table.shape)] = table
    return grown
