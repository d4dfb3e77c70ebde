"""Messages about rows of STAR files name the line of the file."""

from __future__ import annotations

import pytest

from dspa.data.errors import InputError
from dspa.io.star_micrographs import read_star_micrographs
from dspa.io.star_particles import read_star_particles

HEAD = """data_optics

loop_
_rlnOpticsGroup #1
_rlnImagePixelSize #2
1 3.0

data_particles
# a comment

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnRandomSubset #3
"""


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            "1@a.mrcs 1 1\n2@a.mrcs 1 1.5\n",
            r"row 2: rlnRandomSubset is 1.5.*\(line 16 of the file\)$",
        ),
        # Rows that name nothing count, as blank lines and comments do not.
        (
            "1@a.mrcs 1 1\n\nNone 1 1\n# c\n3@a.mrcs 1 1.5\n",
            r"row 3: rlnRandom.*\(line 19 of the file\)$",
        ),
        (
            "1@a.mrcs 1 1\nx@a.mrcs 1 1\n3@a.mrcs 1 1\n",
            r"rlnImageName in row 2 is .*\(line 16 of the file\)$",
        ),
        ("1@a.mrcs 1 1\n2@a.mrcs 7 1\n", r"row 2 is of optics group 7.*\(line 16 of the file\)$"),
    ],
)
def test_rows_of_particles_are_told_with_their_lines(tmp_path, rows, told):
    path = tmp_path / "p.star"
    path.write_text(HEAD + rows)
    with pytest.raises(InputError, match=told):
        read_star_particles(path)


def test_lines_of_files_that_were_rewritten_are_not_guessed(tmp_path):
    path = tmp_path / "p.star"
    path.write_bytes((HEAD + "1@a.mrcs 1 1\n2@a.mrcs 1 1.5\n").encode("utf-16"))
    with pytest.raises(InputError, match=r"row 2: rlnRandomSubset[^(]*$"):
        read_star_particles(path)


def test_rows_of_micrographs_are_told_with_their_lines(tmp_path):
    path = tmp_path / "m.star"
    head = "data_micrographs\n\nloop_\n_rlnMicrographName #1\n_rlnDefocusU #2\n"
    path.write_text(head + "a.mrc 1e4\nb.mrc x\nc.mrc y\n")
    with pytest.raises(InputError, match=r"rlnDefocusU in row 2 is 'x'.*\(line 7 of the file\)$"):
        read_star_micrographs(path)
