"""What classes begin with: the consensus, the contrast of images, components, a first grouping.

The components are those of a randomised singular value decomposition (Halko, Martinsson & Tropp
2011, doi:10.1137/090771806) of all residuals: small reconstructions of all images with weights
drawn at random, sharpened by power iterations: images are placed along them and added up by their
places.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.dataflow.runner import Result
from dspa.ops.maps.mask import soft_dilation, soft_sphere
from dspa.ops.maps.resolution import particle_region
from dspa.ops.maps.sharpen import filter_shells
from dspa.ops.mixture.grouping import group, principal_places
from dspa.ops.poses.posterior import fit_scales
from dspa.stages.class3d.model import SplitModel
from dspa.stages.class3d.passes import Sorting
from dspa.stages.class3d.plan import fit_plan, spread_plan, whole_plan
from dspa.stages.em.contrast import contrast_deviation, tally_contrast
from dspa.stages.em.halves import by_half
from dspa.stages.particles.chunks import minibatch, with_state
from dspa.stages.refine.start import first_nuisance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dspa.stages.class3d.images import SplitImages
    from dspa.stages.class3d.plan import Settings
    from dspa.stages.particles.chunks import ImageSpec, ParticleChunk
    from dspa.stages.stage import Context

ROUNDS = 4  # power iterations
SPREAD_IMAGES = 20_000  # images that components are made of, at most
LEAST = 2.0  # shells that the halves of a map agree in, if they do
# Where differences may be if no mask says it: around what the consensus shows above this share of
# its top density, 1 out to near, 0 from far (A).
LEVEL, NEAR, FAR = 0.1, 10.0, 20.0

State = dict[str, "NDArray[Any]"]


def empty_model(
    settings: Settings, nuisance: Mapping[str, NDArray[Any]], mask: NDArray[np.float32] | None
) -> SplitModel:
    """Make the model of the first pass: nothing is known but the noise.

    Parameters
    ----------
    settings : Settings
    nuisance : mapping
        As of `SplitModel`.
    mask : (n, n, n) float32, optional
        Around the particle.
    """
    return SplitModel(
        iteration=0,
        consensus=np.zeros((2, 0, 0, 0), np.float32),
        parts=np.zeros((2, 0, 0, 0, 0), np.float32),
        mask=np.zeros(0, np.float32) if mask is None else mask,
        power=np.zeros(settings.spec.radius + 1),
        mix=np.zeros((0, 0)),
        known=settings.initial_radius,
        curve=np.zeros(settings.spec.crop // 2 + 1),
        history=np.zeros((0, 3)),
        certain=0.0,
        nuisance=nuisance,
    )


def make_consensus(
    context: Context,
    settings: Settings,
    images: SplitImages,
    *,
    solvent: NDArray[np.float32] | None,
    focus: NDArray[np.float32] | None,
) -> tuple[SplitModel, float]:
    """Make the map that all images share, each half its own.

    Parameters
    ----------
    context : Context
    settings : Settings
    images : SplitImages
    solvent, focus : (n, n, n) float32, optional
        Masks around the particle and around what may differ.

    Returns
    -------
    model : SplitModel
        Without classes.
    known : float
        Shell to which the halves of the consensus agree.
    """
    spec = settings.spec
    empty = empty_model(settings, first_nuisance(images.noise, settings.classes), solvent)
    known = with_state(images.chunks, images.state)
    made = context.runner.run(
        Sorting(whole_plan(settings)), known, empty.arrays(), name="consensus000"
    ).model
    mask = particle_mask(made["volume"], spec) if solvent is None else solvent
    consensus = np.stack([filter_shells(half, made["usable"]) * mask for half in made["half"]])
    shell = float(made["shell"])
    model = replace(
        empty,
        consensus=consensus.astype(np.float32),
        mask=mask if focus is None else focus,
        power=np.asarray(made["power"]),
    )
    if shell < LEAST:
        context.events.warning(
            "the half maps of the consensus of all particles do not agree: the poses are not those "
            "of these particles, or there is nothing but noise"
        )
    else:
        context.events.message(
            f"the consensus of all particles is known to {spec.extent / shell:.1f} A, at the poses "
            "they have"
        )
    return model, shell


def particle_mask(volume: NDArray[np.float32], spec: ImageSpec) -> NDArray[np.float32]:
    """Make a wide mask around a map, within that of the images: (n, n, n) float32."""
    pixel_size, box = spec.crop_pixel_size, spec.crop
    edge = min(5.0, 0.15 * box)
    radius = min(spec.mask_diameter / (2.0 * pixel_size), box / 2.0 - 1.0)
    sphere = soft_sphere(box, radius - edge, pixel_size=1.0, edge=edge)
    region = particle_region(volume * sphere, pixel_size, resolution=15.0, level=LEVEL)
    return np.asarray(
        soft_dilation(region, pixel_size=pixel_size, near=NEAR, far=FAR) * sphere, np.float32
    )


def fit_images(
    context: Context, settings: Settings, images: SplitImages, model: SplitModel, *, known: float
) -> tuple[SplitModel, State]:
    """Fit the contrast of every image to the consensus, then the noise that is left.

    Parameters
    ----------
    context : Context
    settings : Settings
    images : SplitImages
    model : SplitModel
    known : float
        Shell that the consensus is known to.

    Returns
    -------
    model : SplitModel
        With the noise.
    state : dict
        With the contrast, ``scale``.
    """
    state = dict(images.state)
    for number in range(2):
        plan = fit_plan(settings, number, known=known)
        made = context.runner.run(
            Sorting(plan), with_state(images.chunks, state), model.arrays(), name=f"fit{number:03d}"
        )
        if number == 0 and settings.image_scale:
            state["scale"] = fitted_contrast(made.rows, state["scale"])
        elif number == 1:
            model = SplitModel.read(made.model)
    return model, state


def fitted_contrast(
    rows: Mapping[str, NDArray[Any]], before: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Fit the contrast of images; 1 in the mean.

    Parameters
    ----------
    rows : mapping
        ``item``, ``cross`` and ``norm`` of images at contrast 1.
    before : (n,) float64
        What images that took no part keep.
    """
    good = np.isfinite(rows["cross"])
    cross, norm = (rows[name][good].astype(np.float32) for name in ("cross", "norm"))
    score = 2.0 * cross - norm
    deviation = contrast_deviation({"contrast": tally_contrast(score, norm)})
    _, scales = fit_scales(score, norm, deviation=deviation)
    scale = before.copy()
    scale[rows["item"][good]] = scales / max(float(scales.mean()), 1e-3)
    return scale


def first_classes(
    context: Context, settings: Settings, images: SplitImages, model: SplitModel, state: State
) -> Result:
    """Make the first classes: components, images placed along them, places grouped.

    Parameters
    ----------
    context : Context
    settings : Settings
    images : SplitImages
    model : SplitModel
        With consensus and noise.
    state : dict
    """
    rng = np.random.default_rng([settings.seed, 0x5BD])
    draw = rng.standard_normal((images.valid.size, settings.components)).astype(np.float32)
    half = SPREAD_IMAGES // 2
    some: list[ParticleChunk] = [
        chunk for own in by_half(with_state(images.training, state))
        for chunk in minibatch(own, half, 0)
    ]  # fmt: skip
    places = draw
    for number in range(ROUNDS + 1):
        plan = spread_plan(settings, number, adds=number < ROUNDS)
        # What an image put into the components itself must not say where it lies.
        before = np.asarray(places @ model.mix if number else places, np.float32)
        known = with_state(some, state | {"draw": draw, "before": before})
        made = context.runner.run(Sorting(plan), known, model.arrays(), name=f"spread{number:03d}")
        rows = made.rows
        if number < ROUNDS:
            places = np.zeros_like(draw)
            places[rows["item"]] = np.nan_to_num(rows["place"])
            model = SplitModel.read(made.model)
            context.events.emit("progress", task="components", done=number + 1, total=ROUNDS)
    return grouped(settings, model, rows, before)


def grouped(
    settings: Settings,
    model: SplitModel,
    rows: Mapping[str, NDArray[Any]],
    before: NDArray[np.float32],
) -> Result:
    """Make classes of the places of images along components.

    Parameters
    ----------
    settings : Settings
    model : SplitModel
        Its parts are the components.
    rows : mapping
        ``place`` and ``told`` (n, q).
    before : (particles, q) float32
        Weight with which images went into the components.

    Returns
    -------
    Result
        Rows hold the weight with which images went into the classes.
    """
    good = np.isfinite(rows["place"]).all(axis=1)
    place, told = rows["place"][good], rows["told"][good].mean(axis=0)
    points = principal_places(place, max(1, settings.classes - 1))
    label = group(points, settings.classes, seed=settings.seed)
    share = np.bincount(label, minlength=settings.classes) / label.size
    centres = np.stack([
        place[label == k].mean(axis=0) if share[k] else np.zeros(place.shape[1])
        for k in range(settings.classes)
    ]) / np.maximum(told, 1e-3)  # fmt: skip
    centres -= share @ centres
    parts = np.einsum("kq,qzyx->kzyx", centres.astype(np.float32), model.parts[0])
    # Of all components and classes alike: what an image adds to one hangs on its power alone.
    stake = np.repeat(model.nuisance["stake"][:, :1], settings.classes, axis=1)
    occupancy = np.stack([share, share])
    first = replace(
        model,
        parts=np.stack([parts, parts]),
        mix=np.zeros((0, 0)),
        known=settings.initial_radius,
        nuisance=dict(model.nuisance) | {"occupancy": occupancy, "stake": stake},
    )
    everyone = np.arange(len(before))
    return Result(first.arrays(), {"item": everyone, "class_posterior": before @ centres.T})
