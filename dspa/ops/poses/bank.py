"""The whole coarse lattice scored by matrix products: the one half-turn product.

A slice turned by pi in its plane is the conjugate of the slice, because densities are real. So the
products of the real parts and those of the imaginary parts, each once, give two poses:

    cross(psi) = even - odd,    cross(psi + pi) = even + odd,
    even = Re(Y phase) Re(A)^T,    odd = Im(Y phase) Im(A)^T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dspa.device import is_host, namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

_CACHE, _DEVICE_ROOM = 24 << 20, 1 << 30  # bytes of coarse scores at a time: CPU, GPU


@dataclass(frozen=True, eq=False)
class CoarseBank:
    """References at half of the coarse poses, laid out for matrix products.

    Attributes
    ----------
    real, imaginary : (f, columns) float32
        Parts of 2 A; columns run over members, then the poses of the first half turn.
    norm : (f, columns) float32
        |A|^2.
    phases : (shifts, f) complex64
    prior : (columns,) float32
        Log-prior of each column.
    shift_prior : (shifts,) float32
        Log-prior of each shift.
    profile : bool
        Score with the contrast that fits each cell best, cross^2 / norm: for references whose grey
        scale is not known.
    """

    real: Any
    imaginary: Any
    norm: Any
    phases: Any
    prior: Any
    shift_prior: Any
    profile: bool = False

    @property
    def count(self) -> int:
        """Coefficients used, f."""
        return int(self.norm.shape[0])

    @property
    def poses(self) -> int:
        """Number of columns: poses up to a turn by pi."""
        return int(self.norm.shape[1])

    @property
    def shifts(self) -> int:
        """Number of coarse shifts."""
        return int(self.phases.shape[0])

    @property
    def block(self) -> int:
        """Images whose scores stay in the cache of a CPU, or keep a GPU busy."""
        room = _CACHE if is_host(self.norm) else _DEVICE_ROOM
        return max(1, room // (24 * self.poses * self.shifts))


def coarse_bank(
    slices: Any, phases: Any, prior: Any, *, shift_prior: Any = None, profile: bool = False
) -> CoarseBank:
    """Lay out slices for `coarse_scores`.

    Parameters
    ----------
    slices : (columns, 2, f) float32
        Members, then the poses of the first half turn.
    phases : (shifts, f) complex64
    prior : (columns,) float32
    shift_prior : (shifts,) float32, optional
        0 by default.
    profile : bool
    """
    xp = namespace(slices)
    real, imaginary = xp.asarray(slices[:, 0].T, copy=True), xp.asarray(slices[:, 1].T, copy=True)
    norm = real * real + imaginary * imaginary
    real, imaginary = (xp.asarray(2.0 * part, order="C") for part in (real, imaginary))
    if shift_prior is None:
        shift_prior = xp.zeros(int(phases.shape[0]), dtype=xp.float32)
    norm = xp.asarray(norm, order="C")
    return CoarseBank(real, imaginary, norm, phases, prior, shift_prior, profile)


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
    moved = xp.reshape(y[:, None, : bank.count] * bank.phases[None, ...], (-1, bank.count))
    return xp.stack([xp.real(moved), xp.imag(moved)])


@dataclass(frozen=True, eq=False)
class CoarseRoom:
    """Room for the coarse scores of a block of images, used again by every block.

    Fresh arrays of this size come from the system page by page, at about what the products cost.

    Attributes
    ----------
    even, odd : (n, shifts, columns) float32
    scores : (n, shifts, 2, columns) float32
    """

    even: Any
    odd: Any
    scores: Any

    def first(self, count: int) -> CoarseRoom:
        """Room for the first ``count`` images."""
        return CoarseRoom(self.even[:count], self.odd[:count], self.scores[:count])


def coarse_room(bank: CoarseBank, count: int) -> CoarseRoom:
    """Make room for ``count`` images."""
    xp, shape = namespace(bank.norm), (count, bank.shifts)
    even, odd = (xp.empty((*shape, bank.poses), dtype=xp.float32) for _ in range(2))
    return CoarseRoom(even, odd, xp.empty((*shape, 2, bank.poses), dtype=xp.float32))


def coarse_blocks(bank: CoarseBank, y: Any) -> Iterator[tuple[slice, Any, CoarseRoom]]:
    """Cut a batch into blocks whose scores fit the cache: rows, moved images and room of each."""
    n = int(y.shape[0])
    room = coarse_room(bank, min(n, bank.block))
    for first in range(0, n, bank.block):
        rows = slice(first, min(n, first + bank.block))
        yield rows, moved_images(y[rows], bank), room.first(rows.stop - first)


def coarse_scores(moved: Any, c2: Any, bank: CoarseBank, *, room: CoarseRoom | None = None) -> Any:
    """Score images against the whole coarse lattice by matrix products, priors included.

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
    scores : (n, shifts, 2, columns) float32
        The axis before the columns adds a turn by pi or not.
    """
    xp = namespace(moved)
    room = coarse_room(bank, int(c2.shape[0])) if room is None else room
    xp.matmul(moved[0], bank.real, out=xp.reshape(room.even, (-1, bank.poses)))
    xp.matmul(moved[1], bank.imaginary, out=xp.reshape(room.odd, (-1, bank.poses)))
    even, odd, scores = room.even, room.odd, room.scores
    norm = c2[:, : bank.count] @ bank.norm
    if bank.profile:
        xp.subtract(even, odd, out=scores[:, :, 0])
        xp.add(even, odd, out=scores[:, :, 1])
        scores[...] = profiled(0.5 * scores, norm[:, None, None, :])
        scores += bank.shift_prior[:, None, None] + bank.prior
        return scores
    even -= (norm - bank.prior)[:, None, :]
    even += bank.shift_prior[:, None]
    xp.subtract(even, odd, out=scores[:, :, 0])
    xp.add(even, odd, out=scores[:, :, 1])
    return scores


def coarse_shares(
    moved: Any, c2: Any, bank: CoarseBank, *, room: CoarseRoom, temperature: float = 1.0
) -> tuple[Any, Any]:
    """Likelihood of images over the whole coarse lattice, against that of the best cell.

    Parameters
    ----------
    moved, c2, bank, room
        As for `coarse_scores`.
    temperature : float
        Scores are divided by it.

    Returns
    -------
    share : (n, shifts, 2, columns) float32
        exp((score - top) / temperature), in the room.
    top : (n,) float32
        Best score.
    """
    xp, share = namespace(moved), coarse_scores(moved, c2, bank, room=room)
    top = xp.max(share, axis=(1, 2, 3))
    share -= top[:, None, None, None]
    if temperature != 1.0:
        share *= xp.asarray(1.0 / temperature, dtype=xp.float32)
    xp.exp(share, out=share)
    return share, top


def profiled(cross: Any, norm: Any) -> Any:
    """Score at the contrast that fits best, not below 0: cross^2 / norm."""
    xp = namespace(cross)
    least = xp.asarray(1e-12, dtype=xp.float32)
    zero = xp.asarray(0.0, dtype=xp.float32)
    return xp.maximum(cross, zero) ** 2 / xp.maximum(norm, least)


def contrast_square(score: Any, norm: Any) -> Any:
    """Square of the contrast that fits best, of a score that `profiled` gave: score / norm."""
    xp = namespace(score)
    least = xp.asarray(1e-12, dtype=xp.float32)
    zero = xp.asarray(0.0, dtype=xp.float32)
    return xp.maximum(score, zero) / xp.maximum(norm, least)
