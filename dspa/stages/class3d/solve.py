"""From sums of two half sets to a map, to components, or to differences of classes.

Differences are trusted as far as those of the two half sets agree: the filter that is put on them
is the correlation of the halves' differences, not that of their maps, which is 1 long after the
differences have sunk in noise. See ``docs/method/class3d.md``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.fft

from dspa.ops.maps.fsc import resolution_shell, shell_sums
from dspa.ops.maps.resolution import measure_resolution
from dspa.ops.maps.sharpen import filter_shells
from dspa.ops.sums.backproject import Accumulator
from dspa.ops.sums.fixed import exact_value
from dspa.ops.sums.reconstruct import reconstruct
from dspa.stages.class3d.model import Figures
from dspa.stages.class3d.plan import WHOLE
from dspa.stages.em.halves import half_grids
from dspa.stages.refine.maps import usable, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model, Sums
    from dspa.stages.class3d.model import SplitModel
    from dspa.stages.class3d.plan import Plan

GUARD = 0.05  # of the mean weight of a shell: what is added to that of a part
WINDOW = 5  # shells that the agreement of differences is averaged over
KNOWN = 0.143
MOST = 0.99


def settle(plan: Plan, sums: Sums, scale: float) -> dict[str, NDArray[Any]]:
    """Make of the sums of a half what the next model follows from; they are used up.

    Parameters
    ----------
    plan : Plan
    sums : mapping
        ``map`` in fixed point, if there were images; the others exact.
    scale : float
        Of the map.

    Returns
    -------
    dict
        ``half`` (k, n, n, n) the maps of the half; of a single map its sums as ``map`` too; the
        others as numbers.
    """
    numbers = {name: exact_value(places) for name, places in sums.items() if name != "map"}
    if not plan.adds:
        return numbers
    symmetry = plan.settings.symmetry
    grids = half_grids(sums, scale, maps=plan.maps, radius=plan.insert_radius, symmetry=symmetry)
    guard = 1e-3 if plan.kind == WHOLE else GUARD
    half = [reconstruct(_accumulator(plan, each), epsilon=guard) for each in grids]
    made = numbers | {"half": np.stack(half)}
    return made | {"map": grids} if plan.kind == WHOLE else made


def _accumulator(plan: Plan, grid: NDArray[np.float32]) -> Accumulator:
    return Accumulator(grid, plan.spec.crop, plan.insert_radius)


def solve_whole(
    plan: Plan, first: dict[str, Any], second: dict[str, Any], model: SplitModel
) -> Model:
    """Make one map of the sums of both halves.

    Parameters
    ----------
    plan : Plan
    first, second : dict
        What `settle` made of the halves; their sums are used up.
    model : SplitModel
        Its mask, if it has one, is that of the FSC.

    Returns
    -------
    dict
        ``half`` (2, n, n, n), ``volume``, ``fsc_mask`` (n, n, n), ``curves``, ``shell``; ``power``
        (s,), as of `SplitModel`.
    """
    spec = plan.spec
    grids = [each.pop("map")[0] for each in (first, second)]
    half = np.concatenate([each.pop("half") for each in (first, second)])
    given = model.mask if model.mask.size else None
    measured = measure_resolution(
        half[0], half[1], pixel_size=spec.crop_pixel_size, diameter=spec.mask_diameter,
        seed=plan.iteration, mask=given,
    )  # fmt: skip
    both = _accumulator(plan, grids.pop(0))
    both.sums[...] += grids.pop()  # in place: a third grid need not fit
    volume = reconstruct(both, fsc=whole(usable(measured)))
    images = Figures(*(first["figures"] + second["figures"])).images
    return {
        "half": half,
        "volume": volume,
        "fsc_mask": measured.mask,
        "curves": measured.curves,
        "shell": np.asarray(min(measured.shell, float(plan.insert_radius))),
        "usable": usable(measured),
        "power": (first["power"] + second["power"])[0] / max(images, 1.0),
    }


def solve_components(
    plan: Plan, first: dict[str, Any], second: dict[str, Any], model: SplitModel
) -> Model:
    """Make components of the sums of both halves, even in what they weigh against the noise.

    Parameters
    ----------
    plan, first, second, model
        As for `solve_whole`.
    """
    joint = 0.5 * (first["half"] + second["half"]) * model.mask
    mix = whitening(joint, plan, model.power)
    parts = np.einsum("qk,qzyx->kzyx", mix.astype(np.float32), joint).astype(np.float32)
    flat = np.ones(plan.spec.crop // 2 + 1)
    stake = np.stack([
        0.5 * stakes(plan, flat, model.mask, each["power"]) for each in (first, second)
    ])  # fmt: skip
    return replace(
        model,
        parts=np.stack([parts, parts]),
        mix=mix,
        nuisance=dict(model.nuisance) | {"stake": stake},
    ).arrays()


def whitening(
    parts: NDArray[np.float32], plan: Plan, power: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Say how to turn components so that in the mean over views their overlaps are the identity.

    Parameters
    ----------
    parts : (q, n, n, n) float32
    plan : Plan
    power : (s,) float64
        Mean of CTF^2 / sigma^2 of a coefficient in each shell.

    Returns
    -------
    (q, q) float64
        New component k is the sum over q of ``mix[q, k]`` times component q.
    """
    band, box = plan.spec.band(), plan.spec.crop
    members = np.bincount(band.shell, minlength=plan.spec.radius + 1)[: plan.radius + 1]
    spectra = [scipy.fft.rfftn(part) / box for part in parts]
    counts = shell_sums(np.ones((box, box, box // 2 + 1)), 3)[: plan.radius + 1]
    weight = members * power[: plan.radius + 1] / np.maximum(counts, 1.0)
    table = np.zeros((len(parts),) * 2)
    for i, one in enumerate(spectra):
        for j, other in enumerate(spectra[: i + 1]):
            sums = shell_sums((one * np.conj(other)).real, 3)[: plan.radius + 1]
            table[i, j] = table[j, i] = float((weight * sums).sum())
    size, axes = np.linalg.eigh(table)
    return np.asarray(axes / np.sqrt(np.maximum(size, 1e-9 * max(float(size.max()), 1e-30))))


def next_parts(
    plan: Plan, first: dict[str, Any], second: dict[str, Any], model: SplitModel
) -> Model:
    """Make the differences of classes of the sums of both halves.

    Parameters
    ----------
    plan, first, second, model
        As for `solve_whole`.
    """
    made = (first, second)
    model = tallied(plan, first, second, model)
    if not plan.adds:
        return model.arrays()
    shares = model.nuisance["occupancy"]
    raw = np.stack([
        centred(each["half"] * model.mask, own) for each, own in zip(made, shares, strict=True)
    ])  # fmt: skip
    curve = agreement(raw[0], raw[1], model.share)
    curve[plan.insert_radius + 1 :] = 0.0
    known = known_shell(curve)
    floor = np.where(np.arange(curve.size) <= plan.radius, plan.floor, 0.0)
    kept = np.maximum(np.clip(curve, 0.0, MOST), floor)
    parts = np.stack([
        np.stack([filter_shells(part, kept) * model.mask for part in half]) for half in raw
    ]).astype(np.float32)  # fmt: skip
    stake = np.stack([stakes(plan, kept, model.mask, each["power"]) for each in made])
    history = model.history.copy()
    history[-1, 0] = known
    return replace(
        model,
        parts=parts,
        known=known,
        curve=curve,
        history=history,
        nuisance=dict(model.nuisance) | {"stake": stake},
    ).arrays()


def tallied(
    plan: Plan, first: dict[str, Any], second: dict[str, Any], model: SplitModel
) -> SplitModel:
    """Take over what a pass counted.

    Parameters
    ----------
    plan, first, second, model
        As for `solve_whole`.
    """
    made = (first, second)
    share = np.stack([each["occupancy"] / max(each["occupancy"].sum(), 1e-9) for each in made])
    figures = Figures(*(first["figures"] + second["figures"]))
    images = max(figures.images, 1.0)
    line = [model.known, figures.log_likelihood / images, figures.changed / images]
    return replace(
        model,
        iteration=plan.iteration,
        history=np.concatenate([model.history, [line]]),
        certain=figures.certain / images,
        nuisance=dict(model.nuisance) | {"occupancy": share},
    )


def stakes(
    plan: Plan,
    kept: NDArray[np.float64],
    mask: NDArray[np.float32],
    power: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Say what an image adds to its own overlap with a class that it was added to: (k, s) float64.

    A class is so many numbers as mask and filter leave of its coefficients, and what its images
    say of themselves adds up to that number, each by its share of the weight.

    Parameters
    ----------
    plan : Plan
    kept : (n // 2 + 1,) float64
        Filter of the differences.
    mask : (n, n, n) float32
    power : (k, s) float64
        Sums over images of posterior times mean c2 of a shell.

    Returns
    -------
    (k, s) float64
        To be multiplied by posterior and mean c2 of an image and summed over shells.
    """
    box, shells = plan.spec.crop, power.shape[1]
    left = float(np.mean(mask.astype(np.float64) ** 2))
    numbers = 0.5 * shell_sums(np.ones((box, box, box // 2 + 1)), 3)[:shells] * left
    numbers = np.where(np.arange(shells) <= plan.insert_radius, numbers * kept[:shells], 0.0)
    return np.where(power > 0.0, numbers / np.where(power > 0.0, power, 1.0), 0.0)


def centred(parts: NDArray[np.float32], share: NDArray[np.float64]) -> NDArray[np.float32]:
    """Take off classes what all have in common: their mean over the images.

    Parameters
    ----------
    parts : (k, n, n, n) float32
    share : (k,) float64
        Of the images.
    """
    mean = np.einsum("k,kzyx->zyx", share.astype(np.float32), parts)
    return np.asarray(parts - mean, np.float32)


def agreement(
    one: NDArray[np.float32], other: NDArray[np.float32], share: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Correlate the differences of two half sets, all classes together: (n // 2 + 1,) float64.

    Parameters
    ----------
    one, other : (k, n, n, n) float32
        Masked.
    share : (k,) float64
        Of the images.
    """
    sums = np.zeros((3, one.shape[-1] // 2 + 1))
    for weight, a, b in zip(share, one, other, strict=True):
        fa, fb = scipy.fft.rfftn(a), scipy.fft.rfftn(b)
        products = (fa * np.conj(fb)).real, np.abs(fa) ** 2, np.abs(fb) ** 2
        sums += weight * np.stack([shell_sums(each, 3) for each in products])
    cross, power1, power2 = (np.convolve(each, np.ones(WINDOW), "same") for each in sums)
    size = np.sqrt(power1 * power2)
    return np.asarray(np.where(size > 0.0, cross / np.where(size > 0.0, size, 1.0), 0.0))


def known_shell(curve: NDArray[np.float64]) -> float:
    """Return the shell to which differences agree: where, past its top, the curve falls below.

    Parameters
    ----------
    curve : (s,) float64
    """
    top = int(curve[1:].argmax()) + 1
    if curve[top] < KNOWN:
        return 0.0
    return top - 1 + resolution_shell(curve[top - 1 :] if top > 1 else curve, threshold=KNOWN)
