"""Micrographs that are one exposure under several names: corrected twice, or weighted by dose."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree
from scipy.stats import binom

from dspa.io.names import plain_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# What programs put behind the name of a movie, and the number that cryoSPARC puts before it.
_ENDING = re.compile(
    r"_(dw|nodw|ps|evn|odd|sum|avg|ali|eer|fractions|aligned|doseweighted|corrected|denoised|"
    r"non_?weighted|patch|rigid|full|local|motion|mc2?)$",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"^\d{15,}_(?=.)")
NEAR = 5.0  # A; a box is cut anew at the nearest pixel
_FLOOR = 0.5  # A; coordinates are rounded
_SHARE = 0.5  # of the particles of the micrograph with fewer
# Particles of two micrographs lie so near to each other by chance less often than this. Of 300
# within 0.4 x 0.4 um one lies within 1 A with a probability of 6e-5, half of 10 with 1e-19.
_CHANCE = 1e-4


def exposure_name(name: str) -> str:
    """Return the name of a micrograph without folders, suffix and what corrections add to it.

    Parameters
    ----------
    name : str
    """
    path = PurePosixPath(name)
    stem = path.stem
    while (short := _ENDING.sub("", stem)) and short != stem:
        stem = short
    return _NUMBER.sub("", stem)


def exposure_numbers(
    names: Sequence[str],
    micrograph: NDArray[np.integer],
    places: Sequence[NDArray[np.float64]],
) -> NDArray[np.int64]:
    """Give the rows of one exposure, by any of its names, one number: (n,), -1 if unknown.

    Names that agree but for folder and ending are one exposure if the particles of both lie in
    the same places: those of different ones share places only by chance.

    Parameters
    ----------
    names : sequence of str
        Of the micrographs.
    micrograph : (n,) int
        Of each row; -1 if unknown.
    places : sequence of (n, 2) float64
        Where particles are, A; each in turn may show that two are one.
    """
    plain = np.array([plain_name(name) for name in names], object)
    numbers = pd.factorize(plain)[0].astype(np.int64)
    rows = np.append(numbers, -1)[micrograph]
    stems = pd.DataFrame({"stem": [exposure_name(str(n)) for n in plain], "number": numbers})
    stems = stems[stems["number"].isin(np.unique(rows))].drop_duplicates()
    several = stems[stems.duplicated("stem", keep=False)]
    if several.empty:
        return rows
    same = np.arange(numbers.max() + 1)
    for place in places:
        known = np.flatnonzero((rows >= 0) & np.isfinite(place).all(axis=1))
        if not known.size:
            continue
        area = max(float(np.prod(np.ptp(place[known], axis=0))), np.pi * (20 * NEAR) ** 2)
        known = known[np.argsort(rows[known], kind="stable")]
        sizes = np.searchsorted(rows[known], np.arange(same.size + 1))
        for _, alike in several.groupby("stem", sort=False)["number"]:
            parts = {n: place[known[sizes[n] : sizes[n + 1]]] for n in alike}
            _merge(same, parts, area)
    return np.append(same, -1)[rows]


def _merge(same: NDArray[np.int64], parts: dict[int, NDArray[np.float64]], area: float) -> None:
    """Give micrographs whose particles coincide the number of the first."""
    members = list(parts)
    for at, one in enumerate(members):
        for other in members[at + 1 :]:
            if same[one] != same[other] and coincide(parts[one], parts[other], area):
                same[same == same[other]] = same[one]


def coincide(one: NDArray[np.float64], other: NDArray[np.float64], area: float) -> bool:
    """Tell particles that lie in the same places from those that do so by chance.

    Of the micrograph with fewer particles at least half must lie within a distance of one of the
    other; by chance each does so with a probability of n pi r^2 / area, independently.

    Parameters
    ----------
    one, other : (n, 2), (m, 2) float64
        A.
    area : float
        Of the micrographs, A^2.
    """
    few, many = (one, other) if len(one) <= len(other) else (other, one)
    if not len(few):
        return False
    nearest = np.sort(cKDTree(many).query(few)[0])
    enough = max(1, int(np.ceil(_SHARE * len(few))))
    reach = max(float(nearest[enough - 1]), _FLOOR)
    if reach > NEAR:
        return False
    odds = min(1.0, len(many) * np.pi * reach**2 / area)
    return bool(binom.sf(enough - 1, len(few), odds) < _CHANCE)
