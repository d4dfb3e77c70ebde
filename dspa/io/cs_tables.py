"""What the rows of cryoSPARC datasets have in common: optics groups, stacks, micrographs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dspa.data.counts import counted
from dspa.data.growing import Numbering

if TYPE_CHECKING:
    from numpy.typing import NDArray

MM = 1e7  # mm to A


class Tables:
    """What rows have in common, in the order in which it comes."""

    def __init__(self) -> None:
        self.groups, self.stacks, self.micrographs = Numbering(), Numbering(), Numbering()
        self.optics: list[pd.DataFrame] = []
        self.shapes: list[NDArray[np.float64]] = []
        self.rows = 0  # so far
        self.unsized: dict[str, tuple[int, int, float]] = {}

    def note_unsized(
        self, field: str, values: NDArray[np.float64], rows: NDArray[np.bool_]
    ) -> None:
        """Note rows whose shift is in pixels of no size: how many, and the first with its value.

        Parameters
        ----------
        field : str
            Where the size is sought.
        values : (n,) float64
            What it holds.
        rows : (n,) bool
        """
        if rows.any():
            row = int(np.argmax(rows))
            first = (0, self.rows + row + 1, float(values[row]))
            count, number, value = self.unsized.get(field, first)
            self.unsized[field] = (count + int(rows.sum()), number, value)

    def told(self, path: str) -> dict[str, str]:
        """Return, as the attribute ``doubts``, how shifts in pixels of no size were read.

        Parameters
        ----------
        path : str
            For the sentence.
        """
        said = [
            f"{path}: {field} is no size in {counted(count, 'row')} with a shift (row {row}: "
            f"{value:g}); blob/psize_A is taken there"
            for field, (count, row, value) in self.unsized.items()
        ]
        return {"doubts": " | ".join(said)} if said else {}

    def finish(self) -> dict[str, Any]:
        """Return the tables of optics groups, one for each exposure group, of stacks and names."""
        table = pd.concat(self.optics)
        names = [f"expGroup{g}" for g in table["group"]]
        if len(set(names)) != len(names):
            names = [f"{name}_{i + 1}" for i, name in enumerate(names)]
        single = {k: exact(table[k]) for k in table.columns}
        made: dict[str, Any] = {
            "optics_name": names,
            "voltage": single["voltage"],
            "spherical_aberration": single["cs"] * MM,
            "amplitude_contrast": single["contrast"],
            "pixel_size": single["pixel"],
            "micrograph_pixel_size": single["micrograph"],
            "box_size": table["box"].to_numpy(),
        }
        if self.stacks.known:
            made["stack_name"] = [str(n).removeprefix(">") for n in self.stacks.known]
        if self.micrographs.known:
            made["micrograph_name"] = [str(n).removeprefix(">") for n in self.micrographs.known]
        if self.shapes:
            shape = np.nan_to_num(np.concatenate(self.shapes))
            made["micrograph_shape"] = np.clip(shape, 0, 1 << 20)
        return made


def exact(values: pd.Series[Any]) -> NDArray[np.float64]:
    """Return single precision figures as the decimal numbers that people typed.

    Parameters
    ----------
    values : (n,) Series
    """
    return np.array([float(str(np.float32(v))) for v in values.tolist()])
