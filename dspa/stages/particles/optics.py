"""What the CTF of particles is made from: their own columns and those of their optics group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.ops.ctf.aberration import with_tilt
from dspa.ops.ctf.model import wavelength

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray


def ctf_arguments(particles: xr.Dataset) -> dict[str, NDArray[np.float64]] | None:
    """Collect the per-particle arguments of `CTF`; None if the particles have no defocus.

    A figure that all particles lack has its default; of a particle that alone lacks it the CTF is
    unknown, so it stays NaN and the image is set aside.
    """
    count = int(particles.sizes["particle"])
    if "defocus_u" not in particles or not np.isfinite(particles["defocus_u"].values).any():
        return None

    def own(name: str, default: float) -> NDArray[np.float64]:
        if name not in particles:
            return np.full(count, default)
        values = np.asarray(particles[name].values, np.float64)
        return values if np.isfinite(values).any() else np.full(count, default)

    optics = np.asarray(particles["optics"].values) if "optics" in particles else np.zeros(count)
    group = np.clip(optics.astype(np.int64), 0, None)

    def shared(name: str) -> NDArray[np.float64]:
        return np.asarray(particles[name].values, np.float64)[group]

    defocus_u = own("defocus_u", 0.0)
    defocus_v = own("defocus_v", np.nan)
    defocus_v = defocus_v if np.isfinite(defocus_v).any() else defocus_u
    return _tables(particles, group) | {
        "defocus_u": defocus_u,
        "defocus_v": defocus_v,
        "defocus_angle": np.where(defocus_u == defocus_v, 0.0, own("defocus_angle", 0.0)),
        "phase_shift": own("phase_shift", 0.0),
        "bfactor": own("bfactor", 0.0),
        "scale": own("ctf_scale", 1.0),
        "voltage": shared("voltage"),
        "spherical_aberration": shared("spherical_aberration"),
        "amplitude_contrast": shared("amplitude_contrast"),
    }


def _tables(particles: xr.Dataset, group: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return what the optics groups have beside the CTF's numbers, by particle."""
    made: dict[str, NDArray[np.float64]] = {}
    odd, even = (_of_groups(particles, name) for name in ("odd_zernike", "even_zernike"))
    tilt, matrix = (_of_groups(particles, name) for name in ("beam_tilt", "magnification"))
    if tilt.any():
        odd = with_tilt(
            odd,
            tilt,
            spherical_aberration=particles["spherical_aberration"].values,
            length=wavelength(particles["voltage"].values),
        )
    if odd.any():
        made["odd_zernike"] = odd[group]
    if even.any():
        made["even_zernike"] = even[group]
    if matrix.size and (matrix != np.eye(2)).any():
        made["magnification"] = matrix[group]
    return made


def _of_groups(particles: xr.Dataset, name: str) -> NDArray[np.float64]:
    """Return a table of the optics groups; of no columns if there is none."""
    if name not in particles:
        return np.zeros((int(particles.sizes["optics"]), 0))
    return np.asarray(particles[name].values, np.float64)


def shift_in_particle(particles: xr.Dataset, shift: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return shifts of images (n, 2) as those of images whose magnification is corrected."""
    matrices = _magnification(particles)
    if matrices is None:
        return shift
    inverse = np.linalg.inv(matrices)
    return np.asarray(np.einsum("nji,nj->ni", inverse, shift))


def shift_in_image(particles: xr.Dataset, shift: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return shifts of corrected images (n, 2) as those of the images as they are stored."""
    matrices = _magnification(particles)
    return shift if matrices is None else np.asarray(np.einsum("nji,nj->ni", matrices, shift))


def _magnification(particles: xr.Dataset) -> NDArray[np.float64] | None:
    """Magnification of every particle (n, 2, 2), None if there is none."""
    arguments = ctf_arguments(particles)
    return None if arguments is None else arguments.get("magnification")
