"""Half maps of more and more images, at poses that are known: nothing is searched.

A pass adds some images of both halves to the sums of those before. The halves are two shares of
it, as in a refinement, so that a worker never holds what is added to both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.dataflow.checkpoint import load
from dspa.device import like, take_rows
from dspa.ops.images.noise import weigh_images
from dspa.ops.images.transform import shift_phases
from dspa.ops.maps.resolution import measure_resolution
from dspa.ops.poses.cells import Candidates
from dspa.ops.poses.score import split
from dspa.ops.sums import grid
from dspa.ops.sums.backproject import Accumulator
from dspa.ops.sums.fixed import (
    add_exact,
    exact,
    exact_value,
    largest_entries,
)
from dspa.ops.sums.insert import insert_candidates, unmoved
from dspa.ops.sums.project import frames_of
from dspa.ops.sums.reconstruct import reconstruct
from dspa.stages.em.halves import OfHalf, half_grids
from dspa.stages.em.noise import coefficient_noise, least_noise
from dspa.stages.em.scale import check_room, scale_of
from dspa.stages.refine.plan import FINISH_VOLUMES, sums_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model, Rows, Sums
    from dspa.stages.particles.chunks import ImageSpec, ParticleBatch


@dataclass(frozen=True, eq=False)
class Added(OfHalf):
    """Reduction of one pass (see ``dspa.dataflow.reduction``).

    The model has ``noise`` and ``strongest`` (`dspa.stages.particles.noise.BackgroundNoise`),
    ``mask`` (n, n, n) of the FSC, ``map`` (2, ...), the sums of both halves so far, and ``curve``
    and ``shell``, corrected FSC and resolution of every pass.

    Attributes
    ----------
    spec : ImageSpec
    symmetry : str
    anew : bool
        Begin with empty sums.
    """

    spec: ImageSpec
    symmetry: str
    anew: bool

    def bind(self, model: Model, items: int = 1 << 20) -> BoundAdded:
        """Choose the scale of the sums."""
        return BoundAdded(self, model, scale_of(self.total, items, least_noise(model)))

    def bytes_per_item(self) -> int:
        """Memory per image."""
        return 64 * self.spec.band().count

    def bytes_of_sums(self) -> int:
        """Memory of the sums of the half, and of both so far; at the end of maps."""
        sums = sums_bytes(self.spec.radius)
        return 2 * sums + sums // 2 + (FINISH_VOLUMES + 1) * 4 * self.spec.crop**3


@dataclass(frozen=True, eq=False)
class BoundAdded:
    """A pass with what is known before.

    Attributes
    ----------
    task : Added
    model : mapping
    scale : float
        Of the sums in fixed point.
    """

    task: Added
    model: Model
    scale: float

    def start(self) -> Sums:
        """Return empty sums; the map is made where the first images lie."""
        return {"largest": exact(), "count": exact()}

    def add(self, sums: Sums, batch: ParticleBatch) -> Rows:
        """Add the images of a batch at their poses."""
        chosen, spec = np.flatnonzero(batch.valid), self.task.spec
        if chosen.size:
            y, c2 = self._weighted(batch, chosen)
            add_exact(sums["largest"], largest_entries(y, c2).sum())
            add_exact(sums["count"], float(chosen.size))
            if "map" not in sums:
                where = 2 * spec.radius + 1
                sums["map"] = grid.zeros((1,), where, dims=3, reference=y, fixed=True)
            poses = np.asarray(batch.state["pose"][chosen], np.float64)
            frames = like(frames_of(poses, padding=2), reference=y)
            number = np.arange(chosen.size, dtype=np.int32)
            still = np.zeros_like(number)
            insert_candidates(
                sums["map"],
                still,
                Candidates(number, still, number, still),
                weight=np.ones(number.size, np.float32),
                frames=lambda pose: frames[pose],
                phases=unmoved(batch.band.count, reference=y),
                row=still,
                y=split(y),
                c2=c2,
                band=batch.band,
                scale=self.scale,
            )
        return {"added": batch.valid.copy()}

    def _weighted(self, batch: ParticleBatch, chosen: NDArray[np.int64]) -> tuple[Any, Any]:
        """Y and C2 of images, the particle at the centre, each at its contrast."""
        images, ctf = take_rows(batch.images, chosen), take_rows(batch.ctf, chosen)
        shift = batch.state["shift"][chosen] / self.task.spec.crop_pixel_size
        centred = images * shift_phases(batch.band, like(shift, reference=images))
        noise = coefficient_noise(self.model, batch, chosen)
        y, c2 = weigh_images(centred, ctf, noise)
        contrast = batch.state["scale"][chosen].astype(np.float32)[:, None]
        contrast = like(contrast, reference=y)
        return y * contrast, c2 * (contrast * contrast)

    def finish(self, sums: Sums) -> Model:
        """Add what is new to what was there; with the second half, measure the resolution."""
        task = self.task
        check_room(task, sums, self.scale)
        own = self._own(sums)
        if task.before is None:
            return {"map": own, "count": exact_value(sums["count"])}
        first = load(task.before)
        maps = [self._map(each) for each in (first["map"], own)]
        measured = measure_resolution(
            maps[0],
            maps[1],
            pixel_size=task.spec.crop_pixel_size,
            diameter=task.spec.mask_diameter,
            seed=len(self.model["shell"]),
            mask=np.asarray(self.model["mask"]),
        )
        row = {
            "curve": measured.curve("corrected"),
            "shell": np.asarray(min(measured.shell, float(task.spec.radius))),
            "count": first["count"] + exact_value(sums["count"]) + self._before(),
        }
        grown = {name: np.concatenate([self.model[name], [each]]) for name, each in row.items()}
        return dict(self.model) | grown | {"map": np.stack([first["map"], own])}

    def _before(self) -> float:
        """Count the images of the sums so far."""
        return 0.0 if self.task.anew else float(self.model["count"][-1])

    def _own(self, sums: Sums) -> NDArray[np.float32]:
        """Return the sums of the half so far, symmetrised."""
        radius, symmetry = self.task.spec.radius, self.task.symmetry
        (own,) = half_grids(sums, self.scale, maps=1, radius=radius, symmetry=symmetry)
        if not self.task.anew:
            own = own + self.model["map"][self.task.half - 1]
        return np.asarray(own, np.float32)

    def _map(self, sums: NDArray[np.float32]) -> NDArray[np.float32]:
        """Divide sums by their weights: an unfiltered half map."""
        spec = self.task.spec
        made = reconstruct(Accumulator(sums, spec.crop, spec.radius))
        return np.asarray(made, np.float32)
