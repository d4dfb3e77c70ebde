"""Picks of other programs, in pixels of their micrographs, and the dataset they become."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dspa.data import schema
from dspa.data.errors import InputError
from dspa.io.box import read_box
from dspa.io.cbox import read_cbox
from dspa.io.coordinates import Coordinates, on_micrographs
from dspa.io.csv_picks import read_csv_picks
from dspa.io.star import find_block, numbers, open_star, refuse_damaged
from dspa.io.star_kinds import listed, refuse_misspelt
from dspa.io.uids import pick_uids

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr

SUFFIXES = (".box", ".cbox", ".csv", ".txt", ".star")
_KNOWN = ("rlnCoordinateX", "rlnCoordinateY", "rlnMicrographName", "rlnAutopickFigureOfMerit")
# What pickers append to the name of the micrograph.
_APPENDED = re.compile(r"_(autopick|manualpick|extract|pick|picks|particles|cryolo)$")


@dataclass(frozen=True)
class _Joined:
    """Coordinates of several files, one table of micrographs."""

    names: tuple[str, ...]
    frame: pd.DataFrame


def read_picks(paths: Sequence[str | Path], *, pixel_size: float) -> xr.Dataset:
    """Read pick files; a file without micrograph names is of the micrograph it is named after.

    Parameters
    ----------
    paths : sequence of path
        ``.box`` (EMAN), ``.cbox`` (crYOLO), ``.csv``, ``.txt`` (topaz), ``.star`` with coordinates.
    pixel_size : float
        A, of the micrographs.

    Returns
    -------
    Dataset
        Particles without images; coordinates are NaN where a file has no numbers.
    """
    joined = _join([(Path(p), _read(Path(p))) for p in paths])
    frame = joined.frame
    if frame.empty:
        raise InputError(f"{paths[0]}: no picks in it")
    place = on_micrographs(frame[["x", "y"]].to_numpy(np.float64))
    micrograph = frame["micrograph"].to_numpy(np.int32)
    variables: dict[str, Any] = {
        "uid": pick_uids(joined.names, micrograph, place * pixel_size),
        "optics": np.zeros(len(frame), np.int32),
        "optics_name": ["opticsGroup1"],
        "micrograph_pixel_size": [pixel_size],
        "micrograph": micrograph,
        "micrograph_name": list(joined.names),
        "coordinate": place * pixel_size,
    }
    for column, name, factor in (("score", "ncc", 1.0), ("diameter", "pick_diameter", pixel_size)):
        values = frame[column].to_numpy(np.float64)
        if np.isfinite(values).any():
            variables[name] = np.clip(values * factor, -3e38, 3e38)
    return schema.make("particles", variables)


def _read(path: Path) -> Coordinates:
    suffix = path.suffix.lower()
    if suffix == ".box":
        return read_box(path)
    if suffix == ".cbox":
        return read_cbox(path)
    if suffix in (".csv", ".txt"):
        return read_csv_picks(path)
    if suffix == ".star":
        return _read_star(path)
    raise InputError(f"{path}: picks are read from {', '.join(SUFFIXES)} files")


def _read_star(path: Path) -> Coordinates:
    found = open_star(path)
    for each in found:
        refuse_misspelt(path, [each], _KNOWN)
    blocks = [b for b in found if "rlnCoordinateX" in b.labels]
    opened = find_block(blocks, "particles", "") or (blocks[0] if blocks else None)
    if opened is None or "rlnCoordinateY" not in opened.labels:
        refuse_damaged(found)
        raise InputError(
            f"{path}: no _rlnCoordinateX and _rlnCoordinateY; not a file of picks (it has "
            f"{listed(opened or found[0])})"
        )
    block = opened.read()
    if "rlnImageName" in block.columns:
        raise InputError(
            f"{path}: names images (rlnImageName), which picks do not have; import one file of "
            "particles at a time, or join them first (relion_star_handler --combine)"
        )

    def column(label: str) -> Any:
        if label not in block.columns:
            return np.full(block.rows, np.nan)
        return numbers(path, label, block.columns[label])

    return Coordinates(
        x=column("rlnCoordinateX"),
        y=column("rlnCoordinateY"),
        score=column("rlnAutopickFigureOfMerit"),
        diameter=np.full(block.rows, np.nan),
        micrograph=block.columns.get("rlnMicrographName"),
    )


def _join(tables: list[tuple[Path, Coordinates]]) -> _Joined:
    names: dict[str, int] = {}
    frames = []
    stems = Counter(_APPENDED.sub("", path.stem) for path, _ in tables)
    for path, table in tables:
        if table.micrograph is None:
            stem = _APPENDED.sub("", path.stem)
            if stems[stem] > 1:  # folders tell micrographs of one name apart
                stem = "/".join([*path.relative_to(path.anchor).parts[:-1], stem])
            codes = np.full(len(table.x), names.setdefault(stem, len(names)), np.int32)
        else:
            words = [str(name) for name in table.micrograph]
            codes = np.array([names.setdefault(w, len(names)) for w in words], np.int32)
        columns = {"x": table.x, "y": table.y, "score": table.score, "diameter": table.diameter}
        frames.append(pd.DataFrame({**columns, "micrograph": codes}))
    return _Joined(tuple(names), pd.concat(frames, ignore_index=True))
