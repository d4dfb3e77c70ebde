"""What is no set of particles is said by what it is, and by what to give instead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dspa
from dspa.data.errors import InputError
from dspa.stages.imports.gains import read_gain
from dspa.stages.imports.particles import PARTICLES_STAGE
from dspa.stages.imports.volume import VOLUME_STAGE
from tests.stages.desk import Desk

HEADER = "data_particles\n\nloop_\n_rlnImageName #1\n_rlnImagePixelSize #2\n"


def _star(name: str, stack: str = "s.mrcs", tail: str = "") -> None:
    rows = "".join(f"{i + 1:06d}@{stack} 2.0\n" for i in range(4))
    Path(name).write_bytes((HEADER + rows + tail).encode())


def _cs(name: str, field: str) -> None:
    with Path(name).open("wb") as stream:
        np.save(stream, np.zeros(2, [("uid", "u8"), (field, "S9")]))


@pytest.mark.parametrize(
    ("file", "told"),
    [
        (("a.star", "b.star"), "import each by itself and join them with dspa particle-sets"),
        ("box", "a folder; give its files: 'box/\\*.box'"),
        ("exposures.cs", "of micrographs, not of particles"),
        ("map.cs", "of maps, not of particles"),
        ("windows.star", "paths of Windows"),
        ("nul.star", "NUL bytes"),
        ("two.star", "both data_particles and data_particles2 list images"),
        ("long.star", "in row 5, saw 3"),
    ],
)
def test_the_true_cause_is_told(tmp_path, monkeypatch, file, told):
    monkeypatch.chdir(tmp_path)
    for name in ("a.star", "b.star"):
        _star(name)
    _star("windows.star", "Stacks\\parts.mrcs")
    _star("nul.star", tail="\0" * 64)
    _star("two.star", tail="\n" + HEADER.replace("particles", "particles2") + "1@s.mrcs 2.0\n")
    _star("long.star", tail="000001@s.mrcs 2.0 3\n")
    _cs("exposures.cs", "micrograph_blob/path")
    _cs("map.cs", "map/path")
    Path("box").mkdir()
    Path("box/m.box").write_text("10 20 8 8\n")
    with pytest.raises(InputError, match=told):
        Desk(tmp_path).run(PARTICLES_STAGE, file=file)


def test_a_map_of_cryosparc_and_a_gain_of_another_format(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"give the \.mrc file"):
        Desk(tmp_path).run(VOLUME_STAGE, file="vol.cs")
    with pytest.raises(InputError, match=r"\.gain files; write it as \.mrc"):
        read_gain("g.dm4", rotate=0, flip="none", use="auto")


def test_the_package_shows_what_is_meant_for_users():
    assert not {"Any", "importlib", "annotations"} & set(dir(dspa))
    assert {"class2d", "plots", "result"} <= set(dir(dspa))
