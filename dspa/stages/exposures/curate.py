"""Keep the micrographs worth going on with: by their CTF, ice, picks, brightness, or by name."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted, counted_of
from dspa.data.errors import InputError, NothingLeft
from dspa.io.micrographs import read_micrographs, write_micrographs
from dspa.io.names import match_files
from dspa.io.particles import read_particles, write_particle_tables
from dspa.io.picture import histogram, scatter
from dspa.io.star import find_block, read_star
from dspa.stages.exposures.figures import (
    QUALITIES,
    count_by_micrograph,
    exposure_figures,
    mean_intensity,
)
from dspa.stages.exposures.tasks import in_known_order, micrograph_tasks
from dspa.stages.extraction.tables import find_micrographs
from dspa.stages.picks.tables import write_picks
from dspa.stages.stage import Context, Input, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.exposures.figures import Figure

# Figures whose histograms tell nothing that others do not.
_NOT_DRAWN = ("index", "ctf_quality", "ctf_score")
# Names that a message lists.
LISTED = 5


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa curate-exposures``."""

    max_ctf_resolution: float | None = param(
        None, "Worst resolution of the CTF fit kept.", unit="A", minimum=0, maximum=100000
    )
    defocus: tuple[float, float] | None = param(
        None, "Lowest and highest mean defocus kept.", unit="A", minimum=-1000000, maximum=1000000
    )
    max_astigmatism: float | None = param(
        None, "Largest difference of the two defoci kept.", unit="A", minimum=0, maximum=1000000
    )
    max_ice: float | None = param(
        None, "Largest ice-ring figure kept.", minimum=-1000000, maximum=1000000
    )
    min_ctf_quality: str | None = param(
        None, "Worst CTF fit kept: weak drops the failed ones, good the weak ones too.",
        choices=QUALITIES[1:],
    )  # fmt: skip
    min_picks: int | None = param(
        None, "Fewest picks (or particles) kept.", minimum=0, maximum=1_000_000_000
    )
    max_picks: int | None = param(
        None, "Most picks (or particles) kept.", minimum=0, maximum=1_000_000_000
    )
    intensity: tuple[float, float] | None = param(
        None,
        "Lowest and highest mean intensity kept, over the median of all micrographs.",
        minimum=-1e09,
        maximum=1e09,
    )
    exclude: tuple[str, ...] = param(
        (), "Micrographs to reject, by name, or a file with a name in every line."
    )
    include: tuple[str, ...] = param(
        (), "Micrographs to accept whatever the rules say, by name or file."
    )

    def growing(self) -> None:
        """Refuse a rule whose limit moves as micrographs come."""
        if self.intensity is not None:
            raise InputError(
                "--intensity is relative to the median of all micrographs, which moves as they "
                "come; leave it out"
            )


@dataclass(frozen=True)
class Rule:
    """What a figure must be.

    Attributes
    ----------
    option : str
        As typed on the command line.
    figure : str
    low, high : float
        Both are accepted; what is not known is not.
    """

    option: str
    figure: str
    low: float = -math.inf
    high: float = math.inf

    def accepts(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Say which values are accepted."""
        return np.asarray((values >= self.low) & (values <= self.high))


def rules_of(params: Params) -> list[Rule]:
    """List the rules that were given, in the order of the parameters."""
    rules = []
    limits = {"max_ctf_resolution": "ctf_resolution", "max_astigmatism": "astigmatism",
              "max_ice": "ice"}  # fmt: skip
    for name, figure in limits.items():
        value = getattr(params, name)
        if value is not None:
            rules.append(Rule(f"{_option(name)} {value:g}", figure, high=value))
    for name in ("defocus", "intensity"):
        span = getattr(params, name)
        if span is not None:
            text = f"{_option(name)} {span[0]:g} {span[1]:g}"
            if span[0] > span[1]:
                raise InputError(f"{text}: the first must be the lower one")
            rules.append(Rule(text, name, *span))
    if params.min_ctf_quality is not None:
        worst = params.min_ctf_quality
        rules.append(Rule(f"--min-ctf-quality {worst}", "ctf_quality", QUALITIES.index(worst)))
    low, high = params.min_picks, params.max_picks
    if low is not None:
        rules.append(Rule(f"--min-picks {low}", "picks", low=low))
    if high is not None:
        rules.append(Rule(f"--max-picks {high}", "picks", high=high))
    return rules


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, eq=False)
class Verdict:
    """Who is kept, and why not.

    Attributes
    ----------
    keep : (m,) bool
    broken : mapping of str to (m,) bool
        By rule as typed: the micrographs that break it.
    """

    keep: NDArray[np.bool_]
    broken: Mapping[str, NDArray[np.bool_]]

    def reasons(self, row: int) -> str:
        """Return the rules that a micrograph breaks."""
        return "; ".join(rule for rule, rows in self.broken.items() if rows[row])


def judge(
    figures: Mapping[str, Figure],
    rules: Sequence[Rule],
    table: xr.Dataset,
    params: Params,
    *,
    all_named: bool = True,
) -> Verdict:
    """Hold every micrograph against the rules.

    Who is named to be excluded and to be included is excluded.

    Parameters
    ----------
    figures : mapping
        From `exposure_figures`.
    rules : sequence of Rule
    table : Dataset
        Micrographs, for their names.
    params : Params
        ``exclude`` and ``include``.
    all_named : bool
        Refuse a name that is not there; else it may come yet.

    Raises
    ------
    InputError
        If a figure is not known of any micrograph, a name is not there, there is no rule, or no
        micrograph is left.
    """
    broken = {}
    for rule in rules:
        if rule.figure not in figures:
            raise InputError(f"{rule.option}: {_LACKING[rule.figure]}")
        broken[rule.option] = ~rule.accepts(figures[rule.figure].values)
    exclude = names_of(params.exclude, table, "--exclude", all_there=all_named)
    if params.exclude:
        broken["--exclude"] = exclude
    if not broken:
        raise InputError(
            "nothing to choose by: give a rule such as --max-ctf-resolution 6, or --exclude names"
        )
    include = names_of(params.include, table, "--include", all_there=all_named)
    keep = ~np.any(list(broken.values()), axis=0) | include
    verdict = Verdict(keep & ~exclude, broken)
    if not verdict.keep.any():
        raise NothingLeft(f"no micrograph of {exclude.size} is left; {_tally(verdict)}")
    return verdict


_NO_CTF = "the micrographs have no CTF; run dspa ctf first"
_LACKING = {
    "ctf_resolution": "the micrographs have no fit resolution; run dspa ctf first",
    "defocus": _NO_CTF,
    "astigmatism": _NO_CTF,
    "ctf_quality": "the micrographs have no CTF quality; run dspa ctf first",
    "ice": "the micrographs have no ice figure; run dspa ctf on them again",
    "picks": "there are no picks to count; name a picking job, or give --picks or --particles",
    "intensity": "no intensity could be measured",
}


def names_of(
    given: Sequence[str], table: xr.Dataset, option: str, *, all_there: bool = True
) -> NDArray[np.bool_]:
    """Mark the micrographs that are named: (m,) bool.

    Parameters
    ----------
    given : sequence of str
        Names, or files that list them (text with a name in every line, or STAR).
    table : Dataset
        Micrographs.
    option : str
        For the message.
    all_there : bool
        Refuse a name that is not among them.
    """
    words = [name for word in given for name in _listed(word)]
    known = [str(name) for name in table["micrograph_name"].values]
    paths = [str(path) for path in table["path"].values]
    matches = match_files(words, known, paths=paths, source=option, exclusive=False)
    found = matches.found
    if all_there and (found < 0).any():
        lost = [word for word, at in zip(words, found, strict=True) if at < 0]
        shown = ", ".join(lost[:LISTED]) + (", ..." if len(lost) > LISTED else "")
        strange = counted_of(len(lost), len(words), "name", verb=("is", "are"))
        raise InputError(f"{option}: {strange} not among the micrographs ({shown})")
    marked = np.zeros(len(known), bool)
    marked[found[found >= 0]] = True
    return marked


def _listed(word: str) -> list[str]:
    """Return the names in a file, or the word itself if it is no list."""
    path = Path(word).expanduser()
    if path.suffix == ".star" and path.is_file():
        block = find_block(read_star(path), "micrographs", "movies", "")
        if block is None or "rlnMicrographName" not in block.columns:
            raise InputError(f"{word}: no _rlnMicrographName in it; list names, one in a line")
        return [str(name) for name in block.columns["rlnMicrographName"]]
    if path.suffix in (".txt", ".lst", ".list", "") and path.is_file():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{word}: not a text file; list names, one in a line") from error
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return [word]


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> Mapping[str, Path]:
    """Apply the rules, and split the micrographs (and what was picked on them)."""
    table = read_micrographs(inputs["micrographs"])
    counted = inputs.get("particles") or inputs.get("picks")
    picks = read_particles(counted) if counted else None
    counts = None if picks is None else count_by_micrograph(picks, table)
    intensity = None
    if params.intensity is not None:
        tasks = micrograph_tasks(table)
        measured = context.runner.map(mean_intensity, tasks, name="intensity")
        intensity = np.array(measured, np.float64)
    figures = exposure_figures(table, picks=counts, intensity=intensity)
    rules = rules_of(params)
    verdict = judge(figures, rules, table, params, all_named=not context.grows)
    outputs = _write(context, table, verdict.keep)
    _write_figures(context.folder / "exposures.csv", table, figures, verdict)
    if picks is not None:
        kind = "particles" if inputs.get("particles") else "picks"
        outputs |= _write_picks(context, picks, table, verdict.keep, kind=kind)
    _show(context, figures, rules, verdict.keep)
    _tell(context, verdict)
    return outputs


def _write(context: Context, table: xr.Dataset, keep: NDArray[np.bool_]) -> dict[str, Path]:
    folder = context.folder
    for name, rows in (("micrographs", keep), ("rejected", ~keep)):
        part = table.isel(micrograph=np.flatnonzero(rows))
        names = [str(each) for each in part["micrograph_name"].values]
        part = part.isel(micrograph=in_known_order(context, f"{name}.zarr", names))
        write_micrographs(part, folder / f"{name}.zarr")
        write_micrographs(part, folder / f"{name}.star")
    return {"micrographs": folder / "micrographs.zarr", "rejected": folder / "rejected.zarr"}


def _write_picks(
    context: Context, picks: xr.Dataset, table: xr.Dataset, keep: NDArray[np.bool_], *, kind: str
) -> dict[str, Path]:
    """Write the picks, or particles, of the accepted micrographs."""
    names = [str(name) for name in table["micrograph_name"].values]
    where = find_micrographs(picks, names)
    inside = (where >= 0) & keep[where]
    context.events.message(f"{int(inside.sum())} of {inside.size} {kind} lie on them")
    if not inside.any():
        context.events.warning(f"no {kind} are left on the accepted micrographs")
        return {}
    chosen = picks.isel(particle=np.flatnonzero(inside))
    context.events.emit("result", **{kind: int(inside.sum())})
    if kind == "picks":
        return write_picks(context.folder, chosen)
    return write_particle_tables(chosen, context.folder)


def _write_figures(
    path: Path, table: xr.Dataset, figures: Mapping[str, Figure], verdict: Verdict
) -> None:
    """Write every figure of every micrograph, and why it was rejected."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["micrograph_name", *figures, "accepted", "breaks"])
        for row, name in enumerate(table["micrograph_name"].values):
            values = [f"{figure.values[row]:.6g}" for figure in figures.values()]
            kept = "yes" if verdict.keep[row] else "no"
            writer.writerow([str(name), *values, kept, verdict.reasons(row)])


def _show(
    context: Context, figures: Mapping[str, Figure], rules: Sequence[Rule], keep: NDArray[np.bool_]
) -> None:
    """Put a histogram of every figure, and how they go together, into the report."""
    limits: dict[str, list[float]] = {}
    for rule in rules:
        edges = [value for value in (rule.low, rule.high) if math.isfinite(value)]
        limits.setdefault(rule.figure, []).extend(edges)
    varied = {name: f for name, f in figures.items() if f.varies and name not in _NOT_DRAWN}
    for name, figure in varied.items():
        sets = {"rejected": figure.shown[~keep], "accepted": figure.shown[keep]}
        context.events.picture(
            name,
            histogram(sets, bins=40, xlabel=figure.label, thresholds=limits.get(name, [])),
            title=figure.label,
        )
    pairs = [("defocus", "ctf_resolution"), ("defocus", "picks"), ("ctf_resolution", "picks"),
             ("defocus", "astigmatism"), ("index", "ctf_resolution")]  # fmt: skip
    for first, second in pairs:
        if second in varied and (first in varied or first == "index"):
            x, y = figures[first], figures[second]
            png = scatter(
                x.shown, y.shown, colour=keep, xlabel=x.label, ylabel=y.label,
                vertical=limits.get(first, []), horizontal=limits.get(second, []),
            )  # fmt: skip
            title = f"{y.label} against {x.label}"
            context.events.picture(f"{first}_{second}", png, title=title)


def _tally(verdict: Verdict) -> str:
    """Say how many micrographs each rule rejects, and how many only that one."""
    total = np.sum(list(verdict.broken.values()), axis=0)
    parts = [
        f"{rule} rejects {int(rows.sum())} ({int((rows & (total == 1)).sum())} by itself)"
        for rule, rows in verdict.broken.items()
    ]
    return ", ".join(parts)


def _tell(context: Context, verdict: Verdict) -> None:
    for line in _tally(verdict).split(", "):
        context.events.message(line)
    kept, count = int(verdict.keep.sum()), verdict.keep.size
    context.events.message(
        f"{kept} of {counted(count, 'micrograph')} accepted; all figures and reasons are in "
        "exposures.csv"
    )
    by_rule = {
        f"{rule.split()[0].lstrip('-')} rejects": int(rows.sum())
        for rule, rows in verdict.broken.items()
    }
    context.events.emit("result", accepted=kept, rejected=count - kept, **by_rule)


def plan(inputs: Mapping[str, Any], params: Params) -> Mapping[str, Any]:
    """Say how many there are to choose from."""
    return {
        "micrographs": read_micrographs(inputs["micrographs"]).sizes["micrograph"],
        "rules": ", ".join(rule.option for rule in rules_of(params)) or "none",
    }


STAGE = Stage(
    name="curate-exposures",
    summary="keep the micrographs worth going on with",
    params=Params,
    inputs=(
        Input("micrographs", "micrographs"),
        Input("picks", "picks", optional=True, help="Picks to count and to choose from."),
        Input(
            "particles",
            "particles",
            positional=False,
            optional=True,
            help="Particles to count and to choose from, instead of picks.",
        ),
    ),
    run=run,
    plan=plan,
    grows=True,
)
