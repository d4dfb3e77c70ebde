"""What the two simulating stages share: the true density, the scene, the tables of the truth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.io.model import read_model
from dspa.io.volumes import read_volume
from dspa.ops.simulate.images import particle_diameter
from dspa.ops.simulate.phantom import model_density, phantom_atoms
from dspa.ops.simulate.scene import Scene, Views, signal_scale
from dspa.stages.stage import param

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.ops.ctf.model import CTF

_MARGIN = 12.0  # A of nothing around the molecule


@dataclass(frozen=True)
class SceneParams:
    """The parameters that all simulations have, in the units people type."""

    model: str = param("", "atomic model, PDB or mmCIF (.gz too); the built-in D7 phantom if empty")
    assembly: str = param("1", "biological assembly of the model to build; empty for none")
    pixel_size: float = param(2.0, "pixel size", unit="A", minimum=0.1, maximum=20.0)
    snr: float = param(0.05, "signal-to-noise ratio of a pixel", minimum=1e-6, maximum=1e6)
    voltage: float = param(300.0, "acceleration voltage", unit="kV", minimum=50, maximum=1000)
    cs: float = param(2.7, "spherical aberration", unit="mm", minimum=0, maximum=20)
    amplitude_contrast: float = param(0.1, "amplitude contrast", minimum=0, maximum=0.99)
    min_defocus: float = param(10000.0, "smallest defocus", unit="A", minimum=0, maximum=100000)
    max_defocus: float = param(25000.0, "largest defocus", unit="A", minimum=0, maximum=100000)
    astigmatism: float = param(400.0, "largest astigmatism", unit="A", minimum=0, maximum=20000)
    bfactor: float = param(60.0, "envelope of the particles", unit="A^2", minimum=0, maximum=1000)
    views: str = param("random", "preferred view", choices=("random", "top", "side"))
    thon: float = param(0.35, "share of the noise seen through the CTF", minimum=0, maximum=1)
    colour: float = param(0.3, "share of the rest that falls with frequency", minimum=0, maximum=1)
    junk: float = param(0.05, "junk, as a fraction of the particles", minimum=0, maximum=10)


def true_density(params: SceneParams) -> NDArray[np.float32]:
    """Make the density of the model, or of the phantom, in an even box that just holds it.

    Parameters
    ----------
    params : SceneParams
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


def make_scene(params: SceneParams, **rest: Any) -> Scene:
    """Turn parameters as typed into the scene, in house units.

    Parameters
    ----------
    params : SceneParams
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
        SceneParams.
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
        SceneParams.
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
        SceneParams.
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
