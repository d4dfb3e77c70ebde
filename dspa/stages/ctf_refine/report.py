"""What CTF refinement found: a table with errors and verdicts, pictures, figures."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter

from dspa.data.atomic import write_atomically
from dspa.data.counts import counted
from dspa.io import picture
from dspa.ops.ctf.aberration import even_polynomials, odd_polynomials
from dspa.ops.ctf.model import wavelength
from dspa.ops.ctf.phase_fit import CHANCE
from dspa.stages.ctf_refine.groups import EVEN_TERMS, MAGNIFICATION, ODD_TERMS, totals

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import IO

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.dataflow.events import Events
    from dspa.dataflow.reduction import Model
    from dspa.stages.ctf_refine.groups import GroupFit
    from dspa.stages.ctf_refine.heights import Heights
    from dspa.stages.ctf_refine.views import Scope
    from dspa.stages.stage import Context

    Floats = NDArray[np.float64]

MM, MRAD = 1e-7, 1e3
_SMOOTH = 1.5  # Fourier pixels, of the observed phases that are drawn
_MOST_PICTURES = 4  # groups


@dataclass(eq=False)
class Found:
    """What the rounds have found so far.

    Attributes
    ----------
    scope : Scope
    terms : tuple of str
        Of optics groups, that were asked for.
    first, last : list of GroupFit
        Of the first round and of the last.
    sums : list of mapping
        Of those rounds.
    chances : list of dict
        Of each group: the least chance of a term in any round.
    heights : list of Heights
        Of each round.
    astigmatism : list of (step, error)
        Of micrographs, A.
    """

    scope: Scope
    terms: tuple[str, ...]
    first: list[GroupFit] = field(default_factory=list)
    last: list[GroupFit] = field(default_factory=list)
    sums: list[Model] = field(default_factory=list)
    chances: list[dict[str, float]] = field(default_factory=list)
    heights: list[Heights] = field(default_factory=list)
    astigmatism: list[tuple[Floats, Floats]] = field(default_factory=list)

    def see_groups(self, sums: Model, fits: list[GroupFit]) -> None:
        """Take note of the fits of a round."""
        self.first, self.last = self.first or fits, fits
        self.chances = self.chances or [{} for _ in fits]
        for least, fit in zip(self.chances, fits, strict=True):
            least |= {term: min(least.get(term, 1.0), p) for term, p in fit.chances.items()}
        self.sums = [self.sums[0] if self.sums else sums, sums]

    def see_heights(self, heights: Heights) -> None:
        """Take note of the changes of defocus of a round."""
        self.heights.append(heights)

    def see_astigmatism(self, step: Floats, error: Floats) -> None:
        """Take note of a step of the astigmatism."""
        self.astigmatism.append((step, error))

    def real(self) -> set[str]:
        """Return the terms that were more than noise in any group."""
        return {term for least in self.chances for term, chance in least.items() if chance < CHANCE}

    def figures(self) -> dict[str, Any]:
        """Return the figures of a round."""
        made: dict[str, Any] = {"real_terms": ", ".join(sorted(self.real())) or "none"}
        if self.heights:
            change = self.heights[-1].found.change
            made["defocus_changed"] = float(np.sqrt(np.mean(change**2)))
        if self.astigmatism:
            made["astigmatism_changed"] = float(np.sqrt(np.mean(self.astigmatism[-1][0] ** 2)))
        return made


@dataclass(frozen=True)
class Row:
    """A line of the table: a term of an optics group."""

    group: str
    term: str
    unit: str
    before: float
    now: float
    error: float
    chance: float

    @property
    def verdict(self) -> str:
        """Whether the term is more than noise."""
        if np.isnan(self.chance):
            return "too few images"
        return "more than noise" if self.chance < CHANCE else "noise, left as it was"


def rows_of(before: xr.Dataset, now: xr.Dataset, found: Found) -> list[Row]:
    """Make the table of all terms and groups.

    Parameters
    ----------
    before, now : Dataset
        Particles.
    found : Found
    """
    made = []
    names = [str(name) for name in now["optics_name"].values]
    length = wavelength(now["voltage"].values)
    cs = np.asarray(now["spherical_aberration"].values, np.float64)
    tables = [totals(before), totals(now)]
    for group, name in enumerate(names):
        if not found.last:
            break
        errors = found.last[group].errors
        chances = {term: found.chances[group].get(term, np.nan) for term in found.terms}
        optics = (float(cs[group]), float(length[group]))
        values = [_figures(table, group, *optics) for table in tables]
        known = (errors["odd"][None], errors["even"][None], None)
        spread = _figures(known, 0, *optics, errors=errors["change"])
        for term in found.terms:
            # One group has the scale of its map; only beside others does its own mean anything.
            labels = [n for n in values[0][term] if len(names) > 1 or n != MAGNIFICATION]
            for label in labels:
                unit, old = values[0][term][label]
                _, new = values[1][term][label]
                size = abs(spread[term][label][1])
                made.append(Row(name, label, unit, old, new, size, chances[term]))
    return made


def _figures(
    table: tuple[Any, Any, Any], group: int, cs: float, length: float, errors: Any = None
) -> dict[str, dict[str, tuple[str, float]]]:
    """Turn coefficients of a group into the figures people know: term, label, (unit, value)."""
    odd, even, matrix = table[0][group], table[1][group], table[2]
    coma = -3.0 / (2.0 * np.pi * length**2)  # tilt times Cs
    tilt = {"beam tilt x": odd[4], "beam tilt y": odd[3]}
    if cs > 0:
        shown = {k: ("mrad", float(coma * v / cs * MRAD)) for k, v in tilt.items()}
    else:
        shown = {k: ("rad A^3", float(v)) for k, v in tilt.items()}
    spherical = 12.0 * even[6] / (np.pi * length**3)
    made = {
        "beam tilt": shown,
        "trefoil": {f"trefoil {n}": ("rad A^3", float(odd[i]))
                    for n, i in (("sine", 2), ("cosine", 5))},
        "spherical aberration": {"change of Cs": ("mm", float(spherical * MM))},
        "tetrafoil": {f"tetrafoil {n}": ("rad A^4", float(even[i]))
                      for n, i in (("sine 4", 4), ("sine 2", 5), ("cosine 2", 7), ("cosine 4", 8))},
    }  # fmt: skip
    if errors is None:
        # The symmetric part: mean, difference, skew.
        one = matrix[group]
        size = (
            0.5 * (one[0, 0] + one[1, 1]) - 1.0,
            0.5 * (one[0, 0] - one[1, 1]),
            0.5 * (one[0, 1] + one[1, 0]),
        )
    else:
        size = tuple(errors)
    labels = ("magnification", "anisotropy along x", "anisotropy along xy")
    factors = (100.0, 200.0, 200.0)
    made[MAGNIFICATION] = {
        label: ("%", float(factor * value))
        for label, factor, value in zip(labels, factors, size, strict=True)
    }
    return made


def report(context: Context, before: xr.Dataset, now: xr.Dataset, found: Found) -> Path:
    """Write the table, draw the pictures, say what was found.

    Parameters
    ----------
    context : Context
    before, now : Dataset
        Particles.
    found : Found

    Returns
    -------
    Path
        ``terms.csv``.
    """
    rows, events = rows_of(before, now, found), context.events
    path = context.folder / "terms.csv"
    _write(path, rows)
    for row in rows:
        events.message(
            f"{row.group}: {row.term} {row.now:.4g} {row.unit} (was {row.before:.4g}, standard "
            f"error {row.error:.2g}): {row.verdict}"
        )
    for group in range(min(found.scope.groups, _MOST_PICTURES)):
        if found.last:
            _draw_phases(events, found, group, str(now["optics_name"].values[group]))
    figures: dict[str, Any] = {"real_terms": ", ".join(sorted(found.real())) or "none"}
    if found.heights:
        figures |= _report_defocus(events, before, now, found)
    if found.astigmatism:
        step = np.sum([each for each, _ in found.astigmatism], axis=0)
        error = found.astigmatism[-1][1]
        figures["astigmatism_changed"] = float(np.sqrt(np.mean(np.sum(step**2, axis=1))))
        events.message(
            f"astigmatism of {counted(len(step), 'micrograph')} changed by "
            f"{figures['astigmatism_changed']:.0f} A (rms of the vector; standard error "
            f"{np.median(error):.0f} A)"
        )
    events.emit("result", particles=int(now.sizes["particle"]), **figures)
    return path


def _write(path: Path, rows: Sequence[Row]) -> None:
    def write(stream: IO[bytes]) -> None:
        """Write the table as CSV."""
        text = io.TextIOWrapper(stream, "utf-8", newline="")
        table = csv.writer(text)
        table.writerow(
            ("optics_group", "term", "unit", "before", "now", "standard_error", "chance", "verdict")
        )
        for row in rows:
            figures = (row.before, row.now, row.error, row.chance)
            table.writerow(
                (row.group, row.term, row.unit, *(f"{v:.6g}" for v in figures), row.verdict)
            )
        text.flush()
        text.detach()

    write_atomically(path, write)


def _report_defocus(
    events: Events, before: xr.Dataset, now: xr.Dataset, found: Found
) -> dict[str, float]:
    """Say and draw how the defocus has changed."""
    last = found.heights[-1]
    rows = last.items
    mean = [0.5 * (np.asarray(t["defocus_u"].values) + np.asarray(t["defocus_v"].values))[rows]
            for t in (before, now)]  # fmt: skip
    change = mean[1] - mean[0]
    figures = {
        "defocus_changed": float(np.sqrt(np.mean(change**2))),
        "defocus_spread": last.found.spread,
        "defocus_error": float(np.median(last.found.error)),
    }
    events.message(
        f"defocus changed by {figures['defocus_changed']:.0f} A (rms); particles spread by "
        f"{figures['defocus_spread']:.0f} A about their micrograph, and each is known to "
        f"{figures['defocus_error']:.0f} A"
    )
    if last.found.at_edge > 0.1 * rows.size:
        events.warning(
            f"{last.found.at_edge} of {rows.size} particles fit best at the end of the range: "
            "--defocus-range is too small, or the images say nothing of their defocus"
        )
    events.picture(
        "defocus", picture.histogram(change, xlabel="change of defocus (A)"),
        title="change of defocus",
    )  # fmt: skip
    if "coordinate" in now and "micrograph" in now:
        micrograph = np.asarray(now["micrograph"].values)[rows]
        some = micrograph == np.bincount(np.maximum(micrograph, 0)).argmax()
        place = np.asarray(now["coordinate"].values, np.float64)[rows][some]
        png = picture.scatter(
            place[:, 0], place[:, 1], colour=mean[1][some] - mean[1][some].mean(), equal=True,
            xlabel="x (A)", ylabel="y (A)", title="defocus above the mean (A)",
        )  # fmt: skip
        events.picture("height", png, title="defocus over the micrograph of most particles")
    return figures


def _draw_phases(events: Events, found: Found, group: int, name: str) -> None:
    """Draw the phase errors of a group before the first round: observed, and as fitted."""
    sums, scope = found.sums[0], found.scope
    if float(sums["images"][group]) < 1:
        return
    cross = sums["cross_real"][group] + 1j * sums["cross_imaginary"][group]
    fit = found.first[group]
    kx, ky = scope.frequencies()
    panels = []
    if any(term in found.terms for term in ODD_TERMS):
        fitted = fit.odd @ odd_polynomials(fit.odd.size, kx, ky)
        panels += [
            (_plane(scope, cross, even=False, smooth=True), "odd phase, observed"),
            (_plane(scope, np.exp(1j * fitted), even=False, smooth=False), "fitted"),
        ]
    if any(term in found.terms for term in EVEN_TERMS):
        ss, sc, cc, s, c = (sums[n][group] for n in ("ss", "sc", "cc", "s", "c"))
        t = np.stack([cc * s - sc * c, ss * c - sc * s])  # det A times the solution of A t = b
        fitted = fit.even @ even_polynomials(fit.even.size, kx, ky)
        panels += [
            (_plane(scope, t[0] + 1j * t[1], even=True, smooth=True), "even phase, observed"),
            (_plane(scope, np.exp(1j * fitted), even=True, smooth=False), "fitted"),
        ]
    if panels:
        drawn = [picture.image(plane, contrast=(0.0, 100.0), title=t) for plane, t in panels]
        events.picture(f"phases_{group}", picture.side_by_side(drawn), title=f"phases of {name}")


def _plane(scope: Scope, values: NDArray[Any], *, even: bool, smooth: bool) -> Floats:
    """Lay the phases of coefficients out over the Fourier plane, black -90 to white 90 degrees."""
    band, last = scope.spec.band(), scope.last
    plane = np.zeros((2 * last + 1, 2 * last + 1), np.complex128)
    kx, ky = band.kx[: scope.count], band.ky[: scope.count]
    plane[last + ky, last + kx] = values
    plane[last - ky, last - kx] = values if even else np.conj(values)
    if smooth:
        plane = gaussian_filter(plane.real, _SMOOTH) + 1j * gaussian_filter(plane.imag, _SMOOTH)
    phase = np.clip(np.angle(plane), -np.pi / 2, np.pi / 2)
    y, x = np.indices(phase.shape) - last
    phase[np.hypot(x, y) > last] = 0.0
    phase[0, 0], phase[0, -1] = -np.pi / 2, np.pi / 2  # the same grey for the same phase
    return phase
