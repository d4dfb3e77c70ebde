"""Particles in several parts: by class, half set, optics, micrographs, score, or at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.io.particles import read_particles, write_particle_tables
from dspa.stages.particles.copies import image_copies, share_evenly
from dspa.stages.particles.lead import leading
from dspa.stages.particles.scores import score_values, show_cut
from dspa.stages.stage import Context, Input, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

_MOST = 100
# By what the particles say themselves: the variable, its first value, the name of a part, and what
# gives it.
_SAID = {
    "class": ("class_index", 0, "class", "sort them first (class2d, abinitio, hetero, class3d)"),
    "half-set": ("half_set", 1, "half", "refine assigns them"),
    "optics": ("optics", 0, "optics", "import them with optics groups"),
}


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa split-particles``."""

    by: str = param(
        help="What makes the parts. micrograph: whole micrographs, in their order; score: from the "
        "lowest scores to the highest; random: copies of one image in one part.",
        choices=("class", "half-set", "optics", "micrograph", "score", "random"),
    )
    parts: int | None = param(
        None, "Number of parts of equal size (2 if left out).", minimum=2, maximum=_MOST
    )
    score: str | None = param(
        None, "With --by score: posterior, fit, defocus ..., as of subset --score."
    )

    def together(self) -> None:
        """Refuse parts of what says itself how many there are, and a score that is not asked."""
        if self.by in _SAID and self.parts is not None:
            raise InputError(f"--parts does nothing with --by {self.by}; leave it out")
        if (self.by == "score") != (self.score is not None):
            raise InputError(
                "--by score needs --score, as in --score posterior"
                if self.by == "score"
                else f"--score does nothing with --by {self.by}; leave it out"
            )


@dataclass(frozen=True, eq=False)
class Division:
    """Particles and their parts.

    Attributes
    ----------
    table : Dataset
    part : (n,) int64
        Number of the part as users count, 0 of those in none.
    word : str
        ``class``, ``half``, ``optics`` or ``part``.
    values : (n,) float64 or None
        The score.
    cuts : tuple of float
    """

    table: xr.Dataset
    part: NDArray[np.int64]
    word: str
    values: NDArray[np.float64] | None = None
    cuts: tuple[float, ...] = ()


def divide(inputs: Mapping[str, Any], params: Params, *, seed: int = 0) -> Division:
    """Read particles and divide them.

    Parameters
    ----------
    inputs : mapping
        As of `run`.
    params : Params
    seed : int
        Of what is random.

    Raises
    ------
    InputError
        If the particles do not have what divides them.
    """
    params.together()
    path = inputs["particles"]
    table = read_particles(path, lazy=True)
    division = _divided(table, path, params, seed)
    found = np.unique(division.part[division.part > 0])
    if found.size > _MOST:
        raise InputError(
            f"{path}: {found.size} parts by {params.by}; take some of them with subset first, or "
            f"--by random with up to {_MOST}"
        )
    if not found.size:
        raise InputError(f"{path}: no particle has a {params.by}, so there are no parts")
    return division


def _divided(table: xr.Dataset, path: Path, params: Params, seed: int) -> Division:
    parts = params.parts or 2
    count = int(table.sizes["particle"])
    if params.by in _SAID:
        name, first, word, where = _SAID[params.by]
        if name not in table:
            raise InputError(f"{path}: the particles have no {params.by}; {where}")
        number = np.asarray(table[name].values, np.int64)
        return Division(table, np.where(number < first, 0, number - first + 1), word)
    if count < parts:
        raise InputError(f"{path}: {counted(count, 'particle')} in {parts} parts; take fewer")
    if params.by == "random":
        rng = np.random.default_rng([seed, 0x5917])
        return Division(
            table, 1 + share_evenly(rng, image_copies(table), parts).astype(int), "part"
        )
    if params.by == "micrograph":
        return Division(table, _by_micrograph(table, path, parts), "part")
    values = score_values(table, str(params.score))
    part = np.zeros(count, np.int64)
    rows = np.flatnonzero(np.isfinite(values))
    order = rows[np.argsort(values[rows], kind="stable")]
    pieces = np.array_split(order, parts)
    for at, chosen in enumerate(pieces, start=1):
        part[chosen] = at
    cuts = tuple(float(values[piece[0]]) for piece in pieces[1:] if piece.size)
    return Division(table, part, "part", values, cuts)


def _by_micrograph(table: xr.Dataset, path: Path, parts: int) -> NDArray[np.int64]:
    """Cut the micrographs, in their order, into parts of about equally many particles."""
    micrograph = np.asarray(table["micrograph"].values if "micrograph" in table else [], np.int64)
    if not (micrograph >= 0).any():
        raise InputError(f"{path}: the micrographs of the particles are not known; import them "
                         "with --micrographs")  # fmt: skip
    sizes = np.bincount(micrograph[micrograph >= 0])
    used = np.flatnonzero(sizes)
    if used.size < parts:
        raise InputError(
            f"{path}: {counted(used.size, 'micrograph')} in {parts} parts; take fewer parts"
        )
    reached, cuts = np.cumsum(sizes[used]), [0]
    for number in range(1, parts):
        at = int(np.searchsorted(reached, number * reached[-1] / parts)) + 1
        # Every part has a micrograph at least.
        cuts.append(int(np.clip(at, cuts[-1] + 1, used.size - (parts - number))))
    of = np.zeros(sizes.size, np.int64)
    for number, piece in enumerate(np.split(used, cuts[1:]), start=1):
        of[piece] = number
    return np.asarray(np.where(micrograph >= 0, of[micrograph], 0), np.int64)


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> dict[str, Path]:
    """Write every part.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``particles``: path.
    params : Params

    Returns
    -------
    outputs : dict
        ``particles_class1``, ``particles_half1``, ``particles_part1`` ..., and ``rest`` if there
        are particles in no part.
    """
    division = divide(inputs, params, seed=context.seed)
    table, part, word = division.table, division.part, division.word
    outputs: dict[str, Path] = {}
    told = []
    for number in np.unique(part).tolist():
        name = f"particles_{word}{number}" if number else "rest"
        rows = np.flatnonzero(part == number)
        outputs[name] = write_particle_tables(table, context.folder, name, rows=rows)[name]
        title = f"{word} {number}" if number else f"without a {params.by}"
        if word == "optics" and number:
            title += f" ({table['optics_name'].values[number - 1]})"
        told.append(f"{title}: {rows.size}")
    context.events.message(f"{counted(part.size, 'particle')}: {', '.join(told)}")
    if division.values is not None:
        show_cut(context.events, division.values, part > 0, name=str(params.score),
                 cuts=division.cuts)  # fmt: skip
    context.events.emit("result", particles=part.size, parts=len(outputs) - ("rest" in outputs))
    return outputs


def _plan(inputs: Mapping[str, Any], params: Params) -> Mapping[str, Any]:
    """Say what the parts would be."""
    division = divide(inputs, params)
    numbers, sizes = np.unique(division.part, return_counts=True)
    return {
        (f"{division.word} {number}" if number else "rest"): int(size)
        for number, size in zip(numbers.tolist(), sizes.tolist(), strict=True)
    }


STAGE = Stage(
    "split-particles",
    "divide particles by class, half set, micrographs, score or at random",
    Params,
    (Input("particles", "particles"),),
    run,
    _plan,
    admit=divide,
    lead=leading(100),
)
