"""Scores of images against rotated and shifted class averages.

The log-likelihood of class c at angle a and shift t, up to a constant of the image, is

    score(c, a, t) = 2 Re sum_k Y(k) phase_t(k) A_c(R(a)^T k) - sum_k C2(k) |A_c(R(a)^T k)|^2,

with Y = conj(X) CTF / sigma^2 and C2 = CTF^2 / sigma^2 on the half-plane band (the factor 2 is
the other half). Over a whole grid of angles and shifts it is two matrix products (`coarse_scores`);
where every image has its own few candidates, the kernel of ``dspa.kernels.score2d`` gathers
(`score_candidates`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import fft, is_host, like, namespace
from dspa.device.launcher import launch
from dspa.kernels.insert2d import INSERT2D
from dspa.kernels.score2d import SCORE2D
from dspa.kernels.slice2d import SLICE2D
from dspa.ops.sums.backproject import fixed_point_scale

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.geometry.band import Band

SLICE_BYTES = 48 << 20  # slices held at a time
LANES = 128  # at least as many as the launcher gives an item on a GPU


def rotation_table(angles: Any) -> Any:
    """Cosine and sine of angles, doubled for the doubled grid: (..., 2) float32."""
    xp = namespace(angles)
    return xp.astype(2.0 * xp.stack([xp.cos(angles), xp.sin(angles)], axis=-1), xp.float32)


def gridding(box: int) -> NDArray[np.float32]:
    """Return what bilinear interpolation on the doubled grid does to an image: (box, box)."""
    x = (np.arange(box) - box // 2) / (2.0 * box)
    line = np.sinc(x) ** 2
    return (line[:, None] * line[None, :]).astype(np.float32)


def prepare_references(averages: Any, band: Band) -> Any:
    """Transform class averages onto the doubled grid that rotated slices are read from.

    Parameters
    ----------
    averages : (classes, y, x) float32
        Images of ``band.box`` pixels.
    band : Band

    Returns
    -------
    grids : (classes, 2 limit + 1, limit + 1, 2) float32
        Real and imaginary part at x >= 0; limit = 2 radius + 1; row ``limit`` is y = 0. In the
        scale of `images_to_band`.
    """
    xp = namespace(averages)
    box, limit = band.box, 2 * band.radius + 1
    low = box - box // 2  # keeps centre on centre
    padded = xp.zeros((averages.shape[0], 2 * box, 2 * box), dtype=xp.float32)
    padded[:, low : low + box, low : low + box] = averages / like(gridding(box), reference=averages)
    # Rolling the centre to the origin is ifftshift.
    spectrum = fft(padded).rfftn(xp.roll(padded, (-box, -box), axis=(1, 2)), axes=(1, 2)) / box
    rows = xp.asarray(np.arange(-limit, limit + 1) % (2 * box))
    part = xp.take(spectrum, rows, axis=1)[:, :, : limit + 1]
    return xp.astype(xp.stack([xp.real(part), xp.imag(part)], axis=-1), xp.float32)


def rotated_slices(grids: Any, angles: Any, band: Band, *, count: int) -> Any:
    """Read every class at every angle: (classes, angles, count) complex64, by array calls."""
    xp = namespace(grids)
    limit = grids.shape[2] - 1
    turn = rotation_table(angles)[:, None, :]
    kx = like(band.kx[:count].astype(np.float32), reference=grids)
    ky = like(band.ky[:count].astype(np.float32), reference=grids)
    x = turn[..., 0] * kx - turn[..., 1] * ky  # (angles, count)
    y = turn[..., 1] * kx + turn[..., 0] * ky
    sign = xp.where(x < 0, -1.0, 1.0)
    x, y = x * sign, y * sign + limit
    i, j = xp.astype(xp.floor(x), xp.int64), xp.astype(xp.floor(y), xp.int64)
    fx, fy = x - i, y - j
    flat = grids[..., 0] + 1j * grids[..., 1]
    flat = xp.reshape(flat, (grids.shape[0], -1))
    width = limit + 1

    def corner(dy: int, dx: int, weight: Any) -> Any:
        place = xp.reshape((j + dy) * width + i + dx, (-1,))
        return xp.reshape(xp.take(flat, place, axis=1), (-1, *x.shape)) * weight

    value = (
        corner(0, 0, (1 - fx) * (1 - fy))
        + corner(0, 1, fx * (1 - fy))
        + corner(1, 0, (1 - fx) * fy)
        + corner(1, 1, fx * fy)
    )
    return xp.astype(xp.real(value) + 1j * sign * xp.imag(value), xp.complex64)


def split(values: Any) -> Any:
    """Complex (..., f) to planes (..., 2, f) float32: what the kernels vectorise over."""
    xp = namespace(values)
    return xp.astype(xp.stack([xp.real(values), xp.imag(values)], axis=-2), xp.float32)


@dataclass(frozen=True, eq=False)
class CoarseBank:
    """Class averages at half of the coarse angles, laid out for matrix products.

    A slice turned by pi is the conjugate of the slice, because averages are real. So the
    products of the real parts and those of the imaginary parts, each once, give two poses:
    their difference that at an angle, their sum that at the angle plus pi.

    Attributes
    ----------
    real, imaginary : (f, classes * angles) float32
        Parts of 2 A; angles from 0 to pi.
    norm : (f, classes * angles) float32
        |A|^2.
    phases : (shifts, f) complex64
    prior : (classes * angles,) float32
        Log-prior of each column.
    """

    real: Any
    imaginary: Any
    norm: Any
    phases: Any
    prior: Any

    @property
    def count(self) -> int:
        """Coefficients used, f."""
        return int(self.norm.shape[0])

    @property
    def poses(self) -> int:
        """Number of columns: poses up to a turn by pi."""
        return int(self.norm.shape[1])


def coarse_bank(slices: Any, phases: Any, prior: Any) -> CoarseBank:
    """Lay out slices for `coarse_scores`.

    Parameters
    ----------
    slices : (poses, 2, f) float32
        From `cut_slices`: classes, then angles from 0 to pi.
    phases : (shifts, f) complex64
    prior : (poses,) float32
    """
    xp = namespace(slices)
    real, imaginary = xp.asarray(slices[:, 0].T, copy=True), xp.asarray(slices[:, 1].T, copy=True)
    norm = real * real + imaginary * imaginary
    real, imaginary = (xp.asarray(2.0 * part, order="C") for part in (real, imaginary))
    return CoarseBank(real, imaginary, xp.asarray(norm, order="C"), phases, prior)


def moved_images(y: Any, bank: CoarseBank) -> Any:
    """Shift images by every coarse shift.

    Parameters
    ----------
    y : (n, F) complex64
        Its first ``bank.count`` coefficients are used.
    bank : CoarseBank

    Returns
    -------
    moved : (2, n * shifts, f) float32
        Real and imaginary parts.
    """
    xp = namespace(y)
    moved = xp.reshape(y[:, None, : bank.count] * bank.phases[None], (-1, bank.count))
    return xp.stack([xp.real(moved), xp.imag(moved)])


@dataclass(frozen=True, eq=False)
class CoarseRoom:
    """Room for the coarse scores of a block of images, used again by every block.

    Fresh arrays of this size come from the system page by page, at about what the products cost.

    Attributes
    ----------
    even, odd : (n, shifts, poses) float32
    scores : (n, shifts, 2, poses) float32
    """

    even: Any
    odd: Any
    scores: Any

    def first(self, count: int) -> CoarseRoom:
        """Room for the first ``count`` images."""
        return CoarseRoom(self.even[:count], self.odd[:count], self.scores[:count])


def coarse_room(bank: CoarseBank, count: int) -> CoarseRoom:
    """Make room for ``count`` images."""
    xp, shape = namespace(bank.norm), (count, int(bank.phases.shape[0]))
    even, odd = (xp.empty((*shape, bank.poses), dtype=xp.float32) for _ in range(2))
    return CoarseRoom(even, odd, xp.empty((*shape, 2, bank.poses), dtype=xp.float32))


def coarse_scores(moved: Any, c2: Any, bank: CoarseBank, *, room: CoarseRoom | None = None) -> Any:
    """Score images against the whole coarse grid by matrix products.

    Parameters
    ----------
    moved : (2, n * shifts, f) float32
        From `moved_images`.
    c2 : (n, F) float32
        Its first f coefficients are used.
    bank : CoarseBank
    room : CoarseRoom, optional
        Of n images; its ``scores`` are returned.

    Returns
    -------
    scores : (n, shifts, 2, poses) float32
        Poses run over classes, then angles from 0 to pi; the axis before them adds pi or not.
    """
    xp = namespace(moved)
    room = coarse_room(bank, int(c2.shape[0])) if room is None else room
    xp.matmul(moved[0], bank.real, out=xp.reshape(room.even, (-1, bank.poses)))
    xp.matmul(moved[1], bank.imaginary, out=xp.reshape(room.odd, (-1, bank.poses)))
    even, odd = room.even, room.odd
    even -= (c2[:, : bank.count] @ bank.norm - bank.prior)[:, None, :]
    xp.subtract(even, odd, out=room.scores[:, :, 0])
    xp.add(even, odd, out=room.scores[:, :, 1])
    return room.scores


@dataclass(frozen=True, eq=False)
class Candidates:
    """Cells of the fine grid to score, sorted by image, class, angle, shift.

    They stay on the device of the images while a search goes on; what it leaves is on the host.

    Attributes
    ----------
    image, member, angle, shift : (pairs,) int32
        Row of the batch, class, index of the fine angle, row of the phase table.
    """

    image: Any
    member: Any
    angle: Any
    shift: Any

    @property
    def size(self) -> int:
        """Number of cells."""
        return int(self.image.size)

    def beside(self, array: Any) -> Candidates:
        """Bring them to where an array lives."""
        cells = (self.image, self.member, self.angle, self.shift)
        return Candidates(*(like(values, reference=array) for values in cells))

    def take(self, chosen: Any) -> Candidates:
        """Take some cells by index array, mask or slice."""
        return Candidates(
            self.image[chosen], self.member[chosen], self.angle[chosen], self.shift[chosen]
        )

    def poses(self) -> Any:
        """Where each run of cells that share image, class and angle begins, and the end."""
        return run_starts(self.image, self.member, self.angle)


def run_starts(*keys: Any) -> Any:
    """Return where runs of equal keys begin, and the total length: (runs + 1,) int32."""
    xp = namespace(*keys)
    change = xp.ones(int(keys[0].shape[0]) + 1, dtype=xp.bool)
    change[1:-1] = False
    for key in keys:
        change[1:-1] |= key[1:] != key[:-1]
    return xp.astype(xp.nonzero(change)[0], xp.int32)


def score_candidates(
    grids: Any,
    cells: Candidates,
    turns: Any,
    *,
    phases: Any,
    y: Any,
    c2: Any,
    band: Band,
    count: int | None = None,
) -> tuple[Any, Any]:
    """Score every candidate cell by the gather kernel.

    Parameters
    ----------
    grids : (classes, 2 limit + 1, limit + 1, 2) float32
        From `prepare_references`.
    cells : Candidates
    turns : (fine angles, 2) float32
        From `rotation_table`.
    phases : (fine shifts, 2, f) float32
    y : (n, 2, F) float32
    c2 : (n, F) float32
    band : Band
    count : int, optional
        Compare the first ``count`` coefficients; by default f.

    Returns
    -------
    scores : (pairs,) float32
    norms : (pairs,) float32
        Their terms in |A|^2: what the score of a perfect fit is expected to be. Both lie with the
        images.
    """
    # Images share poses: each slice is read once, for a block of poses at a time.
    xp, cells = namespace(y), cells.beside(y)
    start = cells.poses()
    lead, whole = start[:-1], int(turns.shape[0])
    key = xp.astype(cells.member[lead], xp.int64) * whole + cells.angle[lead]
    unique, pose = xp.unique_inverse(key)
    f = int(phases.shape[2]) if count is None else count
    block = max(1, SLICE_BYTES // (8 * f))
    scores, norms = xp.empty((2, cells.size), dtype=xp.float32)
    for first in range(0, unique.size, block):
        member, angle = divmod(unique[first : first + block], whole)
        slices = cut_slices(grids, member, turns[angle], band=band, count=f)
        runs = xp.nonzero((pose >= first) & (pose < first + block))[0]
        chosen: Any = slice(None)
        if runs.size < lead.size:
            mine = xp.zeros(lead.size, dtype=xp.bool)
            mine[runs] = True
            chosen = xp.nonzero(xp.repeat(mine, start[1:] - start[:-1]))[0]
        cross, norm = _score_block(
            slices, cells.take(chosen), pose[runs] - first, phases=phases, y=y, c2=c2
        )
        scores[chosen], norms[chosen] = 2.0 * cross - norm, norm
    return scores, norms


def cut_slices(grids: Any, member: Any, turns: Any, *, band: Band, count: int) -> Any:
    """Read slices by the kernel: (items, 2, count) float32, of classes ``member`` at ``turns``."""
    xp = namespace(grids)
    slices = xp.empty((int(member.size), 2, count), dtype=xp.float32)
    launch(
        SLICE2D,
        int(member.size),
        grids,
        xp.astype(like(member, reference=grids), xp.int32, copy=False),
        turns,
        like(band.kx[:count].astype(np.float32), reference=grids),
        like(band.ky[:count].astype(np.float32), reference=grids),
        slices,
    )
    return slices


def _score_block(
    slices: Any, cells: Candidates, pose: Any, *, phases: Any, y: Any, c2: Any
) -> tuple[Any, Any]:
    """Cross term and norm of every cell; run i of cells that share a pose has slice ``pose[i]``."""
    xp = namespace(y)
    start = cells.poses()
    first = start[:-1]
    # On a CPU items come one by one and share a row of scratch; on a GPU each has its own.
    lanes, rows = (1, 1) if is_host(y) else (LANES, max(1, first.size))
    cross = xp.zeros((lanes, cells.size), dtype=xp.float32)
    norm = xp.zeros((lanes, first.size), dtype=xp.float32)
    launch(
        SCORE2D,
        first.size,
        slices,
        xp.astype(pose, xp.int32),
        cells.image[first],
        start,
        cells.shift,
        phases,
        y,
        c2,
        xp.empty((rows, 2, slices.shape[2]), dtype=xp.float32),
        cross,
        norm,
    )
    norms = xp.repeat(xp.sum(norm, axis=0), start[1:] - start[:-1])
    return xp.sum(cross, axis=0), norms


def insert_candidates(
    sums: Any,
    target: NDArray[np.int32],
    cells: Candidates,
    *,
    weight: NDArray[np.float32],
    turns: Any,
    phases: Any,
    y: Any,
    c2: Any,
    band: Band,
) -> None:
    """Add images, weighted by the posterior of their cells, into grids: adjoint of the scores.

    Parameters
    ----------
    sums : (grids, 2 limit + 1, limit + 1, 3) float32
        Added to in place: numerator (real, imaginary) and weight.
    target : (pairs,) int32
        Grid each cell goes to; equal for cells that share image, class and angle.
    cells : Candidates
    weight : (pairs,) float32
    turns, phases, y, c2, band
        As in `score_candidates`.
    """
    order = np.lexsort((cells.shift, cells.angle, cells.image, target))
    cells, target, weight = cells.take(order), target[order], weight[order]
    start = run_starts(target, cells.image, cells.angle)
    lead = start[:-1]
    xp, f = namespace(y), int(phases.shape[2])
    arrays = (
        like(target[lead], reference=y),
        turns[like(cells.angle[lead], reference=y)],
        like(cells.image[lead], reference=y),
        like(start, reference=y),
        like(cells.shift, reference=y),
        like(weight, reference=y),
        phases,
        y,
        c2,
        like(band.kx[:f].astype(np.float32), reference=y),
        like(band.ky[:f].astype(np.float32), reference=y),
    )
    if lead.size == 0:
        return
    if is_host(sums):
        launch(
            INSERT2D, lead.size, *arrays, np.ones(1, np.float32), np.empty((1, 2, f), np.float32),
            sums,
        )  # fmt: skip
        return
    # Blocks of a GPU meet in any order: integers, which commute, and as many bits as are safe.
    largest = max(float(xp.max(xp.abs(y))), float(xp.max(c2)))
    most = float(np.add.reduceat(weight, lead).max())
    scale = fixed_point_scale(np.sqrt(2.0) * largest * most, lead.size)
    fixed = xp.zeros(sums.shape, dtype=xp.int64)
    room = xp.empty((lead.size, 2, f), dtype=xp.float32)
    launch(INSERT2D, lead.size, *arrays, xp.full((1,), scale, dtype=xp.float32), room, fixed)
    sums += xp.astype(xp.astype(fixed, xp.float64) / scale, xp.float32)
