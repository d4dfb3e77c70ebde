"""Search over references, poses and shifts: coarse everywhere, then finer where it matters.

The coarse lattice is scored for every reference at a small band radius by matrix products; cells
lead to finer ones level by level while the radius grows, and after each level those that can no
longer hold the best cell are dropped (`dspa.ops.poses.bound`). The lattice says what cells are: in
the plane for class averages, over all rotations for maps. Punjani et al. 2017,
https://doi.org/10.1038/nmeth.4169, describe branch and bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import is_host, like, namespace, to_host
from dspa.geometry.band import part_of_band
from dspa.ops.poses.bank import (
    coarse_bank,
    coarse_blocks,
    coarse_scores,
    contrast_square,
    profiled,
)
from dspa.ops.poses.bound import measure_bound
from dspa.ops.poses.cells import (
    Candidates,
    best_poses,
    best_scores,
    crowded,
    kth_largest,
    limited,
    share_room,
)
from dspa.ops.poses.everywhere import cells_everywhere
from dspa.ops.poses.plane import prepare_images
from dspa.ops.poses.score import cut_slices, score_candidates, split
from dspa.ops.sums.project import prepare_volume

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dspa.ops.poses.anchor import Anchors
    from dspa.ops.poses.bank import CoarseBank
    from dspa.ops.poses.bound import Pruning, SearchBound
    from dspa.ops.poses.lattice import Lattice


@dataclass(frozen=True, eq=False)
class Found:
    """What a search leaves.

    Attributes
    ----------
    cells : Candidates
        On the finest lattice, sorted by image and member. They and their scores are on the host.
    scores : (pairs,) float32
        Log-likelihood of each, up to a constant of the image.
    norms : (pairs,) float32
        Score expected of a perfect fit.
    prior : (pairs,) float32
        Log-prior of member and shift; not in the scores.
    scored : int
        Cells that were scored at the last radius.
    capped : int
        Images that had more survivors than they were allowed, at any level.
    products : int
        Coefficients of cells that were compared with an image, over all levels.
    """

    cells: Candidates
    scores: NDArray[np.float32]
    norms: NDArray[np.float32]
    prior: NDArray[np.float32]
    scored: int
    capped: int
    products: int


@dataclass(frozen=True, eq=False)
class Searcher:
    """References, prepared for the search.

    Attributes
    ----------
    lattice : Lattice
    members : int
        Number of references.
    bank : CoarseBank
    bound : SearchBound
    grids : tuple of (members, ...) float32 arrays
        Transforms of the references, for each level to its radius.
    prior : (members,) float32
        Log-prior of each member: part of what cells are chosen by, not of the scores returned.
    anchors : Anchors, optional
        Poses that the images are thought to be near: a prior, too.
    """

    lattice: Any
    members: int
    bank: CoarseBank
    bound: SearchBound
    grids: tuple[Any, ...]
    prior: Any
    anchors: Anchors | None = None

    @property
    def last(self) -> int:
        """Number of the finest level."""
        return len(self.grids) - 1

    def count(self, level: int) -> int:
        """Count the coefficients that a level sees."""
        return int(self.lattice.band.size(self.lattice.radii[level]))

    def column(self, index: Any) -> tuple[Any, Any]:
        """Member and pose of coarse poses in the order of the scores of the bank."""
        xp = namespace(index)
        turn, column = divmod(index, self.bank.poses)
        member, place = divmod(column, self.lattice.half_turn)
        pose = like(self.lattice.coarse_poses(), reference=index)[place]
        pose = xp.where(turn > 0, self.lattice.opposite(pose), pose)
        return xp.astype(member, xp.int32), pose

    def slices(self, cells: Candidates, *, level: int, count: int) -> Any:
        """Cut the slice of every cell: (cells, 2, count) float32."""
        frames = self.lattice.frames(level, cells.pose)
        return cut_slices(
            self.grids[level], cells.member, frames, band=self.lattice.band, count=count
        )

    def score(
        self,
        level: int,
        cells: Candidates,
        *,
        planes: Any,
        c2: Any,
        run: tuple[int, int] | None = None,
    ) -> tuple[Any, Any]:
        """Cross term and norm of cells at a level.

        Parameters
        ----------
        level : int
        cells : Candidates
        planes : (n, 2, F) float32
            Y of the images.
        c2 : (n, F) float32
        run : (int, int), optional
            First and last coefficient compared; by default all to the radius of the level.

        Returns
        -------
        cross, norm : (pairs,) float32
        """
        lattice, xp = self.lattice, namespace(planes)
        first, last = run or (0, self.count(level))
        band = lattice.band
        phases, row = lattice.phases(level, cells.shift)
        if first:
            band = part_of_band(band, first, last)
            planes, c2, phases = (
                xp.asarray(values[..., first:last], order="C", copy=True)
                for values in (planes, c2, phases)
            )

        def cut(member: Any, pose: Any) -> Any:
            frames = lattice.frames(level, pose)
            return cut_slices(self.grids[level], member, frames, band=band, count=last - first)

        return score_candidates(
            cut,
            cells,
            poses=lattice.poses(level),
            count=last - first,
            phases=phases,
            row=row,
            y=planes,
            c2=c2,
        )

    def log_prior(self, level: int, cells: Candidates) -> Any:
        """Log-prior of cells, (pairs,) float32."""
        shift = self.lattice.log_prior(level, cells.shift)
        known = self.prior[cells.member]
        if self.anchors is not None:
            known = known + self.anchors.log_prior(self.lattice, level, cells)
        return known if shift is None else known + shift


@dataclass(eq=False)
class _Made:
    """What `Searchers` have made so far, by the number of the set."""

    searchers: dict[int, Searcher] = field(default_factory=dict)
    beside: Searchers | None = None

    def clear(self) -> None:
        """Drop it all."""
        self.searchers.clear()
        self.beside = None


@dataclass(frozen=True, eq=False)
class Searchers:
    """Searchers of several sets of references, each made when it is first asked for.

    A worker often meets images of some sets only. What travels is what they are made from.

    Attributes
    ----------
    references : sequence of (members, y, x) or (members, z, y, x) float32
        Images or densities of each set.
    lattice : Lattice
    prior : (members,) float, optional
        Log-prior of each member; 0 by default.
    profile : bool
        Score with the contrast that fits each cell best.
    local : bool
        Searches begin from given cells: no coarse bank is made.
    """

    references: Any
    lattice: Lattice
    prior: NDArray[Any] | None = None
    profile: bool = False
    local: bool = False
    _made: _Made = field(default_factory=_Made, repr=False)

    def __len__(self) -> int:
        """Return the number of sets."""
        return len(self.references)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without what has been made."""
        return Searchers, (self.references, self.lattice, self.prior, self.profile, self.local)

    def __getitem__(self, number: int) -> Searcher:
        """Searcher of one set."""
        if number not in self._made.searchers:
            self._made.searchers[number] = self._make(number)
        return self._made.searchers[number]

    def forget(self) -> None:
        """Drop what has been made; it is made again if it is asked for."""
        self._made.clear()

    def beside(self, array: Any) -> Searchers:
        """Those that live where an array lives: these, or others to which the references went."""
        if is_host(array):
            return self
        if self._made.beside is None:
            references = _Moved(self.references, array[:0])
            self._made.beside = replace(self, references=references, _made=_Made())
        return self._made.beside

    def _make(self, number: int) -> Searcher:
        lattice = self.lattice
        grids = self._grids(number)
        members = int(grids[0].shape[0])
        prior = np.zeros(members) if self.prior is None else np.asarray(self.prior)
        # Each for itself: sets are parts of one model and leave open nearly the same, but who meets
        # images of one set alone would prepare another for this.
        bound = measure_bound(grids[-1], lattice)
        bank = self._bank(grids[0], prior)
        log_prior = like(prior.astype(np.float32), reference=grids[0])
        return Searcher(lattice, members, bank, bound, grids, log_prior)

    def _bank(self, grids: Any, prior: NDArray[Any]) -> CoarseBank:
        """Cut the coarse slices; none for local searches, which need the profile alone."""
        lattice, members = self.lattice, int(grids.shape[0])
        half = 0 if self.local else lattice.half_turn
        shifts = like(lattice.coarse_shifts()[: None if half else 0], reference=grids)
        count = lattice.band.size(lattice.radii[0])
        pose = like(np.tile(lattice.coarse_poses()[:half], members), reference=grids)
        member = np.repeat(np.arange(members), half)
        slices = cut_slices(grids, member, lattice.frames(0, pose), band=lattice.band, count=count)
        planes, row = lattice.phases(0, shifts)
        planes = planes[row][..., :count]
        columns = like(np.repeat(prior, half).astype(np.float32), reference=grids)
        return coarse_bank(
            slices,
            planes[:, 0] + 1j * planes[:, 1],
            columns,
            shift_prior=lattice.log_prior(0, shifts),
            profile=self.profile,
        )

    def _grids(self, number: int) -> tuple[Any, ...]:
        """Transform the references of a set for every level."""
        densities, band = self.references[number], self.lattice.band
        xp, radii = namespace(densities), self.lattice.radii
        if densities.ndim == 3:
            return (prepare_images(densities, band),) * len(radii)
        made = {
            radius: xp.stack(
                [prepare_volume(each, int(np.ceil(radius))).grid for each in densities]
            )
            for radius in set(radii)
        }
        return tuple(made[radius] for radius in radii)


@dataclass(frozen=True, eq=False)
class _Moved:
    """References that go where an array lives when they are asked for."""

    references: Any
    beside: Any

    def __len__(self) -> int:
        return len(self.references)

    def __getitem__(self, number: int) -> Any:
        return like(self.references[number], reference=self.beside)


def search(
    searcher: Searcher,
    y: Any,
    c2: Any,
    *,
    pruning: Pruning,
    given: Candidates | None = None,
    watch: Callable[[int, Candidates], None] | None = None,
) -> Found:
    """Find the cells that matter for each image and score them at the finest level.

    Parameters
    ----------
    searcher : Searcher
    y : (n, F) complex64
        conj(X) CTF / sigma^2.
    c2 : (n, F) float32
    pruning : Pruning
    given : Candidates, optional
        Cells of level 0 to begin from (a local search); every image has one.
    watch : callable, optional
        Told of each level from the second on, and of the cells that are scored there.
    """
    xp, planes = namespace(y), split(y)
    cells, capped, products, begin = _first_cells(searcher, y, c2, pruning, given)
    for level in range(begin, searcher.last + 1):
        if watch and level:
            watch(level, cells)
        scores, norms = _level_scores(searcher, level, cells, planes=planes, c2=c2)
        totals = scores + searcher.log_prior(level, cells)
        products += cells.size * searcher.count(level)
        scored = cells.size
        if level < searcher.last:
            found = (cells, totals, norms)
            chosen, over = _survivors(searcher, level, found, c2=c2, pruning=pruning)
            cells, capped = searcher.lattice.finer(cells.take(chosen), level), capped | over
    likely = xp.nonzero(totals >= best_scores(cells.image, totals) - pruning.within)[0]
    most = pruning.most_poses(searcher.last)
    if most is not None:
        likely = likely[best_poses(cells.take(likely), totals[likely], most)]
    kept = cells.take(likely)
    # What is left is short; the posterior of each image is made on the host.
    return Found(
        cells=Candidates(*(to_host(values) for values in vars(kept).values())),
        scores=to_host(scores[likely]),
        norms=to_host(norms[likely]),
        prior=to_host(searcher.log_prior(searcher.last, kept)),
        scored=scored,
        capped=int(xp.sum(xp.astype(capped, xp.int32))),
        products=products,
    )


def _first_cells(
    searcher: Searcher, y: Any, c2: Any, pruning: Pruning, given: Candidates | None
) -> tuple[Candidates, Any, int, int]:
    """Return the cells a search begins with, images cut short, products, the level of the cells.

    Cells of a lattice that was scored everywhere have been chosen, block by block: what is returned
    are their children.
    """
    if given is not None:
        none = namespace(y).zeros(int(y.shape[0]), dtype=namespace(y).bool)
        return given.beside(y), none, 0, 0
    level, last = pruning.whole, searcher.last
    if level:
        cells, capped = cells_everywhere(searcher, level, y, c2, pruning=pruning)
        every = searcher.members * searcher.lattice.count_cells(level)
    else:
        cells, capped = _coarse_cells(searcher, y, c2, pruning)
        every = 2 * searcher.bank.poses * searcher.bank.shifts
    products = int(y.shape[0]) * every * searcher.count(level)
    if level == last:
        return cells, capped, products, last
    return searcher.lattice.finer(cells, level), capped, products, level + 1


def _level_scores(
    searcher: Searcher, level: int, cells: Candidates, *, planes: Any, c2: Any
) -> tuple[Any, Any]:
    """Log-likelihoods and norms of cells at a level, (pairs,) float32 each."""
    cross, norms = searcher.score(level, cells, planes=planes, c2=c2)
    if searcher.bank.profile:
        return profiled(cross, norms), norms
    return 2.0 * cross - norms, norms


def _coarse_cells(searcher: Searcher, y: Any, c2: Any, pruning: Pruning) -> tuple[Candidates, Any]:
    """Cells of the coarse lattice that reach the bound, in blocks that stay in the cache.

    A reference of nothing scores 0 everywhere, so all its cells may tie: the limit on survivors is
    applied to every block.
    """
    xp, bank = namespace(y), searcher.bank
    half, most = searcher.lattice.half_turn, pruning.most_poses(0)
    parts, capped = [], xp.zeros(int(y.shape[0]), dtype=xp.bool)
    for rows, moved, room in coarse_blocks(bank, y):
        scores = coarse_scores(moved, c2[rows], bank, room=room)
        # Poses first, each with its best shift: column by column, the two half turns side by side.
        best = xp.permute_dims(xp.max(scores, axis=1), (0, 2, 1))
        top = xp.max(best, axis=(1, 2))
        contrast = None
        if bank.profile:
            column = xp.argmax(xp.max(best, axis=2), axis=1)
            norm = c2[rows, : bank.count] @ bank.norm
            contrast = contrast_square(top, norm[xp.arange(int(top.shape[0])), column])
        slack = searcher.bound.slack(0, c2[rows], **pruning.bound, contrast=contrast)
        floor = top[:, None] - xp.repeat(slack, half, axis=1)
        least = floor[:, :, None]
        if most is not None and most < 2 * bank.poses:
            capped[rows] = xp.sum(best >= least, axis=(1, 2)) > most
            flat = xp.reshape(best, (int(best.shape[0]), -1))
            least = xp.maximum(least, kth_largest(flat, most)[:, None, None])
        image, column, turn = xp.nonzero(best >= least)
        shifted = scores[image, :, turn, column]  # (poses, shifts)
        pose, shift = xp.nonzero(shifted >= floor[image, column][:, None])
        found, image, column = shifted[pose, shift], image[pose], column[pose]
        room_left = slack[image, column // half]
        kept, over = limited(image, found + room_left, pruning.most_cells)
        capped[rows.start + over] = True
        column = column + turn[pose] * bank.poses
        behind = (found - top[image]) / xp.maximum(room_left, 1e-30)  # an image of zeros has none
        parts.append((image[kept] + rows.start, shift[kept], column[kept], behind[kept]))
    image, shift, column, behind = (xp.concat([part[i] for part in parts]) for i in range(4))
    kept, over = share_room(image, behind, pruning.room(int(y.shape[0])))
    capped[over] = True
    image, shift, column = image[kept], shift[kept], column[kept]
    where = like(searcher.lattice.coarse_shifts(), reference=y)[shift]
    member, pose = searcher.column(column)
    return Candidates(xp.astype(image, xp.int32), member, pose, where), capped


def _survivors(
    searcher: Searcher,
    level: int,
    scored: tuple[Candidates, Any, Any],
    *,
    c2: Any,
    pruning: Pruning,
) -> tuple[Any, Any]:
    """Choose the cells whose bound reaches the best; mark the images that had too many."""
    xp = namespace(c2)
    cells, scores, norms = scored
    top, contrast = best_scores(cells.image, scores), None
    if searcher.bank.profile:
        # The reference has no grey scale: what a cell leaves open is as large as the image says.
        contrast = xp.zeros(int(c2.shape[0]), dtype=xp.float32)
        best = xp.nonzero(scores >= top)[0]
        contrast[cells.image[best]] = contrast_square(scores[best], norms[best])
    slack = searcher.bound.slack(level, c2, **pruning.bound, contrast=contrast)
    reach = scores + slack[cells.image, cells.member]
    chosen = xp.nonzero(reach >= top)[0]
    most = pruning.most_poses(level)
    over = xp.zeros(int(c2.shape[0]), dtype=xp.bool)
    if most is not None:
        within = cells.take(chosen)
        over[crowded(within.image[within.poses()[:-1]], most)] = True
        chosen = chosen[best_poses(within, scores[chosen], most)]
    kept, more = limited(cells.image[chosen], reach[chosen], pruning.most_cells)
    over[more] = True
    chosen = chosen[kept]
    behind = ((scores - top) / xp.maximum(slack[cells.image, cells.member], 1e-30))[chosen]
    kept, more = share_room(cells.image[chosen], behind, pruning.room(int(c2.shape[0])))
    over[more] = True
    return chosen[kept], over
