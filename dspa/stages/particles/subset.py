"""Some of the particles: those with good scores, some at random, or one of each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.data.schema import EXTRA
from dspa.io.particles import read_particles, write_particle_tables, write_particles
from dspa.ops.picks.duplicates import best_first
from dspa.stages.particles.copies import image_copies, origin
from dspa.stages.particles.duplicates import SCORES
from dspa.stages.particles.lead import leading
from dspa.stages.particles.scores import score_values, show_cut
from dspa.stages.stage import Context, Input, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa subset``."""

    score: str | None = param(
        None,
        "What particles are judged by: posterior, fit, scale, evidence, ncc, defocus ..., or a "
        "column of another program such as rlnMaxValueProbDistribution.",
    )
    minimum: float | None = param(None, "Lowest score that is kept.", minimum=-1e12, maximum=1e12)
    maximum: float | None = param(None, "Highest score that is kept.", minimum=-1e12, maximum=1e12)
    best: int | None = param(
        None, "Keep so many with the highest scores.", minimum=1, maximum=1_000_000_000
    )
    fraction: float | None = param(
        None, "Keep this share with the highest scores.", minimum=1e-6, maximum=1
    )
    lowest: bool = param(False, "With --best or --fraction: the lowest scores are the best.")
    random: int | None = param(
        None,
        "Keep so many at random (--seed), copies of one image with each other.",
        minimum=1,
        maximum=1_000_000_000,
    )
    one_per_image: bool = param(
        False,
        "Of copies of one image, as of a symmetry expansion, keep the best by --score, or else by "
        "log-likelihood and posterior.",
    )

    def together(self) -> None:
        """Refuse no cut or more than one, and options that would do nothing."""
        between = self.minimum is not None or self.maximum is not None
        cuts = {
            "--minimum or --maximum": between,
            "--best": self.best is not None,
            "--fraction": self.fraction is not None,
            "--random": self.random is not None,
        }
        given = [name for name, there in cuts.items() if there]
        if len(given) > 1:
            raise InputError(f"{given[0]} and {given[1]} do not go together; leave one out")
        if not given and not self.one_per_image:
            raise InputError(
                "give what to keep: --minimum, --maximum, --best, --fraction, --random or "
                "--one-per-image"
            )
        if given and self.random is None and self.score is None:
            raise InputError(f"{given[0]} needs --score, as in --score posterior")
        if self.random is not None and self.score is not None and not self.one_per_image:
            raise InputError("--score does nothing with --random; leave it out")
        if self.lowest and self.best is None and self.fraction is None:
            raise InputError("--lowest does nothing without --best or --fraction; leave it out")
        low, high = self.minimum, self.maximum
        if low is not None and high is not None and low > high:
            raise InputError(f"--minimum {low:g} is above --maximum {high:g}")


@dataclass(frozen=True, eq=False)
class Choice:
    """Particles and which of them are kept.

    Attributes
    ----------
    table : Dataset
    values : (n,) float64 or None
        The score.
    single : (n,) bool
        One row of each image, or all.
    keep : (n,) bool
    cuts : tuple of float
        Of the score.
    """

    table: xr.Dataset
    values: NDArray[np.float64] | None
    single: NDArray[np.bool_]
    keep: NDArray[np.bool_]
    cuts: tuple[float, ...]


def choose(inputs: Mapping[str, Any], params: Params, *, seed: int = 0) -> Choice:
    """Read particles and decide which are kept.

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
        If there is no such score, or nothing would be kept.
    """
    params.together()
    path = inputs["particles"]
    table = read_particles(path, lazy=True)
    values = score_values(table, params.score) if params.score else None
    single = np.ones(int(table.sizes["particle"]), bool)
    if params.one_per_image:
        single = one_per_image(table, values if values is None or not params.lowest else -values)
    keep = single.copy()
    cuts: tuple[float, ...] = ()
    if params.random is not None:
        keep &= _drawn(table, single, params.random, seed)
    elif values is not None:
        inside, cuts = _inside(values, single, params)
        keep &= inside
    if not keep.any():
        known = values[np.isfinite(values)] if values is not None else np.zeros(1)
        raise InputError(
            f"{path}: no particle is kept; {params.score} goes from {known.min():g} to "
            f"{known.max():g}"
        )
    return Choice(table, values, single, keep, cuts)


def _inside(
    values: NDArray[np.float64], among: NDArray[np.bool_], params: Params
) -> tuple[NDArray[np.bool_], tuple[float, ...]]:
    """Say which scores are kept, (n,) bool, and where they are cut."""
    finite = np.isfinite(values)
    number = params.best
    if params.fraction is not None:
        number = max(1, round(params.fraction * int((finite & among).sum())))
    if number is None:
        if params.minimum is None and params.maximum is None:
            return np.ones(values.size, bool), ()
        low = -np.inf if params.minimum is None else params.minimum
        high = np.inf if params.maximum is None else params.maximum
        return finite & (values >= low) & (values <= high), (low, high)
    rows = np.flatnonzero(finite & among)
    better = -values[rows] if not params.lowest else values[rows]
    chosen = rows[np.argsort(better, kind="stable")[:number]]
    keep = np.zeros(values.size, bool)
    keep[chosen] = True
    cut = values[chosen].max() if params.lowest else values[chosen].min()
    return keep, (float(cut),)


def _drawn(
    table: xr.Dataset, among: NDArray[np.bool_], number: int, seed: int
) -> NDArray[np.bool_]:
    """Draw particles at random, all copies of an image or none: (n,) bool."""
    groups = image_copies(table)
    order = np.random.default_rng([seed, 0x5B5E]).permutation(int(groups.max(initial=-1)) + 1)
    sizes = np.bincount(groups[among], minlength=order.size)[order]
    taken = np.zeros(order.size, bool)
    taken[order[np.cumsum(sizes) <= number]] = True
    return np.asarray(taken[groups], np.bool_)


def one_per_image(
    table: xr.Dataset, values: NDArray[np.float64] | None = None
) -> NDArray[np.bool_]:
    """Say which row of each image is the best: (n,) bool.

    The highest score, or else log-likelihood, posterior; then the copy of the lowest operator.

    Parameters
    ----------
    table : Dataset
    values : (n,) float64, optional
        The score.
    """
    scores = [values] if values is not None else []
    scores += [np.asarray(table[name].values) for name in SCORES if name in table]
    if "symmetry_copy" in table:
        scores.append(-np.asarray(table["symmetry_copy"].values, np.float64))
    order = best_first(scores, table["uid"].values)
    _, first = np.unique(image_copies(table)[order], return_index=True)
    single = np.zeros(order.size, bool)
    single[order[first]] = True
    return single


def contracted(table: xr.Dataset) -> xr.Dataset:
    """Return rows of which none is a copy of another as the particles that they come from.

    Parameters
    ----------
    table : Dataset
        Perhaps of a symmetry expansion.
    """
    if "expanded_from" not in table:
        return table
    known = table.assign(uid=("particle", origin(table)))
    fields = [n for n in map(str, table.variables) if n.startswith(f"{EXTRA}cs:sym_expand/")]
    return known.drop_vars(["expanded_from", "symmetry_copy", *fields], errors="ignore")


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> dict[str, Path]:
    """Write the particles that are kept, and the others.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``particles``: path.
    params : Params

    Returns
    -------
    outputs : dict
        ``particles``, ``particles_star``, ``rejected``.
    """
    choice = choose(inputs, params, seed=context.seed)
    table, keep, values = choice.table, choice.keep, choice.values
    kept = contracted(table) if params.one_per_image else table
    outputs = write_particle_tables(kept, context.folder, rows=np.flatnonzero(keep))
    outputs["rejected"] = context.folder / "rejected.zarr"
    write_particles(table, outputs["rejected"], rows=np.flatnonzero(~keep))
    _tell(context, choice, params)
    if values is not None:
        shown = choice.single
        show_cut(context.events, values[shown], keep[shown], name=str(params.score),
                 cuts=choice.cuts)  # fmt: skip
    context.events.emit("result", particles=int(keep.sum()), rejected=int((~keep).sum()))
    return outputs


def _tell(context: Context, choice: Choice, params: Params) -> None:
    """Say how many are kept, and what has no score."""
    events, keep, values = context.events, choice.keep, choice.values
    if params.one_per_image:
        copies = int((~choice.single).sum())
        events.message(f"{counted(copies, 'copy', 'copies')} of images left out, the best kept")
    said = ""
    if values is not None:
        cut = ", ".join(f"{c:.6g}" for c in choice.cuts if np.isfinite(c))
        said = f"; {params.score} cut at {cut}" if cut else ""
        lacking = int((~np.isfinite(values) & choice.single).sum())
        if lacking:
            events.warning(
                f"{counted(lacking, 'particle has', 'particles have')} no {params.score}"
            )
    events.message(f"{int(keep.sum())} of {counted(keep.size, 'particle')} kept{said}")


def _plan(inputs: Mapping[str, Any], params: Params) -> Mapping[str, Any]:
    """Say what would be kept."""
    choice = choose(inputs, params)
    return {"particles": int(choice.keep.sum()), "rejected": int((~choice.keep).sum())}


STAGE = Stage(
    "subset",
    "keep particles by a score, at random, or one of each image",
    Params,
    (Input("particles", "particles"),),
    run,
    _plan,
    admit=choose,
    lead=leading(200),
)
