r"""What an image at its pose says of maps that are added to one: two small tables.

The residual R of an image, less the map that all share, is s C sum_j z_j D_j and noise, with D_j
the slices of maps (differences of classes, or components). With y = conj(R) s C / sigma^2 and
c2 = s^2 C^2 / sigma^2 all that the image says of the coefficients z stands in

    cross_j = Re sum_k y D_j,        gram_jl = Re sum_k c2 conj(D_j) D_l,

    log p(R | z) = 2 z . cross - z . gram z + const.

See ``docs/method/class3d.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dspa.device import namespace, to_host

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Overlap(NamedTuple):
    """What images say of maps.

    Attributes
    ----------
    cross : (n, k) float64
    gram : (n, k, k) float64
    """

    cross: NDArray[np.float64]
    gram: NDArray[np.float64]

    @property
    def scores(self) -> NDArray[np.float64]:
        """Log-likelihood of each map alone against none, (n, k) float64."""
        return 2.0 * self.cross - np.einsum("nkk->nk", self.gram)


def overlap(y: Any, c2: Any, slices: Any) -> Overlap:
    """Compare residuals with the slices of maps.

    Parameters
    ----------
    y : (n, f) complex64
        conj(R) s C / sigma^2.
    c2 : (n, f) float32
        s^2 C^2 / sigma^2.
    slices : (n, k, f) complex64
        Of each map at the pose of each image.
    """
    xp = namespace(y)
    count, maps = int(slices.shape[0]), int(slices.shape[1])
    planes = xp.concat([xp.real(slices), xp.imag(slices)], axis=-1)
    line = xp.concat([xp.real(y), -xp.imag(y)], axis=-1)[..., None]
    cross = xp.reshape(xp.matmul(planes, line), (count, maps))
    root = xp.sqrt(c2)
    planes = planes * xp.concat([root, root], axis=-1)[:, None, :]
    gram = xp.matmul(planes, xp.matrix_transpose(planes))
    return Overlap(np.asarray(to_host(cross), np.float64), np.asarray(to_host(gram), np.float64))


def freed(seen: Overlap, maps: int, least: NDArray[np.float64]) -> Overlap:
    """Take out of the overlaps with some maps what further ones explain as well.

    The further maps have coefficients of their own in every image, of which a normal distribution
    about 0 is known; these are integrated out.

    Parameters
    ----------
    seen : Overlap
        Of both.
    maps : int
        So many come first; the others are the further ones.
    least : (q,) float64
        1 / (2 variance) of the coefficient of each further map.
    """
    cross, gram = seen.cross[:, :maps], seen.gram[:, :maps, :maps]
    between = seen.gram[:, :maps, maps:]
    free = seen.gram[:, maps:, maps:] + np.diag(least)
    solved = np.linalg.solve(free, np.swapaxes(between, 1, 2))  # (n, q, maps)
    return Overlap(
        cross - np.einsum("nqk,nq->nk", solved, seen.cross[:, maps:]), gram - between @ solved
    )


class Weights(NamedTuple):
    """How images belong to maps.

    Attributes
    ----------
    posterior : (n, k) float64
        Sums to 1 over the maps.
    log_likelihood : (n,) float64
        Of the mixture, against none of the maps.
    """

    posterior: NDArray[np.float64]
    log_likelihood: NDArray[np.float64]


def class_weights(seen: Overlap, log_prior: NDArray[np.float64]) -> Weights:
    """Weigh classes by their likelihood.

    Parameters
    ----------
    seen : Overlap
    log_prior : (k,) float64
        Of each class.
    """
    total = seen.scores + log_prior
    top = total.max(axis=1, keepdims=True)
    raw = np.exp(total - top)
    norm = raw.sum(axis=1, keepdims=True)
    return Weights(raw / norm, (top + np.log(norm))[:, 0])


def coordinates(seen: Overlap) -> NDArray[np.float64]:
    """Place images along components whose coordinates have unit variance before they are seen.

    Parameters
    ----------
    seen : Overlap
        With the slices of the components.

    Returns
    -------
    (n, k) float64
        Mean of the posterior, (2 gram + 1)^-1 2 cross.
    """
    precision = 2.0 * seen.gram + np.eye(seen.cross.shape[1])
    return np.asarray(np.linalg.solve(precision, 2.0 * seen.cross[..., None])[..., 0])


def reliability(seen: Overlap) -> NDArray[np.float64]:
    """Say which share of a coordinate an image tells: (n, k), diagonal of (2 gram + 1)^-1 2 gram.

    Parameters
    ----------
    seen : Overlap
    """
    twice = 2.0 * seen.gram
    solved = np.linalg.solve(twice + np.eye(seen.cross.shape[1]), twice)
    return np.asarray(np.einsum("nkk->nk", solved))
