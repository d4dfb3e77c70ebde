"""Evidence of each image for a particle, beside images of noise that are scored in its place.

In the last pass about a thousand images get a control: noise with the spectrum, CTF, mask, fold
and search of that image. What the controls attain is what noise can attain with these averages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import like, namespace, take_rows, to_host
from dspa.ops.evidence2d import (
    FIELD_RADIUS,
    draw_noise,
    field_evidence,
    noise_probability,
    residual,
)
from dspa.ops.posterior2d import posterior
from dspa.ops.search2d import search
from dspa.stages.class2d_contrast import fitted
from dspa.stages.class2d_sums import Outcome, outcome_of_search

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model
    from dspa.ops.search2d import Searcher
    from dspa.stages.class2d_plan import ClassPlan
    from dspa.stages.particle_chunks import ParticleBatch

CONTROLS = 1000


def every(particles: int) -> int:
    """Say that one of how many particles gets a control."""
    return max(1, particles // CONTROLS)


def weigh(
    rows: dict[str, NDArray[Any]],
    images: tuple[ParticleBatch, NDArray[np.int64]],
    outcome: Outcome,
    *,
    searcher: Searcher,
    noise: Any,
    plan: ClassPlan,
    model: Model,
) -> None:
    """Write what a smooth field and noise alone attain into rows ``field`` and ``control``.

    Parameters
    ----------
    rows : dict
    images : (ParticleBatch, (n,) int64)
        A batch, and the places in it of the images.
    outcome : Outcome
        Of these images.
    searcher : Searcher
        That found it.
    noise : (1, F) or (n, F) float32
        Noise power the images were scored with.
    plan, model
        Of the pass.
    """
    batch, place = images
    count = int(noise.shape[-1])
    transfer = take_rows(batch.ctf[:, :count], place)
    members = take_rows(batch.images[:, :count], place)
    rows["field"][place] = _field(
        members, transfer, outcome, searcher=searcher, noise=noise, plan=plan
    )
    drawn = np.flatnonzero(batch.indices[place] % plan.controls == 0)
    if not drawn.size:
        return
    transfer = take_rows(transfer, drawn)
    noise = noise if len(noise) == 1 else take_rows(noise, drawn)
    control = draw_noise(
        _draws(batch.indices[place[drawn]], count, plan.seed),
        noise,
        plan.spec.band(),
        mask=plan.spec.crop_mask(),
    )
    y = namespace(control).conj(control) * (transfer / noise)
    c2 = transfer * transfer / noise
    seen = search(searcher, y, c2, pruning=plan.pruning)
    scores, scales = fitted(seen, plan, model)
    found = posterior(seen.cells, scores, drawn.size, prior=seen.prior, hard=plan.hard)
    result = outcome_of_search(seen, found, scales)
    field = _field(control, transfer, result, searcher=searcher, noise=noise, plan=plan)
    rows["control"][place[drawn]] = result.log_likelihood - field


def _draws(indices: NDArray[np.int64], count: int, seed: int) -> NDArray[np.float32]:
    """Draw standard normal numbers for each particle: (n, 2, count) float32."""
    generators = (np.random.default_rng([seed, int(index), 0xC0A7]) for index in indices)
    return np.stack([each.standard_normal((2, count), np.float32) for each in generators])


def _field(
    images: Any,
    transfer: Any,
    outcome: Outcome,
    *,
    searcher: Searcher,
    noise: Any,
    plan: ClassPlan,
) -> NDArray[np.float64]:
    """Evidence of a smooth field in what the classes leave of images."""
    scaled = transfer * like(outcome.scale[:, None], reference=transfer)
    rest = residual(searcher, outcome.best, images, scaled, radius=FIELD_RADIUS)
    power, mask = to_host(noise[..., : rest.shape[1]]), plan.spec.crop_mask()
    return field_evidence(rest, power, plan.spec.band(), mask=mask)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What speaks for a particle in each image.

    Attributes
    ----------
    evidence : (n,) float32
        Log-likelihood of the classes, less that of a smooth field, less what half of the controls
        attain: 0 is noise. NaN for images set aside.
    probability : (n,) float32
        Of being noise.
    controls : (m,) float32
        Evidence of the images of noise.
    """

    evidence: NDArray[np.float32]
    probability: NDArray[np.float32]
    controls: NDArray[np.float32]


def judge_noise(rows: Mapping[str, NDArray[Any]]) -> Evidence:
    """Compare what images attain with what noise attains.

    Parameters
    ----------
    rows : mapping of name to (n,) array
        Of a last pass: ``valid``, ``log_likelihood``, ``field``, ``control``.
    """
    control = rows["control"][np.isfinite(rows["control"])]
    middle = np.median(control) if control.size else 0.0
    gain = np.where(rows["valid"], rows["log_likelihood"] - rows["field"] - middle, np.nan)
    probability = noise_probability(gain, control - middle)
    return Evidence(
        gain.astype(np.float32),
        probability.astype(np.float32),
        (control - middle).astype(np.float32),
    )
