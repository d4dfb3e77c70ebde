r"""Whether classes are more than noise: by images that had no part in making them.

For an image that no map was made of, and one map b sum_k pi_k D_k for all against the classes,

    gain = log sum_k pi_k exp(2 cross_k - gram_kk) - (2 pi . cross - pi . gram pi)

is the logarithm of a ratio of likelihoods. If all images show one structure its mean is below 0
whatever the classes are (Jensen), and it is where maps and poses that do not belong together are
compared: the control pairs each image with the slices at the pose of another. What the image and
noise model get wrong is in both. See ``docs/method/class3d.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.ops.mixture.overlap import Overlap, class_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def gain(
    seen: Overlap, share: NDArray[np.float64], merged: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """Log-likelihood that images lose if some classes become one.

    Parameters
    ----------
    seen : Overlap
        Of images that the maps were not made of.
    share : (k,) float64
        Of the images, of each class; sums to 1.
    merged : sequence of int, optional
        The classes that become one, of their weighted mean; all if left out.

    Returns
    -------
    (n,) float64
    """
    given = range(share.size) if merged is None else merged
    some = [number for number in given if share[number] > 0.0]
    if len(some) < 2:
        return np.zeros(len(seen.cross))
    rest = [number for number in range(share.size) if number not in some and share[number] > 0.0]
    whole = float(share[some].sum())
    mix = np.zeros((share.size, len(rest) + 1))
    mix[rest, np.arange(len(rest))] = 1.0
    mix[some, -1] = share[some] / whole
    joined = Overlap(seen.cross @ mix, mix.T @ seen.gram @ mix)
    with np.errstate(divide="ignore"):
        before = class_weights(seen, np.log(share)).log_likelihood
    after = class_weights(joined, np.log(np.append(share[rest], whole))).log_likelihood
    return np.asarray(before - after)


def deviations(
    found: NDArray[np.float64], control: NDArray[np.float64], groups: NDArray[np.int64]
) -> float:
    """Say by how many standard deviations a gain lies above that of the control.

    Parameters
    ----------
    found, control : (n,) float64
        Gains of images, at their poses and at those of others.
    groups : (n,) int64
        Labels of copies of one particle: they count once.

    Returns
    -------
    float
        About 0 +- 1 where there is one structure.
    """
    _, label = np.unique(groups, return_inverse=True)
    difference = np.bincount(label, found - control) / np.maximum(np.bincount(label), 1)
    if difference.size < 2:
        return 0.0
    error = float(np.std(difference, ddof=1)) / np.sqrt(difference.size)
    return float(np.mean(difference)) / max(error, 1e-12)
