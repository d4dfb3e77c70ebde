"""``dspa refine`` end to end: particles a CPU second, shares of time by kind, linear or not.

``make bench-refine`` refines simulated particles (the built-in phantom, D7; RNA polymerase II, C1,
from ``$DSPA_TEST_DATA``) of 64 and 128 px through the command, inline, once with half of the
particles, and once more in this process with a clock on every kind of work; the last column is what
the Dask runner with one worker takes beyond that. ``--boxes 64 128 256`` takes larger ones.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.__main__ import machine
from benchmarks.class2d_scale import Outcome, command
from benchmarks.search_table import MODELS, stack
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.stages.refine import stage as refine
from dspa.stages.stage import Context

EXTENT = 224.0  # A, of the boxes
# Where the kinds of work are done. Work inside other work counts for the inner kind.
PLACES = {
    "slices": ["dspa.ops.poses.score.cut_slices", "dspa.ops.poses.search.cut_slices",
               "dspa.ops.poses.bound.cut_slices"],
    "scores": ["dspa.ops.poses.score._score_runs"],
    "products": ["dspa.ops.poses.search.coarse_scores", "dspa.ops.poses.bank.moved_images"],
    "search, the rest": ["dspa.stages.em.expectation.search"],
    "insertion": ["dspa.stages.refine.reduction.insert_posterior"],
    "noise": ["dspa.stages.em.expectation.add_residuals"],
    "maps": ["dspa.stages.refine.reduction.solve", "dspa.stages.refine.reduction.settle"],
    "FFT of images": ["dspa.stages.particles.chunks.prepare_images",
                      "dspa.stages.particles.chunks.background_spectra"],
    "reading": ["dspa.io.images.ParticleImages.read"],
    "judging": ["dspa.stages.refine.stage.judge_refinement"],
}  # fmt: skip


class Clock:
    """CPU seconds of kinds of work, each without what is timed inside it."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def timed(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Time a function under a kind."""

        def call(*arguments: Any, **options: Any) -> Any:
            self._inside.append(0.0)
            start = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                whole = time.process_time() - start
                self.spent[kind] += whole - self._inside.pop()
                if self._inside:
                    self._inside[-1] += whole

        return call


@contextlib.contextmanager
def clocked() -> Iterator[Clock]:
    """Put a clock on all places."""
    clock = Clock()
    with contextlib.ExitStack() as open_patches:
        for kind, places in PLACES.items():
            for place in places:
                owner, _, name = place.rpartition(".")
                try:
                    target: Any = importlib.import_module(owner)
                except ModuleNotFoundError:  # a method
                    module, _, of = owner.rpartition(".")
                    target = getattr(importlib.import_module(module), of)
                made = clock.timed(kind, getattr(target, name))
                open_patches.enter_context(mock.patch.object(target, name, made))
        yield clock


def inside(made: tuple[Path, Path], symmetry: str, folder: Path) -> tuple[float, dict[str, float]]:
    """Refine in this process: CPU seconds, and those of each kind."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    context = Context(folder, InlineRunner(folder / "runner"), Events(folder), seed=1)
    inputs = {"particles": made[0], "volume": made[1]}
    start = time.process_time()
    with clocked() as clock:
        refine.run(context, inputs, refine.RefineParams(symmetry=symmetry))
    return time.process_time() - start, dict(clock.spent)


def outside(made: tuple[Path, Path], symmetry: str, folder: Path, cluster: str) -> Outcome:
    """Refine by the command."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command(["init", "."], folder)
    arguments = ["refine", str(made[0]), "--volume", str(made[1]), "--symmetry", symmetry]
    return command([*arguments, "--cluster", cluster, "--seed", "1"], folder)


def main() -> int:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refine_scale")
    parser.add_argument("--folder", type=Path, default=Path("bench-refine"))
    parser.add_argument("--symmetry", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--boxes", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--particles", type=int, default=2000)
    parser.add_argument("--snr", type=float, default=0.05)
    parser.add_argument("--no-dask", action="store_true", help="leave the Dask runner out")
    given = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine().items()), flush=True)
    folder = given.folder.resolve()
    for symmetry in given.symmetry:
        for box in given.boxes:
            rates = []
            for count in (given.particles // 2, given.particles):
                made = stack(
                    symmetry, given.snr, folder / "stack", particles=count, box=box,
                    pixel_size=EXTENT / box,
                )  # fmt: skip
                taken = outside(made, symmetry, folder / "project", "inline")
                rates.append(count / taken.cpu)
                head = f"{symmetry}, {box} px, {count}"
                gib = taken.largest / 2**30
                print(f"| {head} | {taken.cpu:.0f} s | {rates[-1]:.1f}/s | {gib:.2f} GiB |",
                      flush=True)  # fmt: skip
            whole, spent = inside(made, symmetry, folder / "job")
            spent["other"] = whole - sum(spent.values())
            ordered = sorted(spent.items(), key=lambda pair: -pair[1])
            shares = ", ".join(f"{kind} {100 * each / whole:.0f} %" for kind, each in ordered)
            print(f"{symmetry}, {box} px: {shares}", flush=True)
            if not given.no_dask:
                more = outside(made, symmetry, folder / "project", "local:1").cpu - taken.cpu
                print(f"{symmetry}, {box} px: Dask, one worker {more:+.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
