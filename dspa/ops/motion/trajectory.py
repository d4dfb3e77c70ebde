r"""Where the specimen went: a displacement of every frame, and a smooth one that varies over it.

    d(x, y, t) = D_t + sum_{a, b} c_{a b} (t / (n - 1))^b P_a(x, y),   b = 1, 2, 3, ...

P being monomials of the place as a fraction of the frame, from its middle. With x, x^2, y, y^2,
x y and b up to 3 it is the model of Zivanov, Nakane and Scheres (2019,
doi:10.1107/S205225251801463X), all of whose terms that do not vary over the frame are in D; with
the third powers of the place and b up to 4 it follows a dome more closely. A feature at p before
the exposure is seen at p + d in frame t.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# Powers of x and y.
MONOMIALS = ((1, 0), (2, 0), (0, 1), (0, 2), (1, 1), (3, 0), (2, 1), (1, 2), (0, 3))
QUADRATIC, CUBIC = (5, 3), (9, 3)  # terms of place and of time
_GRID = 9  # points along an edge on which one model is fitted to another


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The displacements of one movie, in pixels of its frames.

    Attributes
    ----------
    shape : (rows, columns)
        Of a frame.
    whole : (frames, 2) float64
        x, y of the whole frame.
    local : (2, places, times) float64
        Factors for x and y: of monomials, of powers of time; (2, 0, 0) if nothing varies.
    """

    shape: tuple[int, int]
    whole: NDArray[np.float64]
    local: NDArray[np.float64]

    @property
    def frames(self) -> int:
        """How many frames there are."""
        return len(self.whole)

    @property
    def terms(self) -> tuple[int, int]:
        """How many of place and of time."""
        return int(self.local.shape[1]), int(self.local.shape[2])

    @property
    def bends(self) -> bool:
        """Whether displacement varies over the frame."""
        return bool(self.local.any())

    def at(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return where points went.

        Parameters
        ----------
        points : (p, 2) or (p, s, 2) float
            x, y in pixels of a frame; of s points the mean is meant.

        Returns
        -------
        (frames, p, 2) float64
            Displacements, pixels.
        """
        places = place_terms(points, self.shape, self.terms[0])
        times = time_terms(self.frames, self.terms[1])
        return np.asarray(
            self.whole[:, None] + np.einsum("dab,tb,pa->tpd", self.local, times, places)
        )

    def grown(self, terms: tuple[int, int]) -> Trajectory:
        """Return the same with more terms, the new ones 0."""
        local = np.zeros((2, *terms))
        local[:, : self.terms[0], : self.terms[1]] = self.local
        return replace(self, local=local)

    def fitted(self, terms: tuple[int, int]) -> Trajectory:
        """Return the closest trajectory with fewer terms."""
        rows, columns = self.shape
        x, y = np.meshgrid(np.linspace(0, columns - 1, _GRID), np.linspace(0, rows - 1, _GRID))
        points = np.stack([x.ravel(), y.ravel()], axis=1)
        places, times = place_terms(points, self.shape, terms[0]), time_terms(self.frames, terms[1])
        local = np.einsum("tb,pa->tpab", times, places).reshape(self.frames * len(points), -1)
        each = np.repeat(np.eye(self.frames), len(points), axis=0)
        design = np.concatenate([each[:, 1:], local], axis=1)
        found = np.linalg.lstsq(design, self.at(points).reshape(-1, 2), rcond=None)[0]
        whole = np.concatenate([np.zeros((1, 2)), found[: self.frames - 1]])
        factors = found[self.frames - 1 :].reshape(*terms, 2)
        return Trajectory(self.shape, whole, np.moveaxis(factors, -1, 0))

    def path(self, frame: int) -> NDArray[np.float64]:
        """Return the displacement along every row in one frame.

        Returns
        -------
        (rows, 2, 4) float64
            Of x and y: factors of 1, u, u^2, u^3, u the column as a fraction, from the middle.
        """
        times = time_terms(self.frames, self.terms[1])[frame]
        y = np.arange(self.shape[0]) / self.shape[0] - 0.5
        made = np.zeros((self.shape[0], 2, 4))
        made[:, :, 0] = self.whole[frame]
        for (across, down), factor in zip(
            MONOMIALS, np.moveaxis(self.local @ times, 1, 0), strict=False
        ):
            made[:, :, across] += (y**down)[:, None] * factor
        return made


def place_terms(points: ArrayLike, shape: tuple[int, int], count: int) -> NDArray[np.float64]:
    """Return the first monomials, (p, count), of points as `Trajectory.at` takes them."""
    at = np.asarray(points, np.float64)
    x, y = at[..., 0] / shape[1] - 0.5, at[..., 1] / shape[0] - 0.5
    made = np.empty((*x.shape, count))
    for number, (across, down) in enumerate(MONOMIALS[:count]):
        made[..., number] = x**across * y**down
    return made.mean(axis=1) if at.ndim == 3 else made


def time_terms(frames: int, count: int) -> NDArray[np.float64]:
    """Return powers of time from 1, (frames, count); 0 in the first frame and 1 in the last."""
    time = np.arange(frames) / max(frames - 1, 1)
    return time[:, None] ** np.arange(1, count + 1)


def at_rest(shape: tuple[int, int], frames: int) -> Trajectory:
    """Return the trajectory of what does not move."""
    return Trajectory(shape, np.zeros((frames, 2)), np.zeros((2, 0, 0)))
