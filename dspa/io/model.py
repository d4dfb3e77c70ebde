"""Atomic models, PDB or mmCIF (``.gz`` too), as Gaussians of electrostatic potential in ice."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING

import gemmi
import numpy as np

from dspa.data.errors import InputError, plainly
from dspa.io.locate import regular
from dspa.ops.simulate.phantom import Atoms

if TYPE_CHECKING:
    from pathlib import Path

MAXIMUM_ATOMS = 20_000_000
MAXIMUM_INFLATION = 64  # atoms compress five to ten times
_HYDROGENS = 1.0  # per heavy atom, where the model has none
_HYDROGEN_LENGTH = 0.529  # A, electron scattering length of H
_ATOM_VOLUME = 17.0  # A^3 of ice a heavy atom of a protein and its hydrogens take the place of
_ICE = 0.0946  # scattering length of vitreous ice, A per A^3
_THERMAL = 20.0  # A^2, B factor where the model says none


def read_model(path: str | Path, *, assembly: str = "1", centred: bool = True) -> Atoms:
    """Read an atomic model as what scatters more than the ice it displaces.

    An atom adds its electron scattering length, and that of the hydrogens the model leaves out;
    the ice it displaces is taken off as a Gaussian of the atom's volume (Fraser, MacRae & Suzuki
    1978, doi:10.1107/S0021889878014296).

    Parameters
    ----------
    path : path
        ``.pdb``, ``.ent``, ``.cif``, ``.mmcif``, each with ``.gz`` too.
    assembly : str
        Biological assembly to build (BIOMT); an empty string takes the atoms as they are.
        A model that names no assembly is taken as it is.
    centred : bool
        Whether the centre of scattering becomes the origin; else coordinates are the file's.

    Returns
    -------
    Atoms
    """
    source = regular(path)
    if source.suffix == ".gz":
        _check_inflated(source)
    try:
        structure = gemmi.read_structure(str(source))
    except Exception as error:  # whatever the library says of a damaged file
        raise InputError(
            f"{path}: cannot be read as PDB or mmCIF ({plainly(error)}); check the file"
        ) from error
    if not len(structure) or not structure[0].count_atom_sites():
        raise InputError(f"{path}: holds no atoms; give an atomic model (PDB or mmCIF)")
    return _gaussians(_assembled(structure, assembly, source), source, centred=centred)


def _check_inflated(source: Path) -> None:
    """Refuse a compressed file that inflates to more than any model does."""
    limit = MAXIMUM_INFLATION * source.stat().st_size + (1 << 20)
    held = 0
    try:
        with gzip.open(source) as stream:
            while piece := stream.read(1 << 20):
                held += len(piece)
                if held > limit:
                    raise InputError(f"{source}: inflates to more than a model can; check the file")
    except (OSError, EOFError, zlib.error) as error:
        what = plainly(error)
        raise InputError(f"{source}: damaged gzip file ({what}); copy it again") from error


def _assembled(structure: gemmi.Structure, name: str, source: Path) -> gemmi.Model:
    """Build the assembly from the first model."""
    model = structure[0]
    if not name or not len(structure.assemblies):
        return model
    known = {assembly.name: assembly for assembly in structure.assemblies}
    if name not in known:
        raise InputError(f"{source}: has no assembly {name!r}; use one of {', '.join(known)}")
    copies = sum(len(generator.operators) for generator in known[name].generators)
    if copies * model.count_atom_sites() > MAXIMUM_ATOMS:
        raise InputError(f"{source}: assembly {name} has more than {MAXIMUM_ATOMS} atoms")
    try:
        return gemmi.make_assembly(known[name], model, gemmi.HowToNameCopiedChain.Dup)
    except RuntimeError as error:
        raise InputError(
            f"{source}: assembly {name} cannot be built ({plainly(error)}); use none"
        ) from error


def _gaussians(model: gemmi.Model, source: Path, *, centred: bool) -> Atoms:
    rows = [
        (*site.atom.pos.tolist(), _length(site.atom.element), site.atom.occ, site.atom.b_iso)
        for site in model.all()
        if not site.residue.is_water() and site.atom.occ > 0.0
    ]
    table = np.array([row for row in rows if np.all(np.isfinite(row))], np.float64).reshape(-1, 6)
    if not len(table):
        raise InputError(f"{source}: holds no atoms with coordinates and occupancy")
    position, length, occupancy, thermal = table[:, :3], table[:, 3], table[:, 4], table[:, 5]
    heavy = length > 1.5 * _HYDROGEN_LENGTH
    if heavy.mean() > 0.9:
        length = length + np.where(heavy, _HYDROGENS * _HYDROGEN_LENGTH, 0.0)
    if centred:
        position = position - np.average(position, axis=0, weights=length * occupancy)
    thermal = np.clip(np.where(thermal > 0.0, thermal, _THERMAL), 5.0, 200.0) / (8.0 * np.pi**2)
    displaced = -_ICE * _ATOM_VOLUME * (occupancy * heavy)
    hollow = np.full(len(table), _ATOM_VOLUME ** (2.0 / 3.0) / (2.0 * np.pi))
    return Atoms(
        np.tile(position, (2, 1)),
        np.concatenate([length * occupancy, displaced]),
        np.sqrt(np.concatenate([thermal + 0.12, thermal + hollow])),
    )


def _length(element: gemmi.Element) -> float:
    """Electron scattering length at zero angle in A; carbon's for an element without one."""
    coefficients = element.c4322 or gemmi.Element("C").c4322
    return float(coefficients.calculate_sf(0.0))
