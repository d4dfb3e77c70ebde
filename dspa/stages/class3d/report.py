"""What is said and drawn of a 3D classification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.io import picture
from dspa.stages.class3d.trial import BEYOND
from dspa.stages.hetero.distinct import names_in_a_row
from dspa.stages.hetero.output import show_classes, show_sorted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dspa.dataflow.events import Events
    from dspa.stages.class3d.model import SplitModel
    from dspa.stages.class3d.trial import Findings
    from dspa.stages.particles.chunks import ImageSpec
    from dspa.stages.refine.model import Maps


def show_classes_now(events: Events, model: SplitModel, *, title: str) -> None:
    """Draw the differences of classes to the consensus, and how far the half sets agree on them.

    Parameters
    ----------
    events : Events
    model : SplitModel
    title : str
    """
    mean = model.parts.mean(axis=0)
    power = (mean.astype(np.float64) ** 2).sum(axis=0)
    z, y, x = (
        int(power.sum(axis=tuple(a for a in range(3) if a != axis)).argmax()) for axis in range(3)
    )
    tiles, labels = [], []
    for number, part in enumerate(mean, 1):
        tiles += [part[z], part[:, y], part[:, :, x]]
        labels += [f"{number} xy", f"{number} xz", f"{number} yz"]
    drawn = picture.montage(np.stack(tiles), labels=labels, columns=3, tile=160)
    events.picture("parts", drawn, title=title)


def describe(found: Findings, names: Sequence[str]) -> list[str]:
    """Say in sentences what the particles kept apart said.

    Parameters
    ----------
    found : Findings
    names : sequence of str
        Of the classes.
    """
    whole = found.whole
    said = [
        f"{found.particles:,} particles had no part in making the classes: by the classes each "
        f"gains {whole.gain:.3g} in log-likelihood against one map for all, and "
        f"{whole.control:.3g} at the pose of another, which is what noise would give: "
        f"{whole.deviations:.1f} standard deviations apart ({BEYOND:g} or more is asked for)"
    ]
    for pair in found.pairs:
        verb = "differ" if pair.different else "are not shown to differ"
        said.append(
            f"{names[pair.one]} and {names[pair.other]} {verb}: {pair.gain:.3g} gained by their "
            f"being two, {pair.deviations:.1f} standard deviations beyond noise"
        )
    said += [
        f"{names_in_a_row([names[n] for n in group])} are copies of one structure, "
        "or of too few particles to tell"
        for group in found.groups
        if len(group) > 1
    ]
    count = len(found.groups)
    if count > 1:
        return [*said, f"the particles show {count} different structures"]
    return [*said, "the particles show one structure: the split is no more than noise would give"]


def reasons_of(found: Findings, classes: int) -> list[str]:
    """Say of each class why it has no resolution of its own; nothing where it has one.

    Parameters
    ----------
    found : Findings
    classes : int
    """
    held = {number for group in found.groups for number in group}
    return ["" if number in held else "hardly any particle is in it" for number in range(classes)]


def show_end(
    events: Events,
    model: SplitModel,
    maps: tuple[Maps, ...],
    spec: ImageSpec,
    *,
    state: Mapping[str, NDArray[Any]],
    rows: Mapping[str, NDArray[Any]],
    valid: NDArray[np.bool_],
    symmetry: str,
) -> None:
    """Draw the classes at the end, as heterogeneous refinement does, and how far they are known.

    Parameters
    ----------
    events : Events
    model : SplitModel
    maps : tuple of Maps
        Small ones.
    spec : ImageSpec
        Of what was written.
    state, rows, valid, symmetry
        As for `dspa.stages.hetero.output.show_sorted`.
    """
    shell = np.arange(1, model.curve.size)
    drawn = picture.curves(
        shell / spec.extent,
        {"all classes": model.curve[1:]},
        title="agreement of the differences of two half sets",
        xlabel="resolution (A)",
        ylabel="correlation",
        thresholds={"0.143": 0.143},
        resolution=True,
        ylim=(-0.2, 1.05),
    )
    events.picture("agreement", drawn, title="how far differences are known")
    show_classes(events, maps, spec, title="central slices of the maps")
    show_sorted(events, maps, state, rows, valid=valid, symmetry=symmetry)
