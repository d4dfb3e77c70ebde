"""What particles can be ranked by: a variable of the table, or a column of another program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.data.errors import InputError
from dspa.data.schema import EXTRA, PARTICLES
from dspa.io.picture import histogram

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.dataflow.events import Events

DEFOCUS = "defocus"
_SHOWN = 200_000  # particles of a histogram


def score_values(table: xr.Dataset, name: str) -> NDArray[np.float64]:
    """Return a score of every particle: (n,) float64, NaN where it has none.

    Parameters
    ----------
    table : Dataset
        Particles.
    name : str
        A variable of one number per particle; ``defocus``, the mean of both, in A; or the label of
        a column of another program.

    Raises
    ------
    InputError
        If there is no such score, with those that there are.
    """
    known = known_scores(table)
    if name not in known:
        raise InputError(f"--score {name}: the particles have no such score; {_offer(known)}")
    if name == DEFOCUS:
        u, v = (np.asarray(table[f"defocus_{side}"].values, np.float64) for side in "uv")
        return np.asarray(0.5 * (u + v), np.float64)
    found = name if name in table.variables else f"{EXTRA}{known[name]}"
    values = np.asarray(table[found].values, np.float64)
    if not np.isfinite(values).any():
        raise InputError(f"--score {name}: no particle has a number there; choose another")
    return values


def known_scores(table: xr.Dataset) -> dict[str, str]:
    """Return the scores that particles have, and the column of each.

    Parameters
    ----------
    table : Dataset
    """
    found = {
        name: name
        for name, variable in PARTICLES.variables.items()
        if variable.dims == ("particle",) and variable.dtype.startswith("float") and name in table
    }
    if "defocus_u" in table and "defocus_v" in table:
        found[DEFOCUS] = DEFOCUS
    for key, array in table.variables.items():
        name = str(key)
        if name.startswith(EXTRA) and array.dims == ("particle",) and array.dtype.kind in "iuf":
            label = name.removeprefix(EXTRA)
            # Of a field of a .cs file without what tells its type: alignments3D/error.
            short = label.removeprefix("cs:").rpartition(":")[0] if label[:3] == "cs:" else label
            found.setdefault(short, label)
    return found


def _offer(known: dict[str, str]) -> str:
    return f"they have {', '.join(sorted(known))}" if known else "they have none"


def show_cut(
    events: Events,
    values: NDArray[np.float64],
    keep: NDArray[np.bool_],
    *,
    name: str,
    cuts: Sequence[float],
) -> None:
    """Put the histogram of a score into the report, and where it is cut.

    Parameters
    ----------
    events : Events
    values : (n,) float64
    keep : (n,) bool
    name : str
    cuts : sequence of float
    """
    step = max(1, values.size // _SHOWN)
    shown, kept = values[::step], keep[::step]
    parts = {"dropped": shown[~kept], "kept": shown[kept]} if not keep.all() else {"": shown}
    lines = [cut for cut in cuts if np.isfinite(cut)]
    events.picture(
        "score", histogram(parts, xlabel=name, thresholds=lines), title=f"{name} of the particles"
    )
