"""3D classification as a reduction: images less the consensus, weighed and added up.

The half sets are two shares of a pass, one after the other, as in refinement. What a pass does
with images is said by its kind; what all do is here: each image at its pose and contrast, less the
slice of the consensus of its own half.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial.transform import Rotation

from dspa.dataflow.checkpoint import load
from dspa.device import like, namespace, take_rows, to_device, to_host, worker_device
from dspa.ops.images.noise import shell_mean, weigh_images
from dspa.ops.images.transform import shift_phases
from dspa.ops.mixture.overlap import (
    class_weights,
    coordinates,
    freed,
    overlap,
    reliability,
)
from dspa.ops.sums import grid
from dspa.ops.sums.fixed import add_exact, exact, exact_value, largest_entries
from dspa.ops.sums.insert import insert_slices
from dspa.ops.sums.project import frames_of, prepare_volume, project
from dspa.stages.class3d.model import Figures, SplitModel
from dspa.stages.class3d.plan import ERRORS, FIT, SORT, SPREAD, TRIAL, TURN, WHOLE
from dspa.stages.class3d.solve import next_parts, settle, solve_components, solve_whole
from dspa.stages.em.halves import OfHalf
from dspa.stages.em.noise import (
    add_unexplained,
    coefficient_noise,
    empty_noise,
    least_noise,
    next_noise,
)
from dspa.stages.em.scale import check_room, scale_of
from dspa.stages.refine.reduction import class_prior

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model, Rows, Sums
    from dspa.ops.mixture.overlap import Overlap
    from dspa.ops.sums.project import Reference
    from dspa.stages.class3d.plan import Plan
    from dspa.stages.particles.chunks import ParticleBatch

FAINT = 1e-3  # posterior below which an image adds nothing to a class worth its time
STRONG = 4.0  # times what an image adds, by the weight it has along a component


@dataclass(frozen=True, eq=False)
class Sorting(OfHalf):
    """Reduction of one pass.

    Attributes
    ----------
    plan : Plan
    """

    plan: Plan

    def bind(self, model: Model, items: int = 1 << 20) -> BoundSorting:
        """Make consensus and parts of the half ready, where this worker computes."""
        known, plan = SplitModel.read(model), self.plan
        nuisance = known.of_half(self.half)
        maps: list[Any] = []
        if plan.kind != WHOLE:
            maps.append(known.consensus[self.half - 1])
        if plan.kind in (SPREAD, SORT, TRIAL) and known.parts.size:
            maps += list(known.parts[self.half - 1])
        device = worker_device()
        references = tuple(
            prepare_volume(to_device(each, device=device), plan.radius) for each in maps
        )
        scale = scale_of(self.total, items, least_noise(nuisance), strong=STRONG)
        return BoundSorting(self, known, references, scale)

    def bytes_per_item(self) -> int:
        """Memory per image."""
        return self.plan.bytes_per_item()

    def bytes_of_sums(self) -> int:
        """Memory of the sums of the half, of the model, and of what images are compared with."""
        return self.plan.bytes_of_sums()


@dataclass(frozen=True, eq=False)
class _Seen:
    """Images of a batch, at the origin.

    Attributes
    ----------
    batch : ParticleBatch
    rows : (n,) int64
        Of the batch.
    poses : (n, 3, 3) float64
    y, c2 : (n, f) complex64, float32
        conj(X) s C / sigma^2 and s^2 C^2 / sigma^2.
    """

    batch: ParticleBatch
    rows: NDArray[np.int64]
    poses: NDArray[np.float64]
    y: Any
    c2: Any


@dataclass(frozen=True, eq=False)
class BoundSorting:
    """A pass with its maps.

    Attributes
    ----------
    task : Sorting
    model : SplitModel
        Of the pass before.
    references : tuple of Reference
        The consensus, then the parts.
    scale : float
        Of the sums in fixed point.
    """

    task: Sorting
    model: SplitModel
    references: tuple[Reference, ...]
    scale: float

    @property
    def plan(self) -> Plan:
        """Of the pass."""
        return self.task.plan

    def start(self) -> Sums:
        """Return empty sums; the maps are made where the first images lie."""
        plan = self.plan
        sums: Sums = {"figures": exact((len(Figures._fields),)), "largest": exact()}
        sums["occupancy"] = exact((max(plan.maps, 1),))
        sums["power"] = exact((max(plan.maps, 1), plan.spec.radius + 1))
        return sums | (empty_noise(plan) if plan.kind == FIT else {})

    def add(self, sums: Sums, batch: ParticleBatch) -> Rows:
        """Compare a batch with the maps; add its images up."""
        plan, chosen = self.plan, np.flatnonzero(batch.valid)
        rows = self._empty_rows(len(batch))
        if not chosen.size:
            return rows
        seen = self._look(batch, chosen)
        work = {
            WHOLE: self._whole, FIT: self._fit, SPREAD: self._spread, SORT: self._sort,
            TRIAL: self._trial,
        }[plan.kind]  # fmt: skip
        for name, values in work(sums, seen).items():
            rows[name][chosen] = values
        return rows

    def _empty_rows(self, count: int) -> dict[str, NDArray[Any]]:
        """Return what is said of images that take no part."""
        k = self.plan.maps
        shapes: dict[str, dict[str, tuple[int, ...]]] = {
            WHOLE: {},
            FIT: {"cross": (), "norm": ()},
            SPREAD: {"place": (k,), "told": (k,)},
            SORT: {"class_posterior": (k,), "log_likelihood": ()},
            TRIAL: {
                "cross": (k,), "gram": (k, k), "other_cross": (k,), "other_gram": (k, k),
            },
        }  # fmt: skip
        made = {
            name: np.full((count, *shape), np.nan) for name, shape in shapes[self.plan.kind].items()
        }
        if self.plan.kind == SORT:
            return made | {"class_index": np.full(count, -1, np.int32)}
        return made

    def _look(self, batch: ParticleBatch, chosen: NDArray[np.int64]) -> _Seen:
        """Move images to the origin and weigh them, at their contrast."""
        plan, state = self.plan, batch.state
        count = batch.band.size(max(plan.radius, plan.insert_radius))
        images = take_rows(batch.images, chosen)[:, :count]
        ctf = take_rows(batch.ctf, chosen)[:, :count]
        pixels = state["shift"][chosen] / plan.spec.crop_pixel_size
        phases = shift_phases(batch.band, like(pixels, reference=images), count=count)
        noise = coefficient_noise(self.model.of_half(self.task.half), batch, chosen)[:, :count]
        y, c2 = weigh_images(images * phases, ctf, noise)
        contrast = like(state["scale"][chosen].astype(np.float32)[:, None], reference=images)
        return _Seen(batch, chosen, state["pose"][chosen], y * contrast, c2 * (contrast * contrast))

    def _slices(self, seen: _Seen, which: Sequence[Reference], poses: NDArray[np.float64]) -> Any:
        """Slice maps at the poses of images: (n, maps, f) complex64."""
        count = seen.batch.band.size(self.plan.radius)
        xp = namespace(seen.y)
        made = [project(each, poses, seen.batch.band, count=count) for each in which]
        return xp.stack(made, axis=1)

    def _residual(self, seen: _Seen) -> Any:
        """Take the consensus off images: y of what is left, (n, f) complex64."""
        (shared,) = (self._slices(seen, self.references[:1], seen.poses)[:, i] for i in range(1))
        xp, count = namespace(seen.y), int(shared.shape[1])
        inner = seen.y[:, :count] - xp.conj(shared) * seen.c2[:, :count]
        return xp.concat([inner, seen.y[:, count:]], axis=1)

    def _compared(
        self, seen: _Seen, left: Any, poses: NDArray[np.float64], *, beside: Any = None
    ) -> Overlap:
        """Compare what is left of images with the parts at poses; what lies beside may vary."""
        count = seen.batch.band.size(self.plan.radius)
        slices = self._slices(seen, self.references[1:], poses)
        if beside is None:
            return overlap(left[:, :count], seen.c2[:, :count], slices)
        both = namespace(left).concat([slices, beside], axis=1)
        found = overlap(left[:, :count], seen.c2[:, :count], both)
        return freed(found, self.plan.maps, 0.5 / np.array(ERRORS) ** 2)

    def _errors(self, seen: _Seen) -> Any:
        """Slices by which the consensus differs for small errors of pose and contrast: (n, 6, f).

        For a turn by a radian about x, y and z of the image, a shift by a pixel along x and y, and
        the contrast.
        """
        band, count = seen.batch.band, seen.batch.band.size(self.plan.radius)
        plain = self._slices(seen, self.references[:1], seen.poses)[:, 0]
        made = []
        for axis in range(3):
            turn = Rotation.from_rotvec(TURN * np.eye(3)[axis]).as_matrix()
            turned = self._slices(seen, self.references[:1], turn @ seen.poses)[:, 0]
            made.append((turned - plain) / TURN)
        xp = namespace(plain)
        for line in (band.kx, band.ky):
            step = (2.0j * np.pi / band.box * line[:count]).astype(np.complex64)
            made.append(plain * like(step, reference=plain))
        return xp.stack([*made, plain], axis=1)

    def _of_others(self, seen: _Seen, left: Any) -> Overlap:
        """Compare what is left of images with the parts, less what they put there themselves."""
        stake = self.model.of_half(self.task.half)["stake"]
        before = np.asarray(seen.batch.state["before"][seen.rows], np.float64)
        found = self._compared(seen, left, seen.poses)
        return found._replace(cross=found.cross - before * (self._power(seen) @ stake.T))

    def _whole(self, sums: Sums, seen: _Seen) -> Rows:
        """Add images up as they are, by their weight."""
        batch, plan = seen.batch, self.plan
        weight = batch.state["weight"][seen.rows]
        self._insert(sums, seen, seen.y, weight[:, None], weight[:, None])
        add_exact(sums["power"], weight[None] @ self._power(seen))
        add_exact(sums["figures"], Figures(weight.sum()))
        add_exact(sums["occupancy"], np.full(max(plan.maps, 1), weight.sum()))
        return {}

    @staticmethod
    def _power(seen: _Seen) -> NDArray[np.float64]:
        """Mean of c2 in each shell of each image, (n, radius + 1) float64."""
        return np.asarray(to_host(shell_mean(seen.c2, seen.batch.band)), np.float64)

    def _fit(self, sums: Sums, seen: _Seen) -> Rows:
        """Compare images with the consensus: for contrast, and for the noise once it is known."""
        plan, batch = self.plan, seen.batch
        band, xp = batch.band, namespace(seen.y)
        count = band.size(plan.radius)
        slices = self._slices(seen, self.references[:1], seen.poses)[:, 0]
        cross = xp.real(seen.y[:, :count] * slices)
        norm = seen.c2[:, :count] * (xp.real(slices) ** 2 + xp.imag(slices) ** 2)
        if plan.update_noise:
            terms = (shell_mean(cross, band), shell_mean(norm, band))
            one = np.ones(seen.rows.size, np.float32)  # the contrast is in both already
            add_unexplained(
                sums, (batch, seen.rows), plan=plan, model=self.model.of_half(self.task.half),
                terms=terms, scale=one,
            )  # fmt: skip
        add_exact(sums["figures"], Figures(seen.rows.size))
        return {
            "cross": to_host(xp.sum(cross, axis=1)).astype(np.float64),
            "norm": to_host(xp.sum(norm, axis=1)).astype(np.float64),
        }

    def _spread(self, sums: Sums, seen: _Seen) -> Rows:
        """Place images along the components; add them up by their places."""
        left = self._residual(seen)
        if len(self.references) == 1:  # nothing is known yet: places drawn at random
            place = np.asarray(seen.batch.state["draw"][seen.rows], np.float64)
            told = np.ones_like(place)
        else:
            found = self._of_others(seen, left)
            place, told = coordinates(found), reliability(found)
        self._insert(sums, seen, left, place, np.ones_like(place))
        add_exact(sums["power"], np.ones_like(place).T @ self._power(seen))
        add_exact(sums["figures"], Figures(seen.rows.size))
        return {"place": place, "told": told}

    def _sort(self, sums: Sums, seen: _Seen) -> Rows:
        """Sort images into the classes; add them up by their posterior."""
        left = self._residual(seen)
        prior = class_prior(self.model.share)  # of both halves: they call one thing by one name
        found = class_weights(self._of_others(seen, left), prior)
        best = found.posterior.argmax(axis=1).astype(np.int32)
        weight = np.where(found.posterior < FAINT, 0.0, found.posterior)
        self._insert(sums, seen, left, weight, weight)
        add_exact(sums["occupancy"], found.posterior.sum(axis=0))
        add_exact(sums["power"], weight.T @ self._power(seen))
        changed = float((best != seen.batch.state["class_index"][seen.rows]).sum())
        figures = Figures(
            seen.rows.size, found.log_likelihood.sum(), changed, found.posterior.max(axis=1).sum()
        )
        add_exact(sums["figures"], figures)
        return {
            "class_posterior": found.posterior,
            "log_likelihood": found.log_likelihood,
            "class_index": best,
        }

    def _trial(self, sums: Sums, seen: _Seen) -> Rows:
        """Compare images with the classes at their poses, and at those of others."""
        left, errors = self._residual(seen), self._errors(seen)
        own, other = (
            self._compared(seen, left, poses, beside=errors)
            for poses in (seen.poses, seen.batch.state["other_pose"][seen.rows])
        )
        add_exact(sums["figures"], Figures(seen.rows.size))
        return {
            "cross": own.cross, "gram": own.gram,
            "other_cross": other.cross, "other_gram": other.gram,
        }  # fmt: skip

    def _insert(
        self,
        sums: Sums,
        seen: _Seen,
        y: Any,
        weight: NDArray[np.float64],
        power: NDArray[np.float64],
    ) -> None:
        """Add images to the grids of maps, with a weight (n, k) of each and that of its power."""
        plan, band, xp = self.plan, seen.batch.band, namespace(y)
        if not plan.adds:
            return
        if "map" not in sums:
            where = 2 * plan.insert_radius + 1
            sums["map"] = grid.zeros((plan.maps,), where, dims=3, reference=y, fixed=True)
        count = band.size(plan.insert_radius)
        frames = frames_of(seen.poses, padding=2)
        k = tuple(like(line[:count].astype(np.float32), reference=y) for line in (band.kx, band.ky))
        straight = xp.stack([xp.real(y), -xp.imag(y)], axis=-1)[:, :count]  # conj(y)
        for number in range(plan.maps):
            some = np.flatnonzero((weight[:, number] != 0.0) | (power[:, number] != 0.0))
            if not some.size:
                continue
            own, its = (
                like(values[some, number].astype(np.float32), reference=y)
                for values in (weight, power)
            )
            insert_slices(
                sums["map"][number],
                like(frames[some], reference=y),
                take_rows(straight, some) * own[:, None, None],
                power=take_rows(seen.c2, some)[:, :count] * its[:, None],
                k=k,
                scale=self.scale,
            )
        strongest = np.maximum(np.abs(weight).max(axis=1), power.max(axis=1))
        largest = largest_entries(y[:, :count], seen.c2[:, :count]) * strongest
        add_exact(sums["largest"], largest.sum())

    def finish(self, sums: Sums) -> Model:
        """Leave what is known of the first half; with the second, make the next model."""
        task, plan = self.task, self.plan
        check_room(task, sums, self.scale)
        if plan.kind == TRIAL or (plan.kind == SPREAD and not plan.adds):
            return {}  # the rows are what is asked for
        if plan.kind == FIT:
            found = {name: exact_value(places) for name, places in sums.items()}
            return self._next_noise(found)
        own = settle(plan, sums, self.scale)
        if task.before is None:
            return own
        solve = {WHOLE: solve_whole, SPREAD: solve_components, SORT: next_parts}[plan.kind]
        return solve(plan, load(task.before), own, self.model)

    def _next_noise(self, found: dict[str, Any]) -> Model:
        """Make the noise of the half of what the consensus leaves; keep that of the first."""
        task, plan = self.task, self.plan
        known = self.model.of_half(task.half)
        made = dict(known) | (next_noise(plan, known, found) if plan.update_noise else {})
        if task.before is None:
            return made
        first = load(task.before)
        nuisance = {name: np.stack([first[name], values]) for name, values in made.items()}
        return replace(self.model, nuisance=nuisance).arrays()
