r"""The contrast transfer function.

With k the spatial frequency in 1/A, lambda the wavelength,

    gamma(k) = -pi lambda (defocus_u k_u^2 + defocus_v k_v^2) + pi/2 Cs lambda^3 |k|^4
               - phase_shift - asin(amplitude_contrast),
    CTF(k)   = -scale sin(gamma) exp(-bfactor |k|^2 / 4),

k_u the component along the axis at ``defocus_angle`` from x towards y. Underfocus is positive, and
the function is positive at low frequency: +amplitude_contrast at the origin (RELION's sign).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import like
from dspa.ops.ctf.aberration import even_polynomials, odd_polynomials

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dspa.geometry.band import Band


# Fields of more than a number for each image, which most data have none of.
TABLES = ("odd_zernike", "even_zernike", "magnification")


def wavelength(voltage: ArrayLike) -> NDArray[np.float64]:
    """Compute the relativistic wavelength of electrons.

    Parameters
    ----------
    voltage : (...) float
        Acceleration voltage in kV.

    Returns
    -------
    (...) float64
        A.
    """
    volts = np.asarray(voltage, np.float64) * 1e3
    return np.asarray(12.2643247 / np.sqrt(volts * (1.0 + 0.978466e-6 * volts)))


@dataclass(frozen=True, eq=False)
class CTF:
    """Parameters of the contrast transfer functions of n images.

    The numbers are stored as (n,) float64 arrays; scalars given broadcast to the longest field.
    The three tables of higher order are None where there is nothing of the kind.

    Attributes
    ----------
    defocus_u, defocus_v : (n,) float64
        A, positive for underfocus, along and across ``defocus_angle``.
    defocus_angle : (n,) float64
        Radians from the x axis towards y.
    voltage : (n,) float64
        kV.
    spherical_aberration : (n,) float64
        A (2.7 mm is 2.7e7 A).
    amplitude_contrast : (n,) float64
        Fraction, 0..1.
    phase_shift : (n,) float64
        Radians, of a phase plate.
    bfactor : (n,) float64
        A^2; amplitudes fall off as exp(-B |k|^2 / 4).
    scale : (n,) float64
        Factor on the amplitudes.
    odd_zernike, even_zernike : (n, c) float64, optional
        Coefficients of `dspa.ops.ctf.aberration`; the odd ones include the beam tilt.
    magnification : (n, 2, 2) float64, optional
        M: what is at the frequency k of an image is that of the particle at M k (x, y). All else
        here is a function of M k.
    """

    defocus_u: NDArray[np.float64]
    defocus_v: NDArray[np.float64]
    defocus_angle: NDArray[np.float64] = 0.0  # type: ignore[assignment]
    voltage: NDArray[np.float64] = 300.0  # type: ignore[assignment]
    spherical_aberration: NDArray[np.float64] = 2.7e7  # type: ignore[assignment]
    amplitude_contrast: NDArray[np.float64] = 0.1  # type: ignore[assignment]
    phase_shift: NDArray[np.float64] = 0.0  # type: ignore[assignment]
    bfactor: NDArray[np.float64] = 0.0  # type: ignore[assignment]
    scale: NDArray[np.float64] = 1.0  # type: ignore[assignment]
    odd_zernike: NDArray[np.float64] | None = None
    even_zernike: NDArray[np.float64] | None = None
    magnification: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        names = [field.name for field in fields(self) if field.name not in TABLES]
        values = [np.atleast_1d(np.asarray(getattr(self, name), np.float64)) for name in names]
        if any(value.ndim != 1 for value in values):
            raise ValueError("the fields of a CTF are numbers or one-dimensional arrays")
        for name, value in zip(names, np.broadcast_arrays(*values), strict=True):
            object.__setattr__(self, name, np.array(value))
        for name in TABLES:
            if (table := getattr(self, name)) is not None:
                table = np.asarray(table, np.float64)
                wide = np.broadcast_to(table, (len(self), *table.shape[1:]))
                object.__setattr__(self, name, np.array(wide))

    def __len__(self) -> int:
        return int(self.defocus_u.size)

    def select(self, indices: Any) -> CTF:
        """Take some of the images, by an index array, a slice or a mask."""
        names = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        chosen = np.atleast_1d(np.arange(len(self))[indices])
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def band(self, band: Band, pixel_size: float) -> NDArray[np.float32]:
        """Evaluate on a band, (n, f) float32; see `ctf_band`."""
        values: NDArray[np.float32] = ctf_band(self, band, pixel_size=pixel_size)
        return values


def ctf_values(ctf: CTF, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Evaluate the CTF of every image at the same frequencies.

    Parameters
    ----------
    ctf : CTF
        Of n images.
    x, y : (...) float
        Spatial frequency in 1/A.

    Returns
    -------
    (n, ...) float64
        CTF values.
    """
    fx, fy = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    values = np.sin(ctf_argument(ctf, fx, fy))
    values *= -ctf_envelope(ctf, fx, fy)
    return values


def ctf_argument(ctf: CTF, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Evaluate gamma, whose negative sine is the CTF, at frequencies (...) in 1/A: (n, ...)."""
    fx, fy = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    shape = fx.shape
    fx, fy = fx.reshape(-1), fy.reshape(-1)
    k2 = fx * fx + fy * fy
    length = wavelength(ctf.voltage)
    mean = 0.5 * (ctf.defocus_u + ctf.defocus_v)
    half = 0.5 * (ctf.defocus_u - ctf.defocus_v)
    # defocus_u k_u^2 + defocus_v k_v^2 = mean |k|^2 + half (cos 2a (x^2 - y^2) + sin 2a 2xy):
    # four products with per-image factors, so one small matrix product makes the whole phase.
    factors = np.stack(
        [
            -np.pi * length * mean,
            -np.pi * length * half * np.cos(2.0 * ctf.defocus_angle),
            -np.pi * length * half * np.sin(2.0 * ctf.defocus_angle),
            0.5 * np.pi * ctf.spherical_aberration * length**3,
            -ctf.phase_shift - np.arcsin(ctf.amplitude_contrast),
        ],
        axis=1,
    )  # (n, 5)
    terms = np.stack([k2, fx * fx - fy * fy, 2.0 * fx * fy, k2 * k2, np.ones_like(k2)])
    if ctf.even_zernike is not None:
        factors = np.concatenate([factors, ctf.even_zernike], axis=1)
        terms = np.concatenate([terms, even_polynomials(ctf.even_zernike.shape[1], fx, fy)])
    result: NDArray[np.float64] = (factors @ terms).reshape((len(ctf), *shape))
    return result


def ctf_envelope(ctf: CTF, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Evaluate scale exp(-B |k|^2 / 4) at frequencies (...) in 1/A: (n, ...), or (n, 1 ...)."""
    k2 = np.asarray(x, np.float64) ** 2 + np.asarray(y, np.float64) ** 2
    lead = (slice(None), *[None] * k2.ndim)
    if not np.any(ctf.bfactor != 0.0):
        return np.asarray(ctf.scale[lead])
    return np.asarray(ctf.scale[lead] * np.exp(-0.25 * ctf.bfactor[lead] * k2))


def odd_phase(ctf: CTF, x: ArrayLike, y: ArrayLike) -> NDArray[np.complex64] | None:
    """Compute the factor exp(i odd(k)) that odd aberrations put on the transforms of images.

    Parameters
    ----------
    ctf : CTF
        Of n images.
    x, y : (...) float
        Spatial frequency in 1/A.

    Returns
    -------
    (n, ...) complex64, or (1, ...) if it is the same for all; None without odd aberrations.
    """
    if ctf.odd_zernike is None:
        return None
    # Images of one group share their coefficients: few rows are computed.
    unique, which = np.unique(ctf.odd_zernike, axis=0, return_inverse=True)
    polynomials = odd_polynomials(unique.shape[1], x, y)
    factors = np.exp(1j * np.tensordot(unique, polynomials, axes=1)).astype(np.complex64)
    return factors if len(factors) == 1 else factors[which.reshape(-1)]


def ctf_band(ctf: CTF, band: Band, *, pixel_size: float, reference: Any = None) -> Any:
    """Evaluate the CTF on a band.

    Parameters
    ----------
    ctf : CTF
        Of n images.
    band : Band
        Coefficients, f of them.
    pixel_size : float
        A.
    reference : array, optional
        The result goes to the back end of this array; NumPy if absent.

    Returns
    -------
    (n, f) float32
        CTF values.
    """
    step = 1.0 / (band.box * pixel_size)
    values = ctf_values(ctf, band.kx * step, band.ky * step).astype(np.float32)
    return values if reference is None else like(values, reference=reference)


def ctf_image(ctf: CTF, shape: tuple[int, int], *, pixel_size: float) -> NDArray[np.float32]:
    """Evaluate the CTF on the grid of ``rfft2`` of images.

    Parameters
    ----------
    ctf : CTF
        Of n images.
    shape : (y, x)
        Shape of the images in pixels.
    pixel_size : float
        A.

    Returns
    -------
    (n, y, x // 2 + 1) float32
        CTF values.
    """
    fy = np.fft.fftfreq(shape[0], pixel_size)[:, None]
    fx = np.fft.rfftfreq(shape[1], pixel_size)[None, :]
    return ctf_values(ctf, fx, fy).astype(np.float32)


def transfer_image(ctf: CTF, shape: tuple[int, int], *, pixel_size: float) -> NDArray[np.complex64]:
    """Evaluate all that the optics do to the transform of images: CTF, odd phase, magnification.

    Parameters
    ----------
    ctf : CTF
        Of n images. With a magnification it is evaluated at M k.
    shape : (y, x)
        Shape of the images in pixels.
    pixel_size : float
        A.

    Returns
    -------
    (n, y, x // 2 + 1) complex64
        Factors on the grid of ``rfft2``.
    """
    fy = np.fft.fftfreq(shape[0], pixel_size)[:, None]
    fx = np.fft.rfftfreq(shape[1], pixel_size)[None, :]
    made = np.empty((len(ctf), shape[0], shape[1] // 2 + 1), np.complex64)
    matrices, which = np.eye(2)[None], np.zeros(len(ctf), np.int64)
    if ctf.magnification is not None:
        matrices, which = np.unique(ctf.magnification, axis=0, return_inverse=True)
    for number, ((a, b), (c, d)) in enumerate(matrices):
        rows = np.flatnonzero(which.reshape(-1) == number)
        some = ctf.select(rows)
        kx, ky = a * fx + b * fy, c * fx + d * fy
        made[rows] = ctf_values(some, kx, ky)
        if (odd := odd_phase(some, kx, ky)) is not None:
            made[rows] *= odd
    return made
