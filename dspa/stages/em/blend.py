"""Online EM: what a pass sums up, weighed against what was known (Cappe & Moulines 2009).

See doi:10.1111/j.1467-9868.2009.00698.x.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def blend(
    old: Any, new: Any, *, step: Any, images: tuple[float, float] = (1.0, 1.0), out: Any = None
) -> Any:
    """Weigh sums of a pass against older ones: ``(1 - step) old + step new``.

    Parameters
    ----------
    old, new : (...) float
        Of the same shape, unless ``step`` is 1.
    step : float
        1 forgets the old ones.
    images : (float, float)
        What old and new are sums over, if not of as many: both count as sums over the new ones.
    out : array, optional
        Where the result goes; may be ``new``.
    """
    if step >= 1.0:
        return new
    before, now = images
    mixed = np.multiply(new, step, out=out)
    mixed += (1.0 - step) * now / before * old
    return mixed


def blend_sums(old: Any, new: NDArray[np.float64], *, step: float) -> NDArray[np.float64]:
    """Blend sums whose element 0 (or its largest) counts the images; either may hold none."""
    before = 0.0 if old is None else float(np.max(old[0]))
    count = float(np.max(new[0]))
    if before == 0.0:
        return new
    if count == 0.0:
        return np.asarray(old)
    return np.asarray(blend(old, new, step=step, images=(before, count)))
