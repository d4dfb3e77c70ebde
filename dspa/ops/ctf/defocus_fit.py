r"""Defocus of particles against a map: likelihood over a range, and what a micrograph says.

The log-likelihood of particle p at a defocus z beyond what it has now is tabulated. Particles of a
micrograph lie about its defocus m with a spread tau, which is learnt from all of them
(expectation maximisation: Dempster, Laird & Rubin 1977, doi:10.1111/j.2517-6161.1977.tb01600.x):

    p(z) ~ exp(L_p(z)) N(z; m, tau^2),   m = mean of E[z],   tau^2 = mean of E[(z - m)^2]

so that a particle that says little stays with its micrograph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import is_host, like, namespace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_ROUNDS = 60
_LEAST_SPREAD = 0.5  # steps of the grid


def run_sums(values: Any, starts: NDArray[np.int64]) -> Any:
    """Add up runs of the last axis that begin at ``starts``: (..., f) to (..., runs)."""
    xp = np if is_host(values) else namespace(values)
    return xp.add.reduceat(values, like(starts, reference=values), axis=-1)


def defocus_likelihood(
    sine: Any, cosine: Any, cross: Any, power: Any, *, turns: Floats, starts: NDArray[np.int64]
) -> Any:
    """Tabulate the log-likelihood of images over a range of defocus.

    Parameters
    ----------
    sine, cosine : (n, f) float32
        -E sin gamma and -E cos gamma: the CTF is sine cos(delta) + cosine sin(delta).
    cross, power : (n, f) float32
        Re(conj(V) X) / s2 and |V|^2 / s2.
    turns : (runs, z) float64
        delta of every run of coefficients at every defocus, rad.
    starts : (runs,) int64
        Where runs of coefficients of nearly equal |k| begin.

    Returns
    -------
    (n, z) float64
        Up to a constant of each image.
    """
    runs = [
        run_sums(part, starts)
        for part in (
            sine * cross, cosine * cross, sine**2 * power, sine * cosine * power, cosine**2 * power
        )
    ]  # fmt: skip
    c, s = (like(f(turns).astype(np.float32), reference=sine) for f in (np.cos, np.sin))
    linear = runs[0] @ c + runs[1] @ s
    return 2.0 * linear - (runs[2] @ c**2 + 2.0 * (runs[3] @ (c * s)) + runs[4] @ s**2)


@dataclass(frozen=True, eq=False)
class Defocus:
    """What particles and micrographs say.

    Attributes
    ----------
    change : (n,) float64
        Of each particle, A.
    error : (n,) float64
        Its standard error, A; the prior is in it.
    micrograph : (m,) float64
        Change of each micrograph, A.
    micrograph_error : (m,) float64
    spread : float
        tau, A.
    at_edge : int
        Particles whose best defocus is the first or last of the range.
    """

    change: Floats
    error: Floats
    micrograph: Floats
    micrograph_error: Floats
    spread: float
    at_edge: int


def settle_defocus(
    likelihood: NDArray[np.floating[Any]],
    grid: Floats,
    group: NDArray[np.int64],
    *,
    offset: Floats | None = None,
) -> Defocus:
    """Find the defocus of particles and micrographs.

    Parameters
    ----------
    likelihood : (n, z) float
        Log-likelihood of each particle at each defocus.
    grid : (z,) float64
        Changes of defocus, A, evenly spaced.
    group : (n,) int64
        Micrograph of each particle, 0 and up.
    offset : (n,) float64, optional
        What each particle has been moved by before, A: micrograph and spread are those of the sum
        of both, and so is what is returned.
    """
    before = np.zeros(group.size) if offset is None else offset
    count = int(group.max()) + 1 if group.size else 0
    members = np.maximum(np.bincount(group, minlength=count), 1)
    table = likelihood - likelihood.max(axis=1, keepdims=True)
    step = float(grid[1] - grid[0])
    total = np.zeros((count, grid.size))
    np.add.at(total, group, table)
    middle = grid[total.argmax(axis=1)] + np.bincount(group, before, minlength=count) / members
    spread = max(8.0 * step, 1.0)
    for _ in range(_ROUNDS):
        posterior = table + _prior(grid, before - middle[group], spread)
        share = np.exp(posterior - posterior.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        mean = share @ grid
        variance = share @ grid**2 - mean**2
        mean += before
        middle = np.bincount(group, mean, minlength=count) / members
        about = variance + (mean - middle[group]) ** 2
        # The mean of a micrograph takes one degree of freedom of its particles.
        spread = float(np.sqrt(about.sum() / max(group.size - count, 1)))
        spread = max(spread, _LEAST_SPREAD * step)
    posterior = table + _prior(grid, before - middle[group], spread)
    change, error = _peaks(posterior, grid)
    # A micrograph's defocus is known as well as the mean of its particles is.
    weight = 1.0 / np.maximum(_errors(table, grid) ** 2 + spread**2, 1e-12)
    micrograph_error = 1.0 / np.sqrt(np.maximum(np.bincount(group, weight, minlength=count), 1e-12))
    best = table.argmax(axis=1)
    at_edge = int(np.count_nonzero((best == 0) | (best == grid.size - 1)))
    return Defocus(change + before, error, middle, micrograph_error, spread, at_edge)


def _prior(grid: Floats, offset: Floats, spread: float) -> Floats:
    """Log-density of a micrograph's particles (n, z), at ``offset`` from its middle."""
    return np.asarray(-0.5 * ((grid + offset[:, None]) / spread) ** 2)


def _peaks(table: NDArray[np.floating[Any]], grid: Floats) -> tuple[Floats, Floats]:
    """Place of the largest value of each row, between points, and its error."""
    rows = np.arange(len(table))
    place = np.clip(table.argmax(axis=1), 1, grid.size - 2)
    low, top, high = (table[rows, place + i].astype(np.float64) for i in (-1, 0, 1))
    bend = np.maximum(2.0 * top - low - high, 1e-12)
    step = float(grid[1] - grid[0])
    off = np.clip(0.5 * (high - low) / bend, -1.0, 1.0)
    return grid[place] + off * step, step / np.sqrt(bend)


def _errors(table: NDArray[np.floating[Any]], grid: Floats) -> Floats:
    """Return the standard error of each row by itself, at most that of an even spread."""
    widest = float(np.ptp(grid)) / np.sqrt(12.0)
    return np.minimum(_peaks(table, grid)[1], widest)
