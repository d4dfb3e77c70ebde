"""What STAR files may hold that dspa does not take: told apart before anything is read wrongly."""

from __future__ import annotations

import re
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.io import mrc
from dspa.io.star import Block, Loop, find_block, nameless, numbers, text
from dspa.io.star_lines import told_lines

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_GROUP = "rlnOpticsGroup"
# Flags of images that something was done to already, and what to do instead.
_FLAGS = {
    "rlnCtfDataAreCtfPremultiplied": (
        "the images are multiplied by their CTF already, which is not supported; extract them "
        "without --premultiply"
    ),
    "rlnCtfDataArePhaseFlipped": (
        "the phases of the images are flipped already, which is not supported; extract them "
        "without phase flipping"
    ),
    "rlnIsFlip": (
        "images that are to be mirrored, which is not supported; mirror the images and their "
        "angles, and remove the column"
    ),
}
# Labels of tomograms, tilt series and the particles in them (RELION 4 and 5).
_TOMO = ("rlnTomo", "rlnCenteredCoordinate", "rlnTilt")
_DEPTH, _CTF_IMAGE = "rlnCoordinateZ", "rlnCtfImage"
# Labels that mean something together only: one that is alone would be dropped.
_PAIRS = (
    ("rlnCoordinateX", "rlnCoordinateY"),
    ("rlnOriginX", "rlnOriginY"),
    ("rlnOriginXAngst", "rlnOriginYAngst"),
    ("rlnAngleRot", "rlnAngleTilt"),
)

# Labels of RELION that are spelt much like another one.
_RELATED = re.compile(r"rlnImageSize[XYZ]|rln(Coordinate|Origin)Z.*")
_LIKE = 0.9
_PREFIX = re.compile(r"^_*(rln|wrp|relion|xmipp)?_?", re.IGNORECASE)
_LISTED = 6


def refuse_misspelt(
    path: str | Path, blocks: Sequence[Block | Loop], known: Collection[str]
) -> None:
    """Refuse labels that would be ignored because they are spelt otherwise than RELION has them.

    Parameters
    ----------
    path : path
        For the message.
    blocks : sequence of Block or Loop
        What is read of the file.
    known : collection of str
        Labels that are read.

    Raises
    ------
    InputError
        Naming the labels found and expected.
    """
    there = {label for block in blocks for label in block.labels}
    lacking = {_plain(label): label for label in known if label not in there}
    for label in sorted(there - set(known)):
        if label.startswith("dspa") or ":" in label or _RELATED.fullmatch(label):
            continue
        meant = lacking.get(_plain(label))
        if meant is None and label.startswith("rln"):
            meant = next(iter(get_close_matches(label, lacking.values(), 1, _LIKE)), None)
        if meant is not None:
            raise InputError(
                f"{path}: the label _{label} would be ignored, and there is no _{meant}; write "
                "labels as RELION has them"
            )


def _plain(label: str) -> str:
    """Return a label without what programs and hands spell otherwise: prefix, case and marks."""
    return re.sub(r"[^a-z0-9]", "", _PREFIX.sub("", label).lower())


def refuse_unplaced(path: str | Path, block: Block | Loop) -> None:
    """Refuse rows that name no images and have no coordinates.

    Parameters
    ----------
    path : path
        For the message.
    block : Block or Loop
        The particles.

    Raises
    ------
    InputError
        Naming the labels found.
    """
    if {"rlnImageName", "rlnCoordinateX", "rlnCoordinateY"} & set(block.labels):
        return
    raise InputError(
        f"{path}: data_{block.name} has neither _rlnImageName nor _rlnCoordinateX and "
        f"_rlnCoordinateY, so neither particles nor picks (it has {listed(block)})"
    )


def listed(block: Block | Loop) -> str:
    """Return the first labels of a table, for messages.

    Parameters
    ----------
    block : Block or Loop
    """
    shown = ", ".join(f"_{label}" for label in block.labels[:_LISTED])
    return shown + (", ..." if len(block.labels) > _LISTED else "") if shown else "no labels"


def refuse_particles(path: str | Path, blocks: list[Block], rows: Block) -> None:
    """Refuse subtomograms, picks in tomograms, and images that were treated in a way that matters.

    Parameters
    ----------
    path : path
        For the message.
    blocks : list of Block
        The file.
    rows : Block
        Its particles, or a span of them.

    Raises
    ------
    InputError
    """
    dimension = _of_rows(path, blocks, rows, "rlnImageDimensionality")
    if (dimension == 3).any():
        raise InputError(
            f"{path}: rlnImageDimensionality is 3: subtomograms, which are not supported; give "
            "images of single particles"
        )
    if _DEPTH in rows.columns and "rlnImageName" not in rows.columns:
        if np.nan_to_num(numbers(path, _DEPTH, rows.columns[_DEPTH], rows.first)).any():
            raise InputError(
                f"{path}: coordinates with {_DEPTH}, of tomograms, which are not supported; give "
                "coordinates in micrographs"
            )
    if _CTF_IMAGE in rows.columns and not nameless(text(rows.columns[_CTF_IMAGE])).all():
        raise InputError(
            f"{path}: {_CTF_IMAGE}: subtomograms, or images whose CTF is in files, are not "
            "supported; give images of single particles with their defocus, without that column"
        )
    for pair in _PAIRS:
        there = [label for label in pair if label in rows.columns]
        if len(there) == 1:
            (lost,) = set(pair) - set(there)
            raise InputError(
                f"{path}: has {there[0]} but no {lost}, which says nothing; add the column, or "
                f"take {there[0]} out"
            )
    for label, sentence in _FLAGS.items():
        if np.nan_to_num(_of_rows(path, blocks, rows, label)).any():
            raise InputError(f"{path}: {label}: {sentence}")


def refuse_tomograms(path: str | Path, blocks: Iterable[Block | Loop]) -> None:
    """Refuse files of tomograms and tilt series.

    Parameters
    ----------
    path : path
        For the message.
    blocks : iterable of Block or Loop
    """
    for block in blocks:
        label = next((name for name in block.labels if name.startswith(_TOMO)), None)
        if label is not None:
            raise InputError(
                f"{path}: _{label} in data_{block.name}: tomograms and tilt series are not "
                "supported; give images of single particles, or their micrographs"
            )


def refuse_numberless(path: str | Path, stacks: Mapping[str, Path | None]) -> None:
    """Refuse images named without ``NUMBER@`` in files that hold more than one.

    Parameters
    ----------
    path : path
        For the message.
    stacks : mapping of str to Path or None
        Names without a number, and the files that were found.
    """
    for name, file in stacks.items():
        held = 1 if file is None or file.is_dir() else mrc.read_header(file).shape[0]
        if held > 1:
            raise InputError(
                f"{path}: rlnImageName {name} has no NUMBER@, and the file holds {held} sections: "
                "subtomograms and tilt series are not supported; name single images, NUMBER@STACK"
            )


def sound_rows(path: str | Path, block: Block, name: str) -> tuple[Block, list[int]]:
    """Leave out rows that name nothing, or no optics group where there are several.

    Parameters
    ----------
    path : path
        For messages.
    block : Block
        A table, or a span of it.
    name : str
        Label of what each row is about.

    Returns
    -------
    block : Block
    lacking : list of int
        The rows left out, from 1.
    """
    good = is_sound(path, block, name)
    if good.all():
        return block, []
    columns = {label: values[good] for label, values in block.columns.items()}
    return replace(block, columns=columns), (block.first + 1 + np.flatnonzero(~good)).tolist()


def is_sound(path: str | Path, block: Block, name: str) -> NDArray[np.bool_]:
    """Tell which rows name something, and an optics group where there are several: (n,) bool.

    Parameters
    ----------
    path, block, name
        As for `sound_rows`.
    """
    bad = np.zeros(block.rows, bool)
    if name in block.columns:
        names = text(block.columns[name])
        bad |= nameless(names) | is_zeroth(names)
    if _GROUP in block.columns:
        bad |= np.isnan(numbers(path, _GROUP, block.columns[_GROUP], block.first))
    return ~bad


def is_zeroth(names: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell names of image 0: they count from 1, (n,) bool.

    Parameters
    ----------
    names : (n,) object
    """
    return pd.Series(names, dtype=object).str.match(r"0+@").to_numpy(bool)


def refuse_zeroth(
    path: str | Path, last: Mapping[str, int], stacks: Mapping[str, Path | None]
) -> None:
    """Refuse images numbered from 0, unless a number of the same stack shows that it counts from 1.

    Parameters
    ----------
    path : path
        For the message.
    last : mapping of str to int
        The largest number in each stack of which an image 0 is named.
    stacks : mapping of str to Path or None
        The files that were found.

    Raises
    ------
    InputError
    """
    for name, number in last.items():
        file = stacks.get(name)
        if file is None or not file.is_file() or mrc.read_header(file).shape[0] > number:
            raise InputError(
                f"{path}: rlnImageName 0@{name}: images count from 1, and numbers of this stack "
                "may all be one too small; write them from 1"
            )


def note_of_rows(
    path: str | Path, block: Block | Loop, name: str, *, kept: int, lacking: Sequence[int]
) -> dict[str, str]:
    """Say of how many rows `sound_rows` left out, as the attribute ``set_aside``.

    Parameters
    ----------
    path, block, name
        As of `sound_rows`.
    kept : int
        Rows.
    lacking : sequence of int
        The rows left out, from 1.

    Raises
    ------
    InputError
        If none are left.
    """
    if not kept:
        raise InputError(f"{path}: every row of data_{block.name} lacks _{name} or _{_GROUP}")
    if not len(lacking):
        return {}
    where = told_lines(path, block, lacking)
    rows = counted(len(lacking), "row")
    return {"set_aside": f"{rows} without a sound {name} or {_GROUP} ({where})"}


def _of_rows(path: str | Path, blocks: list[Block], rows: Block, label: str) -> NDArray[np.float64]:
    """Return the values of a label that hold for the rows: their own, else of their groups."""
    if label in rows.columns:
        return numbers(path, label, rows.columns[label], rows.first)
    table = find_block(blocks, "optics")
    if table is None or label not in table.columns:
        return np.empty(0)
    values = numbers(path, label, table.columns[label])
    columns: Mapping[str, NDArray[Any]] = table.columns
    if _GROUP not in columns or _GROUP not in rows.columns:
        return values
    used = np.unique(numbers(path, _GROUP, rows.columns[_GROUP], rows.first))
    return values[np.isin(numbers(path, _GROUP, columns[_GROUP]), used)]
