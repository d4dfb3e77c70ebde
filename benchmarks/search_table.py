"""Branch and bound against exhaustive search: the same best cells, and at what share of the work.

``python -m benchmarks.search_table`` refines simulated particles (the built-in D7 phantom; RNA
polymerase II, C1, from ``$DSPA_TEST_DATA``) from the truth at 30 A, all searches global, and in
each iteration searches some of the images a second time with every cell scored. It prints, for each
SNR and radius, the share of images whose best cell is the same, the log-likelihood lost where it is
not, the products against those of the exhaustive search, and the share of images that a limit cut
short. Where a level has more cells than ``--cells`` the exhaustive search ends a level before it,
and goes on from there with odds of e^20.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from benchmarks.__main__ import machine
from benchmarks.class2d_ablation import models_folder
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io.volumes import read_volume, write_volume
from dspa.ops.images.filter import low_pass
from dspa.ops.poses.bound import Pruning
from dspa.ops.poses.search import Found, Searcher, search
from dspa.stages.em import expectation
from dspa.stages.refine import course
from dspa.stages.refine import stage as refine
from dspa.stages.simulation import particles as simulate
from dspa.stages.stage import Context

MODELS = {"C1": "1wcm", "D7": ""}  # RNA polymerase II; the built-in phantom
BOX, PIXEL, COARSE = 64, 3.5, 30.0
SEED = 1


@dataclass
class Tally:
    """Counts over the images of one pass.

    Attributes
    ----------
    order, radius, whole : int
        Of the last level; level of which every cell was scored, counted from the last: 0 or -1.
    images, same, capped : int
        Searched twice; with the same best cell; with a limit reached.
    products, every : int
        Of the search by the bound, and of that of all cells of the last level.
    lost : list of float
        Log-likelihood by which the best cell was missed.
    """

    order: int
    radius: int
    whole: int
    images: int = 0
    same: int = 0
    capped: int = 0
    products: int = 0
    every: int = 0
    lost: list[float] | None = None


class Watch:
    """Searches some images of each pass twice.

    Parameters
    ----------
    images : int
        Of each pass.
    cells : int
        Most of an image that are all scored.
    work : float
        Most coefficients of cells that are compared in a pass.
    total : int
        Images of a pass.
    """

    def __init__(self, *, images: int, cells: int, work: float, total: int) -> None:
        self.images, self.cells, self.work, self.total = images, cells, work, total
        self.passes: list[Tally] = []

    def begin(self) -> None:
        """Begin a pass."""
        self.passes.append(Tally(0, 0, 0, lost=[]))

    def __call__(
        self, searcher: Searcher, y: Any, c2: Any, *, pruning: Pruning, given: Any = None
    ) -> Found:
        """Search as refinement does; some of the images also everywhere."""
        found = search(searcher, y, c2, pruning=pruning, given=given)
        lattice, last, tally = searcher.lattice, searcher.last, self.passes[-1]
        whole = max(n for n in range(last + 1) if n == 0 or lattice.count_cells(n) <= self.cells)
        cost = lattice.count_cells(whole) * searcher.count(whole)
        wanted = min(self.images, int(self.work / cost))
        some = slice(0, max(1, round(len(y) * wanted / self.total)))
        y, c2 = y[some], c2[some]
        wide = replace(pruning, whole=whole, odds=20.0)
        few = search(searcher, y, c2, pruning=pruning)
        all_cells = search(searcher, y, c2, pruning=wide)
        level = lattice.levels[-1]
        tally.order, tally.radius, tally.whole = level.order, round(level.radius), whole - last
        tally.images += len(y)
        tally.capped += few.capped
        tally.products += few.products
        tally.every += len(y) * lattice.count_cells(last) * searcher.count(last)
        for one, other in zip(best_cells(few, len(y)), best_cells(all_cells, len(y)), strict=True):
            tally.same += one[:3] == other[:3]
            if tally.lost is not None:
                tally.lost.append(other[3] - one[3])
        return found


def best_cells(found: Found, count: int) -> Iterator[tuple[int, int, int, float]]:
    """Member, pose, shift and score of the best cell of each image."""
    total, cells = found.scores + found.prior, found.cells
    for image in range(count):
        mine = np.flatnonzero(cells.image == image)
        top = mine[np.argmax(total[mine])]
        one = (int(values[top]) for values in (cells.member, cells.pose, cells.shift))
        yield (*one, float(total[top]))


def stack(
    symmetry: str,
    snr: float,
    folder: Path,
    *,
    particles: int,
    box: int = BOX,
    pixel_size: float = PIXEL,
) -> tuple[Path, Path]:
    """Simulate particles: their table, and the truth at 30 A."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = str(models_folder() / f"{MODELS[symmetry]}.pdb.gz") if MODELS[symmetry] else ""
    params = simulate.Params(
        model=model, particles=particles, box=box, pixel_size=pixel_size, snr=snr
    )
    context = Context(folder, InlineRunner(folder / "runner"), Events(folder), seed=SEED)
    made = simulate.run(context, {}, params)
    density: NDArray[np.float32] = read_volume(made["truth_volume"]).density
    start = folder / "start.mrc"
    write_volume(start, low_pass(density, COARSE, pixel_size=pixel_size), pixel_size=pixel_size)
    return made["particles"], start


def watched(symmetry: str, made: tuple[Path, Path], folder: Path, watch: Watch, most: int) -> None:
    """Refine under watch."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    context = Context(folder, InlineRunner(folder / "runner"), Events(folder), seed=SEED)
    params = refine.RefineParams(symmetry=symmetry, iterations=most, global_only=True)
    plan = course.plan_iteration

    def planned(*arguments: Any) -> Any:
        watch.begin()
        return plan(*arguments)

    with (
        mock.patch.object(expectation, "search", watch),
        mock.patch.object(course, "plan_iteration", planned),
        mock.patch.object(refine, "judge_refinement", lambda *_: ""),
    ):
        refine.run(context, {"particles": made[0], "volume": made[1]}, params)


def line(one: Tally) -> str:
    """Write a pass as a row of a table."""
    n, lost = max(one.images, 1), np.array(one.lost or [0.0])
    missed = float(lost[lost > 0].mean()) if (lost > 0).any() else 0.0
    where = f"{60 / 2**one.order:.1f} degrees, {one.radius} of {BOX // 2 - 1}"
    return (
        f"{where}{' *' if one.whole else ''} | {one.images} | {100 * one.same / n:.1f} % | "
        f"{missed:.2f} | {100 * one.products / max(one.every, 1):.2f} % | "
        f"{100 * one.capped / n:.1f} %"
    )


def main() -> int:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_table")
    parser.add_argument("--folder", type=Path, default=Path("bench-search"))
    parser.add_argument("--symmetry", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--snr", nargs="+", type=float, default=[0.02, 0.05, 0.1])
    parser.add_argument("--particles", type=int, default=2000)
    parser.add_argument("--images", type=int, default=2000, help="searched twice, at most")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--cells", type=float, default=2.0**25)
    parser.add_argument("--work", type=float, default=2e12, help="products of a pass, at most")
    given = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine().items()), flush=True)
    for symmetry in given.symmetry:
        for snr in given.snr:
            folder = given.folder.resolve()
            made = stack(symmetry, snr, folder / "stack", particles=given.particles)
            watch = Watch(
                images=given.images, cells=int(given.cells), work=given.work,
                total=given.particles,
            )  # fmt: skip
            watched(symmetry, made, folder / "job", watch, given.iterations)
            for number, one in enumerate(watch.passes, 1):
                print(f"| {symmetry} | {snr:g} | {number}, {line(one)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
