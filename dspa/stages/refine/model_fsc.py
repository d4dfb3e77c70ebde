"""A map against an atomic model, in the frame of the map's header."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.transform import Rotation

from dspa.data.errors import InputError
from dspa.io.model import read_model
from dspa.ops.maps.align import align
from dspa.ops.maps.mask import soft_dilation
from dspa.ops.maps.resolution import TIGHT, measure_resolution, particle_region
from dspa.ops.simulate.phantom import Atoms, model_density

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.dataflow.events import Events
    from dspa.io.volumes import Volume
    from dspa.ops.maps.resolution import Resolution

ALIGNED_TO = 6.0  # A, the detail that an alignment looks at
ENVELOPE = 12.0  # A, low-pass of the model before its mask is made
INSIDE, HARDLY = 0.99, 0.5  # share of the atoms that lie in the box


def compare_with_model(
    volume: Volume,
    model: Path,
    *,
    assembly: str,
    aligned: bool,
    mask: NDArray[np.float32] | None,
    diameter: float,
    events: Events,
    seed: int = 0,
) -> Resolution:
    """Correlate a map with the density of a model on its grid.

    Parameters
    ----------
    volume : Volume
        A cube; its origin places it in the frame of the model.
    model : Path
    assembly : str
        To build; empty for the atoms as they are.
    aligned : bool
        Move the model onto the map first; else it is taken where it is.
    mask : (n, n, n) float32, optional
        Made of the model if left out.
    diameter : float
        Of the spherical mask, A.
    events : Events
    seed : int
        Of the random phases.
    """
    box, pixel_size = volume.density.shape[0], volume.pixel_size
    atoms = read_model(model, assembly=assembly, centred=False)
    centre = np.array(volume.origin) + (box // 2) * pixel_size
    if aligned:
        atoms = onto_map(atoms, volume, centre, events)
    positions = atoms.positions - centre
    check_in_box(model, positions, volume, events)
    density = model_density(
        Atoms(positions, atoms.weights, atoms.sigmas), box=box, pixel_size=pixel_size
    )
    if mask is None:
        region = particle_region(density, pixel_size, resolution=ENVELOPE)
        mask = soft_dilation(region, pixel_size=pixel_size, near=TIGHT[0], far=TIGHT[1])
    # On one scale, so that the loose mask, which follows the sum, is of both.
    scale = float((volume.density * mask).std() / max(float((density * mask).std()), 1e-30))
    return measure_resolution(
        volume.density,
        np.asarray(scale * density, np.float32),
        pixel_size=pixel_size,
        diameter=diameter,
        seed=seed,
        mask=mask,
    )


def check_in_box(
    model: Path, positions: NDArray[np.float64], volume: Volume, events: Events
) -> None:
    """Refuse a model most of which lies outside of a map.

    Parameters
    ----------
    model : Path
        For messages.
    positions : (n, 3) float64
        Of its atoms, from the centre of the grid, A.
    volume : Volume
        A cube.
    events : Events
        Warned if some of it does.
    """
    edge = volume.density.shape[0] * volume.pixel_size
    share = float((np.abs(positions) < 0.5 * edge).all(axis=1).mean())
    if share < HARDLY:
        raise InputError(
            f"{model}: {share:.0%} of the atoms lie in the box of the map; give the model in the "
            "frame of the map's header, or --align"
        )
    if share < INSIDE:
        events.warning(f"{model}: only {share:.0%} of the atoms lie in the box of the map")


def onto_map(atoms: Atoms, volume: Volume, centre: NDArray[np.float64], events: Events) -> Atoms:
    """Move atoms onto a map, and say how.

    Parameters
    ----------
    atoms : Atoms
        Anywhere.
    volume : Volume
        A cube.
    centre : (3,) float64
        Of its grid, in the frame of the atoms, A.
    events : Events
    """
    box, pixel_size = volume.density.shape[0], volume.pixel_size
    # Weights are of either sign (atoms and the ice they displace): by their size.
    middle = np.average(atoms.positions, axis=0, weights=np.abs(atoms.weights))
    centred = Atoms(atoms.positions - middle, atoms.weights, atoms.sigmas)
    density = model_density(centred, box=box, pixel_size=pixel_size)
    radius = max(8, int(box * pixel_size / ALIGNED_TO))
    found = align(density, volume.density, radius=radius, mirror="forbid")
    move = centre + pixel_size * found.shift - found.rotation @ middle
    turn = Rotation.from_matrix(found.rotation).as_rotvec(degrees=True)
    angle = float(np.linalg.norm(turn))
    axis = turn / max(angle, 1e-9)
    events.message(
        f"the model was turned by {angle:.1f} degrees about ({_triple(axis)}) through its zero, "
        f"then moved by ({_triple(move)}) A; score {found.score:.2f}"
    )
    return Atoms(atoms.positions @ found.rotation.T + move, atoms.weights, atoms.sigmas)


def _triple(vector: NDArray[np.float64]) -> str:
    return ", ".join(f"{number:.2f}" for number in vector)
