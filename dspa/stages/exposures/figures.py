"""The figures by which micrographs are chosen: for the command line and for the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dspa.stages.exposures.tasks import contained
from dspa.stages.extraction.tables import find_micrographs
from dspa.stages.picks.tables import mean_defocus

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.exposures.tasks import MicrographTask

# As numbered in ``ctf_quality``.
QUALITIES = ("failed", "weak", "good")
# Where nothing agrees with a CTF fit its resolution is absurd; pictures end here.
WORST_SHOWN = 50.0  # A


@dataclass(frozen=True, eq=False)
class Figure:
    """One figure of every micrograph.

    Attributes
    ----------
    label : str
        With the unit, for axes.
    values : (m,) float64
        NaN where unknown.
    """

    label: str
    values: NDArray[np.float64]

    @property
    def short(self) -> str:
        """The label without the meaning of numbers."""
        return self.label.partition(" (0")[0]

    @property
    def varies(self) -> bool:
        """Whether there is anything to choose by."""
        known = self.values[np.isfinite(self.values)]
        return bool(known.size and np.ptp(known) > 0)

    @property
    def shown(self) -> NDArray[np.float64]:
        """The values, fit resolutions cut at `WORST_SHOWN`."""
        if self.label.startswith("fit resolution"):
            return np.asarray(np.minimum(self.values, WORST_SHOWN))
        return self.values


def exposure_figures(
    table: xr.Dataset,
    *,
    picks: NDArray[np.int64] | None = None,
    intensity: NDArray[np.float64] | None = None,
) -> dict[str, Figure]:
    """Collect what is known of every micrograph.

    The defocus of a failed CTF fit is no knowledge.

    Parameters
    ----------
    table : Dataset
        Micrographs.
    picks : (m,) int64, optional
        How many each has.
    intensity : (m,) float64, optional
        Mean of each; becomes relative to the median.

    Returns
    -------
    figures : dict
        ``index`` and those of ``ctf_resolution``, ``defocus``, ``astigmatism``, ``phase_shift``
        (deg), ``defocus_range``, ``ice``, ``ctf_quality``, ``ctf_score``, ``picks``, ``intensity``
        that are known of any micrograph.
    """
    count = int(table.sizes["micrograph"])
    found = {"index": Figure("number in the table", np.arange(1.0, count + 1.0))}

    def column(name: str) -> NDArray[np.float64] | None:
        return np.array(table[name].values, np.float64) if name in table else None

    defocus = mean_defocus(table)
    resolution = column("ctf_resolution")
    candidates: list[tuple[str, str, NDArray[np.float64] | None]] = [
        ("ctf_resolution", "fit resolution (A)", resolution),
        ("defocus", "defocus (A)", defocus),
    ]
    if "defocus_u" in table:
        apart = np.abs(table["defocus_u"].values - table["defocus_v"].values)
        known = np.where(np.isfinite(defocus), apart, np.nan)
        candidates.append(("astigmatism", "astigmatism (A)", known))
    phase = column("phase_shift")
    quality = column("ctf_quality")
    if quality is not None:
        quality = np.where(quality < 0, np.nan, quality)
    candidates += [
        ("phase_shift", "phase shift (deg)", None if phase is None else np.rad2deg(phase)),
        ("defocus_range", "spread of local defocus (A)", column("defocus_range")),
        ("ice", "ice-ring figure", column("ice_ring")),
        ("ctf_quality", "CTF quality (0 failed, 1 weak, 2 good)", quality),
        ("ctf_score", "CTF score", column("ctf_score")),
        ("picks", "picks", None if picks is None else np.asarray(picks, np.float64)),
        ("intensity", "intensity over the median", _relative(intensity)),
    ]
    for name, label, values in candidates:
        if values is not None and np.isfinite(values).any():
            found[name] = Figure(label, values)
    if "phase_shift" in found and not np.nan_to_num(found["phase_shift"].values).any():
        del found["phase_shift"]
    return found


def _relative(intensity: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    if intensity is None or not np.isfinite(intensity).any():
        return None
    middle = float(np.nanmedian(intensity))
    # Micrographs whose mean was taken off have no intensity to speak of.
    return intensity / middle if middle > 0 else None


def mean_intensity(task: MicrographTask) -> float:
    """Return the mean of a micrograph; NaN if it cannot be read."""
    pixels = contained(task.read)
    return float("nan") if isinstance(pixels, str) else float(pixels.mean(dtype=np.float64))


def count_by_micrograph(picks: xr.Dataset, table: xr.Dataset) -> NDArray[np.int64]:
    """Count picks, or particles: (m,) int64.

    Parameters
    ----------
    picks, table : Dataset
        Particles, and micrographs.
    """
    names = [str(name) for name in table["micrograph_name"].values]
    where = find_micrographs(picks, names)
    return np.asarray(np.bincount(where[where >= 0], minlength=len(names)), np.int64)
