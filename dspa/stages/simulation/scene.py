"""What the two simulating stages share: the true density, the scene, the tables of the truth."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dspa.io.model import read_model
from dspa.io.volumes import read_volume
from dspa.ops.simulate.images import particle_diameter
from dspa.ops.simulate.phantom import model_density, phantom_atoms
from dspa.ops.simulate.scene import Scene, Views, signal_scale

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.ops.ctf.model import CTF

_MARGIN = 12.0  # A of nothing around the molecule


class Conditions(Protocol):
    """The parameters that both stages have, as people type them."""

    @property
    def model(self) -> str:
        """Atomic model file; empty for the phantom."""
        ...

    @property
    def assembly(self) -> str:
        """Biological assembly."""
        ...

    @property
    def pixel_size(self) -> float:
        """A."""
        ...

    @property
    def snr(self) -> float:
        """Signal-to-noise ratio of a pixel."""
        ...

    @property
    def voltage(self) -> float:
        """Acceleration voltage, kV."""
        ...

    @property
    def cs(self) -> float:
        """Spherical aberration, mm."""
        ...

    @property
    def amplitude_contrast(self) -> float:
        """Fraction."""
        ...

    @property
    def min_defocus(self) -> float:
        """A."""
        ...

    @property
    def max_defocus(self) -> float:
        """A."""
        ...

    @property
    def astigmatism(self) -> float:
        """A."""
        ...

    @property
    def bfactor(self) -> float:
        """A^2."""
        ...

    @property
    def views(self) -> str:
        """Preferred view."""
        ...

    @property
    def thon(self) -> float:
        """Share of the noise."""
        ...

    @property
    def colour(self) -> float:
        """Share of the noise."""
        ...

    @property
    def junk(self) -> float:
        """Fraction."""
        ...


def true_density(params: Conditions) -> NDArray[np.float32]:
    """Make the density of the model, or of the phantom, in an even box that just holds it.

    Parameters
    ----------
    params : Conditions
        Of a simulating stage.

    Returns
    -------
    (z, y, x) float32
        At the pixel size of the simulation.
    """
    atoms = read_model(params.model, assembly=params.assembly) if params.model else phantom_atoms()
    reach = float(np.linalg.norm(atoms.positions, axis=1).max()) + _MARGIN
    box = 2 * int(np.ceil(reach / params.pixel_size))
    return model_density(atoms, box=box, pixel_size=params.pixel_size)


def make_scene(params: Conditions, **rest: Any) -> Scene:
    """Turn parameters as typed into the scene, in house units.

    Parameters
    ----------
    params : Conditions
        Of a simulating stage.
    **rest : Any
        Fields of `Scene` that only one of the stages has.
    """
    low, high = sorted((params.min_defocus, params.max_defocus))
    views: Views = (
        "top" if params.views == "top" else "side" if params.views == "side" else "random"
    )
    return Scene(
        pixel_size=params.pixel_size,
        snr=params.snr,
        voltage=params.voltage,
        spherical_aberration=params.cs * 1e7,
        amplitude_contrast=params.amplitude_contrast,
        defocus_low=low,
        defocus_high=high,
        astigmatism=params.astigmatism,
        bfactor=params.bfactor,
        views=views,
        thon=params.thon,
        colour=params.colour,
        junk=params.junk,
        **rest,
    )


@lru_cache(maxsize=2)
def scaled_density(path: Path, scene: Scene) -> NDArray[np.float32]:
    """Read the true density and scale it to the scene's SNR; kept per process.

    Parameters
    ----------
    path : Path
        ``volume.mrc`` of this job.
    scene : Scene
        Conditions.
    """
    density = read_volume(path).density
    diameter = particle_diameter(density, pixel_size=scene.pixel_size)
    scaled = density * np.float32(signal_scale(density, scene, diameter=diameter))
    scaled.setflags(write=False)
    return scaled


def ctf_columns(ctf: CTF) -> dict[str, NDArray[np.float64]]:
    """Return the per-item CTF variables of a dataset, name to (n,) values.

    Parameters
    ----------
    ctf : CTF
        Of the items.
    """
    names = ("defocus_u", "defocus_v", "defocus_angle", "phase_shift")
    return {name: getattr(ctf, name) for name in names}


def optics_columns(scene: Scene) -> dict[str, list[Any]]:
    """Return the optics table, one group, of a simulation.

    Parameters
    ----------
    scene : Scene
        Conditions.
    """
    return {
        "optics_name": ["simulated"],
        "voltage": [scene.voltage],
        "spherical_aberration": [scene.spherical_aberration],
        "amplitude_contrast": [scene.amplitude_contrast],
        "pixel_size": [scene.pixel_size],
    }


def scene_tables(scene: Scene) -> dict[str, Any]:
    """Return the variables of the optics table that hold the scene's aberrations, if any.

    Parameters
    ----------
    scene : Scene
        Conditions.
    """
    made: dict[str, Any] = {}
    if any(scene.beam_tilt):
        made["beam_tilt"] = [scene.beam_tilt]
    for name in ("odd_zernike", "even_zernike"):
        if any(getattr(scene, name)):
            made[name] = [getattr(scene, name)]
    if scene.magnification != Scene.magnification:
        made["magnification"] = [scene.magnification]
    return made
