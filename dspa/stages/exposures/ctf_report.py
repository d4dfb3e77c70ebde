"""What ``dspa ctf`` shows: a picture of each fit, histograms, warnings, the summary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dspa.data.counts import counted
from dspa.io.picture import curves, histogram, image, scatter, side_by_side
from dspa.ops.ctf.picture import comparison_image
from dspa.ops.ctf.search import equiphase_average, ring_agreement
from dspa.ops.ctf.surface import surface_grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dspa.ops.ctf.estimation import CTFFit, Microscope
    from dspa.ops.ctf.local import LocalFit
    from dspa.ops.ctf.spectrum import PolarSpectrum
    from dspa.stages.exposures.tasks import MicrographTask
    from dspa.stages.stage import Context

QUALITIES = ("failed", "weak", "good")
# Pictures that enter the report; all lie in the job's folder ctf/.
SHOWN = 6
# Doubtful fits that are named one by one.
NAMED = 20


@dataclass(frozen=True)
class Estimate:
    """What was found on one micrograph.

    Attributes
    ----------
    fit : CTFFit
    local : LocalFit
    range : float
        Spread of the local defocus over the micrograph, A.
    ice_ring : float
        Excess power at the ice rings; NaN where Nyquist does not allow it.
    """

    fit: CTFFit
    local: LocalFit
    range: float
    ice_ring: float


def picture_path(folder: Path, task: MicrographTask) -> Path:
    """Where the picture of a micrograph's fit lies."""
    return folder / "ctf" / f"{task.index:05d}_{Path(task.name).stem}.png"


def fit_picture(
    spectrum: PolarSpectrum,
    estimate: Estimate,
    *,
    microscope: Microscope,
    extent: tuple[float, float],
    name: str,
) -> bytes:
    """Draw spectrum beside fit, the radial curve with the fit, and local defocus if there is any.

    Parameters
    ----------
    spectrum : PolarSpectrum
        Flattened, if defocus varies.
    estimate : Estimate
    microscope : Microscope
    extent : tuple of float
        Width and height of the micrograph, A.
    name : str
        Of the micrograph.
    """
    fit = estimate.fit
    both = image(
        comparison_image(spectrum, fit, microscope=microscope),
        contrast=(0.0, 100.0),
        width=384,
        title=f"{Path(name).name}: spectrum | fit",
    )
    frequency, curve, model = equiphase_average(spectrum, fit, microscope=microscope)
    spread = max(float(np.std(curve)), 1e-12)
    radial = curves(
        frequency,
        {
            "spectrum - background": np.clip(curve / (4 * spread), -1, 1),
            "CTF² fit": model - 0.5,
            "agreement": ring_agreement(frequency, curve, model),
        },
        title=(
            f"defocus {fit.defocus:.0f} A, astigmatism {fit.defocus_u - fit.defocus_v:.0f} A, "
            + (f"phase {math.degrees(fit.phase_shift):.0f} deg, " if fit.phase_shift else "")
            + f"{_reach(fit)}: {fit.quality}"
        ),
        thresholds={"0.5": 0.5},
        resolution=True,
        ylim=(-1.05, 1.05),
    )
    panels = [both, radial]
    if estimate.local.kind != "none":
        panels.append(_surface_picture(estimate, extent))
    return side_by_side(panels)


def _reach(fit: CTFFit) -> str:
    """Say how far the rings are followed."""
    return f"fit to {fit.resolution:.1f} A" if math.isfinite(fit.resolution) else "no ring fits"


def _surface_picture(estimate: Estimate, extent: tuple[float, float]) -> bytes:
    """Draw the local defocus as grey over the micrograph."""
    grid = estimate.fit.defocus + surface_grid(estimate.local.surface, extent, size=97)
    rows = max(2, round(97 * min(1.0, extent[1] / extent[0])))
    columns = max(2, round(97 * min(1.0, extent[0] / extent[1])))
    picked = grid[np.linspace(0, 96, rows).astype(int)][:, np.linspace(0, 96, columns).astype(int)]
    return image(
        picked,
        contrast=(0.0, 100.0),
        width=4 * columns,
        title=f"{estimate.local.kind}: {grid.min():.0f} (dark) to {grid.max():.0f} A",
    )


def summarise(context: Context, done: Sequence[tuple[MicrographTask, Estimate]]) -> None:
    """Warn of doubtful fits, show pictures of the best and the worst, and say how it went."""
    fits = [estimate.fit for _, estimate in done]
    counts = {name: sum(fit.quality == name for fit in fits) for name in QUALITIES}
    doubtful = [(task, estimate.fit) for task, estimate in done if estimate.fit.quality != "good"]
    for task, fit in doubtful[:NAMED]:
        context.events.warning(
            f"{task.name}: the CTF fit is {fit.quality} ({_reach(fit)}, "
            f"evidence {fit.evidence:.0f})"
        )
    if len(doubtful) > NAMED:
        context.events.warning(f"and {counted(len(doubtful) - NAMED, 'more fit')} weak or failed")
    order = sorted(range(len(done)), key=lambda i: fits[i].evidence)
    shown = dict.fromkeys([*order[: SHOWN // 2], *order[-(SHOWN // 2) :]])
    for i in shown:
        path = picture_path(context.folder, done[i][0])
        context.events.picture(f"ctf_{done[i][0].index:05d}", path.read_bytes(), title=path.stem)
    defocus = np.array([fit.defocus for fit in fits])
    resolution = np.array([min(fit.resolution, 50.0) for fit in fits])
    context.events.picture(
        "defocus", histogram(defocus / 1e4, bins=30, xlabel="defocus (µm)"), title="defocus"
    )
    context.events.picture(
        "resolution_defocus",
        scatter(defocus / 1e4, resolution, xlabel="defocus (µm)", ylabel="fit resolution (A)"),
        title="fit resolution against defocus",
    )
    ice = np.array([estimate.ice_ring for _, estimate in done])
    spans = np.array([estimate.range for _, estimate in done])
    _show_ice(context, ice)
    varying = sum(estimate.local.kind != "none" for _, estimate in done)
    context.events.message(
        f"{counted(len(fits), 'micrograph')}: {counts['good']} good, {counts['weak']} weak, "
        f"{counts['failed']} failed; median defocus {np.median(defocus):.0f} A, median fit "
        f"resolution {np.median(resolution):.1f} A; defocus varies over {varying} of them"
        + (f", by {np.median(spans[spans > 0]):.0f} A" if (spans > 0).any() else "")
        + "; a picture of each is in ctf/"
    )
    context.events.emit(
        "result",
        **counts,
        defocus=float(np.median(defocus)),
        resolution=float(np.median(resolution)),
        varying=varying,
    )


def _show_ice(context: Context, ice: NDArray[np.float64]) -> None:
    known = ice[np.isfinite(ice)]
    if known.size:
        context.events.picture(
            "ice_ring",
            histogram(known, bins=30, xlabel="excess power at the ice rings"),
            title="crystalline ice: 0 none, 1 doubles the power at 3.9 to 3.4 A",
        )
