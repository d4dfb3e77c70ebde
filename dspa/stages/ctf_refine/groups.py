"""The optics of groups: fitted to sums over their images, judged, and put into the table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dspa.ops.ctf.aberration import (
    EVEN_TO_FOUR,
    ODD_TO_THREE,
    even_polynomials,
    odd_polynomials,
    split_tilt,
    with_tilt,
)
from dspa.ops.ctf.astigmatism import astigmatic, astigmatism_of
from dspa.ops.ctf.model import wavelength
from dspa.ops.ctf.phase_fit import CHANCE, Fit, fit_even, fit_magnification, fit_odd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model
    from dspa.stages.ctf_refine.views import Scope

    Floats = NDArray[np.float64]

# Coefficients that a term stands for, and those that are fitted beside the terms of a kind: a shift
# of the image, and what defocus and astigmatism have left. A constant is not fitted: within a band
# it looks like defocus, and amplitude contrast and phase shift are known.
ODD_TERMS = {"beam tilt": (3, 4), "trefoil": (2, 5)}
EVEN_TERMS = {"spherical aberration": (6,), "tetrafoil": (4, 5, 7, 8)}
ODD_BESIDE, EVEN_BESIDE = (0, 1), (1, 2, 3)
MAGNIFICATION = "magnification"
FEWEST = 20  # images of a group
DEFOCUS = ("defocus_u", "defocus_v", "defocus_angle")


@dataclass(frozen=True, eq=False)
class GroupFit:
    """What a pass says of one optics group.

    Attributes
    ----------
    odd : (6,) float64
    even : (9,) float64
    change : (3,) float64
        mean, difference and skew of the magnification.
    errors : mapping
        ``odd``, ``even``, ``change``: standard errors, NaN where nothing was fitted.
    chances : mapping of term to float
        Of being as large from noise alone.
    """

    odd: Floats
    even: Floats
    change: Floats
    errors: Mapping[str, Floats]
    chances: Mapping[str, float]


def fit_group(
    sums: Model, group: int, scope: Scope, *, terms: Sequence[str], known: set[str]
) -> GroupFit:
    """Fit the terms that are asked for; those that are no more than noise stay out.

    Parameters
    ----------
    sums : mapping
        From the pass `Aberrations`.
    group : int
    scope : Scope
    terms : sequence of str
    known : set of str
        Terms that were more than noise before.

    Returns
    -------
    GroupFit
    """
    kx, ky = scope.frequencies()
    modulus = np.hypot(kx, ky)
    of = {name: np.asarray(values[group], np.float64) for name, values in sums.items()}
    odd, even = np.zeros(ODD_TO_THREE), np.zeros(EVEN_TO_FOUR)
    errors = {"odd": np.full(ODD_TO_THREE, np.nan), "even": np.full(EVEN_TO_FOUR, np.nan)}
    change, errors["change"] = np.zeros(3), np.full(3, np.nan)
    chances: dict[str, float] = {}
    if float(of["images"]) < FEWEST:
        return GroupFit(odd, even, change, errors, chances)
    cross = of["cross_real"] + 1j * of["cross_imaginary"]
    matrix, vector = (np.stack([of[n] for n in part]) for part in (("ss", "sc", "cc"), ("s", "c")))
    polynomials = odd_polynomials(ODD_TO_THREE, kx, ky)
    kind = _Kind(ODD_TERMS, ODD_BESIDE, polynomials, odd, errors["odd"])
    chances |= _choose(
        kind, terms, known, lambda basis: fit_odd(cross, of["power"], basis, modulus)
    )
    constants = even_polynomials(EVEN_TO_FOUR, 0.0, 0.0)
    polynomials = even_polynomials(EVEN_TO_FOUR, kx, ky) - constants[:, None]
    kind = _Kind(EVEN_TERMS, EVEN_BESIDE, polynomials, even, errors["even"])
    chances |= _choose(kind, terms, known, lambda basis: fit_even(matrix, vector, basis, modulus))
    even[0] = -float(even[1:] @ constants[1:])
    if MAGNIFICATION in terms:
        fit = fit_magnification(*_free_of_amplitude(of), kx, ky)
        chances[MAGNIFICATION] = fit.chance((1, 2))
        errors["change"][:] = np.sqrt(np.diag(fit.covariance))
        if chances[MAGNIFICATION] < CHANCE or MAGNIFICATION in known:
            change[:] = fit.values
    return GroupFit(odd, even, change, errors, chances)


def _free_of_amplitude(of: Mapping[str, Floats]) -> tuple[Floats, Floats]:
    """Return the sums A (3, f) and b (2, f) of the magnification, every amplitude left free.

    Where the CTF is a little wrong the amplitude of a coefficient is, and since the power of maps
    falls outwards that would look like a displacement: it is fitted beside and eliminated.
    """
    power = np.maximum(of["power"], 1e-30)
    one, other, left = of["vx"], of["vy"], of["cross_real"] - of["power"]
    matrix = np.stack(
        [
            of["xx"] - one * one / power,
            of["xy"] - one * other / power,
            of["yy"] - other * other / power,
        ]
    )
    return matrix, np.stack([of["x"] - one * left / power, of["y"] - other * left / power])


@dataclass(frozen=True, eq=False)
class _Kind:
    """Terms of one kind, what is fitted beside them, and where values and errors go."""

    terms: Mapping[str, tuple[int, ...]]
    beside: tuple[int, ...]
    polynomials: Floats
    values: Floats
    errors: Floats


def _choose(
    kind: _Kind, wanted: Sequence[str], known: set[str], fit: Callable[[Floats], Fit]
) -> dict[str, float]:
    """Fit the terms of one kind, then again with those only that are more than noise."""
    here = [term for term in kind.terms if term in wanted]
    if not here:
        return {}
    places = _places(kind, here)
    found = fit(kind.polynomials[places])
    kind.errors[places] = np.sqrt(np.maximum(np.diag(found.covariance), 0.0))
    chances = {
        term: found.chance([places.index(place) for place in kind.terms[term]]) for term in here
    }
    real = [term for term in here if chances[term] < CHANCE or term in known]
    if real and real != here:
        places = _places(kind, real)
        found = fit(kind.polynomials[places])
    if real:
        kind.values[places] = found.values
    return chances


def _places(kind: _Kind, terms: Sequence[str]) -> list[int]:
    """Return the coefficients that are fitted for some terms."""
    return [*kind.beside, *(place for term in terms for place in kind.terms[term])]


def centred(fits: Sequence[GroupFit], images: NDArray[np.float64]) -> list[GroupFit]:
    """Return fits whose mean magnification over all images is unchanged: the map has its scale.

    Parameters
    ----------
    fits : sequence of GroupFit
        Of all groups.
    images : (g,) float
        Of each group.
    """
    means = np.array([fit.change[0] for fit in fits])
    shared = float(np.average(means, weights=np.maximum(images, 1e-9)))
    move = np.array([shared, 0.0, 0.0])
    return [replace(f, change=f.change - move) if f.change.any() else f for f in fits]


def totals(particles: xr.Dataset) -> tuple[Floats, Floats, Floats]:
    """Return odd (g, 6), even (g, 9) and magnification (g, 2, 2) of the groups of a table."""
    groups = int(particles.sizes["optics"])
    tables = {"odd_zernike": ODD_TO_THREE, "even_zernike": EVEN_TO_FOUR}
    made = []
    for name, least in tables.items():
        there = np.asarray(particles[name].values) if name in particles else np.zeros((groups, 0))
        wide = np.zeros((groups, max(least, there.shape[1])))
        wide[:, : there.shape[1]] = there
        made.append(wide)
    if "beam_tilt" in particles and particles["beam_tilt"].values.any():
        made[0] = with_tilt(
            made[0],
            particles["beam_tilt"].values,
            spherical_aberration=particles["spherical_aberration"].values,
            length=wavelength(particles["voltage"].values),
        )
    matrix = np.tile(np.eye(2), (groups, 1, 1))
    if "magnification" in particles:
        matrix = np.asarray(particles["magnification"].values, np.float64)
    return made[0], made[1], matrix


def with_groups(particles: xr.Dataset, fits: Sequence[GroupFit], *, fold: bool) -> xr.Dataset:
    """Return the particles with the fitted changes added to what their groups have.

    Parameters
    ----------
    particles : Dataset
    fits : sequence of GroupFit
        Of all groups.
    fold : bool
        Whether what defocus and astigmatism can say goes into those of the particles.
    """
    odd, even, matrix = totals(particles)
    made = particles
    for group, fit in enumerate(fits):
        odd[group, :ODD_TO_THREE] += fit.odd
        change = fit.even.copy()
        if fold and change.any():
            made = _folded(made, group, change)
        even[group, :EVEN_TO_FOUR] += change
    if any(fit.change.any() for fit in fits):
        made, matrix = _magnified(made, fits, matrix)
        made = made.assign(magnification=(("optics", "to", "from"), matrix))
    if any(fit.even.any() for fit in fits):
        made = made.assign(even_zernike=(("optics", "even"), even))
    if any(fit.odd.any() for fit in fits):
        made = _with_odd(made, odd)
    return made


def _folded(particles: xr.Dataset, group: int, even: Floats) -> xr.Dataset:
    """Move the terms in |k|^2 of even coefficients (changed) to the defocus of a group."""
    # Z of n = 4 hold -6 r^2 and -3 r^2 cos 2 phi, -3 r^2 sin 2 phi: those stay where they are.
    mean, sine, cosine = even[2] - 3.0 * even[6], even[1] - 3.0 * even[5], even[3] - 3.0 * even[7]
    even[[0, 2, 1, 3]] -= (mean, mean, sine, cosine)
    rows = np.flatnonzero(np.asarray(particles["optics"].values) == group)
    columns = {n: np.array(particles[n].values, np.float64) for n in DEFOCUS}
    own = {name: values[rows] for name, values in columns.items()}
    scale = -1.0 / (np.pi * float(wavelength(particles["voltage"].values[group])))
    c, s = astigmatism_of(own)
    middle = 0.5 * (own["defocus_u"] + own["defocus_v"]) + 2.0 * scale * mean
    moved = astigmatic(middle, c + scale * cosine, s + scale * sine)
    for name, values in zip(DEFOCUS, moved, strict=True):
        columns[name][rows] = values
    return particles.assign({name: ("particle", values) for name, values in columns.items()})


def _with_odd(particles: xr.Dataset, odd: Floats) -> xr.Dataset:
    """Return the particles with an odd phase, its coma as a beam tilt where there is Cs."""
    rest, tilt = odd.copy(), np.zeros((len(odd), 2))
    cs = particles["spherical_aberration"].values
    length = wavelength(particles["voltage"].values)
    for group in range(len(odd)):
        if cs[group] > 0:
            rest[group], tilt[group] = split_tilt(
                odd[group], spherical_aberration=float(cs[group]), length=float(length[group])
            )
    return particles.assign(
        odd_zernike=(("optics", "odd"), rest), beam_tilt=(("optics", "xy"), tilt)
    )


def matrix_of(change: Floats) -> Floats:
    """Return D (2, 2) of mean, difference and skew."""
    mean, difference, skew = change
    return np.array([[mean + difference, skew], [skew, mean - difference]])


def _magnified(
    particles: xr.Dataset, fits: Sequence[GroupFit], matrix: Floats
) -> tuple[xr.Dataset, Floats]:
    """Change the magnification; defocus and astigmatism stay what they are in the images."""
    columns = {name: np.array(particles[name].values, np.float64) for name in DEFOCUS}
    optics = np.asarray(particles["optics"].values)
    matrix = matrix.copy()
    for group, fit in enumerate(fits):
        if not fit.change.any():
            continue
        step = np.eye(2) + matrix_of(fit.change)
        matrix[group] = step @ matrix[group]
        rows = np.flatnonzero(optics == group)
        own = {name: values[rows] for name, values in columns.items()}
        mean = 0.5 * (own["defocus_u"] + own["defocus_v"])
        c, s = astigmatism_of(own)
        # k.Q k with Q = ((mean + c, s), (s, mean - c)) keeps its value where k becomes step k.
        form = np.stack([np.stack([mean + c, s], -1), np.stack([s, mean - c], -1)], -2)
        inverse = np.linalg.inv(step)
        moved = inverse.T @ form @ inverse
        u, v, angle = astigmatic(
            0.5 * (moved[:, 0, 0] + moved[:, 1, 1]),
            0.5 * (moved[:, 0, 0] - moved[:, 1, 1]),
            moved[:, 0, 1],
        )
        for name, values in zip(DEFOCUS, (u, v, angle), strict=True):
            columns[name][rows] = values
    return particles.assign({n: ("particle", v) for n, v in columns.items()}), matrix
