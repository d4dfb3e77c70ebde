"""Atomic models: assemblies are built, ice is displaced, bad files are refused in one sentence."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.io.model import read_model

ATOM = "ATOM  {:5d}  CA  ALA A{:4d}    {:8.3f}{:8.3f}{:8.3f}{:6.2f}{:6.2f}           C  \n"
BIOMT = "".join(
    f"REMARK 350   BIOMT{row}   {copy} {' '.join(f'{v:9.6f}' for v in line)}      {0.0:9.5f}\n"
    for copy, turn in ((1, np.eye(3)), (2, np.diag([-1.0, -1.0, 1.0])))
    for row, line in enumerate(turn, 1)
)
HEADER = (
    "REMARK 350\nREMARK 350 BIOMOLECULE: 1\nREMARK 350 APPLY THE FOLLOWING TO CHAINS: A\n" + BIOMT
)


def model_text(count: int = 20) -> str:
    rng = np.random.default_rng(0)
    rows = [ATOM.format(n, n, *rng.normal((20, 0, 0), 8), 1.0, 30.0) for n in range(1, count + 1)]
    return HEADER + "".join(rows) + "END\n"


def test_the_assembly_is_built_and_centred(tmp_path: Path) -> None:
    path = tmp_path / "m.pdb.gz"
    path.write_bytes(gzip.compress(model_text().encode()))
    pair, alone = read_model(path), read_model(path, assembly="")
    assert len(pair) == 2 * len(alone) == 80  # an atom and the ice it displaces
    np.testing.assert_allclose(pair.positions[:40].mean(axis=0), 0.0, atol=1e-6)
    turned = pair.positions[:20] * [-1, -1, 1]
    np.testing.assert_allclose(turned, pair.positions[20:40], atol=2e-3)


def test_protein_scatters_more_than_the_ice_it_displaces(tmp_path: Path) -> None:
    path = tmp_path / "m.pdb"
    path.write_text(model_text())
    atoms = read_model(path, assembly="")
    carbon, ice = atoms.weights[:20], atoms.weights[20:]
    np.testing.assert_allclose(carbon, 2.509 + 0.529, rtol=2e-3)
    assert (ice < 0).all()
    assert 0.2 < (carbon + ice).mean() / carbon.mean() < 0.6


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "m.cif"),
        ("END\n", "m.cif"),
        ("data_x\nloop_\n_atom_site.id\n", "m.cif"),
        ("HEADER nothing\n" * 5, "m.cif"),
    ],
)
def test_bad_models_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "m.cif"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_model(path)


def test_a_missing_file_and_assembly_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_model(tmp_path / "none.pdb")
    path = tmp_path / "m.pdb"
    path.write_text(model_text())
    with pytest.raises(InputError, match="no assembly '7'; use one of 1"):
        read_model(path, assembly="7")
