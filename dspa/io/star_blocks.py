"""Which block of a STAR file lists particles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dspa.data.errors import InputError
from dspa.io.star import find_block, open_star, refuse_damaged
from dspa.io.star_kinds import listed, refuse_misspelt, refuse_tomograms

if TYPE_CHECKING:
    from pathlib import Path

    from dspa.io.star_rows import Block, Loop


def images_named(path: str | Path) -> bool:
    """Tell whether a STAR file lists the images of particles, not picks alone.

    Parameters
    ----------
    path : path
    """
    return any("rlnImageName" in block.labels for block in open_star(path))


def particle_block(path: str | Path, blocks: list[Block | Loop]) -> Block | Loop:
    """Find the table of particles or coordinates.

    Parameters
    ----------
    path : path
        For messages.
    blocks : list of Block or Loop

    Raises
    ------
    InputError
        If there is none, or more than one.
    """
    block = find_block(blocks, "particles", "images")
    if block is None:
        keys = ("rlnImageName", "rlnCoordinateX")
        fitting = [b for b in blocks if any(k in b.labels for k in keys)]
        block = fitting[0] if fitting else None
    if block is None:
        refuse_tomograms(path, blocks)
        refuse_damaged(blocks)
        for each in blocks:
            refuse_misspelt(path, [each], ("rlnImageName", "rlnCoordinateX", "rlnCoordinateY"))
        if find_block(blocks, "micrographs", "movies"):
            raise InputError(f"{path}: a STAR file of micrographs; use import micrographs")
        names = ", ".join(f"data_{b.name} of {listed(b)}" for b in blocks[:3])
        raise InputError(
            f"{path}: no block of particles or coordinates, _rlnImageName or _rlnCoordinateX "
            f"(it has {names})"
        )
    other = next((b for b in blocks if b is not block and "rlnImageName" in b.labels), None)
    if other is not None and "rlnImageName" in block.labels:
        raise InputError(
            f"{path}: both data_{block.name} and data_{other.name} list images; write each block "
            "to a file of its own"
        )
    return block
