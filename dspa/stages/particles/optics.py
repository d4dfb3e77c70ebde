"""What the CTF of particles is made from: their own columns and those of their optics group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

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
    return {
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
