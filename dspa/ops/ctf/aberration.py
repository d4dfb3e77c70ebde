r"""Aberrations of higher order: Zernike polynomials of the frequency, beam tilt.

The transform of an image is that of the projection times CTF(k) exp(i odd(k)). With k in 1/A

    odd(k)  = sum_c odd_zernike[c] Z_c(k),     n = 1, 3, 5 ...
    even(k) = sum_c even_zernike[c] Z_c(k),    n = 0, 2, 4 ..., added to the CTF's argument gamma

and the polynomials are those of RELION (Zivanov et al. 2020, doi:10.1107/S2052252520000081): not
scaled to any disk, m from -n to n in steps of two, cosines for m >= 0 and sines for m < 0. Beam
tilt t (rad) is the part -2 pi Cs lambda^2 |k|^2 (t . k) of the odd phase.
"""

from __future__ import annotations

from math import factorial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

ODD_TO_THREE, EVEN_TO_FOUR = 6, 9  # polynomials up to these orders
# Places of the cubic polynomials along y and x among the odd ones, and of the linear.
_COMA, _LINEAR = (3, 4), (0, 1)


def odd_orders(count: int) -> list[tuple[int, int]]:
    """Return (n, m) of the first odd polynomials."""
    pairs = ((n, m) for n in range(1, 2 * count + 2, 2) for m in range(-n, n + 1, 2))
    return [pair for pair, _ in zip(pairs, range(count), strict=False)]


def even_orders(count: int) -> list[tuple[int, int]]:
    """Return (n, m) of the first even polynomials."""
    pairs = ((n, m) for n in range(0, 2 * count + 1, 2) for m in range(-n, n + 1, 2))
    return [pair for pair, _ in zip(pairs, range(count), strict=False)]


def zernike(n: int, m: int, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Evaluate a Zernike polynomial beyond the unit disk.

    Parameters
    ----------
    n, m : int
        Degree and azimuthal order, of one parity; sines for m < 0.
    x, y : (...) float
        Coordinates.

    Returns
    -------
    (...) float64
    """
    fx, fy = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    order = abs(m)
    r2 = fx * fx + fy * fy
    # rho^m cos(m phi) and rho^m sin(m phi) are the parts of (x + i y)^m.
    turned = (fx + 1j * fy) ** order
    radial = np.zeros(fx.shape)
    for k in range((n - order) // 2 + 1):
        weight = (-1) ** k * factorial(n - k) / (
            factorial(k) * factorial((n + order) // 2 - k) * factorial((n - order) // 2 - k)
        )  # fmt: skip
        radial += weight * r2 ** ((n - order) // 2 - k)
    return np.asarray(radial * (turned.real if m >= 0 else turned.imag))


def odd_polynomials(count: int, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Evaluate the first odd polynomials at frequencies (1/A): (count, ...) float64."""
    return np.stack([zernike(n, m, x, y) for n, m in odd_orders(count)])


def even_polynomials(count: int, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Evaluate the first even polynomials at frequencies (1/A): (count, ...) float64."""
    return np.stack([zernike(n, m, x, y) for n, m in even_orders(count)])


def with_tilt(
    odd: NDArray[np.float64],
    tilt: NDArray[np.float64],
    *,
    spherical_aberration: ArrayLike,
    length: ArrayLike,
) -> NDArray[np.float64]:
    """Put a beam tilt into the odd coefficients.

    Parameters
    ----------
    odd : (g, c) float64
        Coefficients of g groups; those of the coma (n = 3, m = -1, 1) are replaced, as RELION does.
    tilt : (g, 2) float64
        rad along x and y.
    spherical_aberration, length : (g,) float64
        Cs and wavelength, A.

    Returns
    -------
    (g, max(c, 6)) float64
    """
    made = np.zeros((len(odd), max(odd.shape[1], ODD_TO_THREE)))
    made[:, : odd.shape[1]] = odd
    strength = 2.0 * np.pi * np.asarray(spherical_aberration) * np.asarray(length) ** 2
    coma = -np.atleast_1d(strength)[:, None] * tilt[:, ::-1] / 3.0  # of y, then of x
    made[:, _COMA] = coma
    made[:, _LINEAR] += 2.0 * coma  # 3 r^3 - 2 r: what is left is r^3 alone
    return made


def split_tilt(
    odd: NDArray[np.float64], *, spherical_aberration: float, length: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Take the beam tilt out of odd coefficients, the inverse of `with_tilt`.

    Parameters
    ----------
    odd : (c,) float64
        At least six.
    spherical_aberration, length : float
        Cs and wavelength, A; Cs is not 0.

    Returns
    -------
    rest : (c,) float64
    tilt : (2,) float64
        rad.
    """
    rest = odd.copy()
    coma = rest[list(_COMA)]
    rest[list(_COMA)] = 0.0
    rest[list(_LINEAR)] -= 2.0 * coma
    return rest, -3.0 * coma[::-1] / (2.0 * np.pi * spherical_aberration * length**2)
