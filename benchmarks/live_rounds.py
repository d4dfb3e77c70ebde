"""Rounds of a live session: what one costs beside the exposures in it, few and many being known.

``python -m benchmarks.live_rounds --known 12,204``: small micrographs of discs, one process; CPU
seconds, since other programs share the machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from dspa.io.mrc import write as write_mrc
from dspa.project.live import Live, Pace, check_live
from dspa.project.machines import Machines
from dspa.project.project import init
from dspa.project.running import Options
from dspa.project.sessions import open_session
from dspa.project.workflow import read_workflow

SHAPE, PIXEL, RADIUS = (320, 400), 3.0, 20.0
WORKFLOW = """steps:
- {stage: import micrographs, files: "mics/*.mrc", pixel-size: 3, voltage: 300, cs: 2.7}
- {stage: ctf, from: import micrographs, min-resolution: 60, max-resolution: 6.2, local: none}
- {stage: pick blob, from: ctf, min-diameter: 110, max-diameter: 140}
- {stage: curate-exposures, from: pick blob, min-picks: 5}
- {stage: inspect-picks, from: curate-exposures, auto: true}
- {stage: extract, from: inspect-picks, box: 48, failed-ctf: keep}
"""


def expose(path: Path, seed: int) -> None:
    """Write a micrograph of discs in noise.

    Parameters
    ----------
    path : Path
    seed : int
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    grid = np.stack(np.meshgrid(np.arange(45, 380, 75), np.arange(45, 300, 75)), -1).reshape(-1, 2)
    image = sum(
        (np.hypot(x - a, y - b) < RADIUS).astype(np.float32)
        for a, b in grid + rng.uniform(-12, 12, grid.shape)
    )
    pixels = (500 - 8 * image + 6 * rng.standard_normal(SHAPE)).astype(np.float32)
    write_mrc(path, pixels[None], shape=(1, *SHAPE), pixel_size=PIXEL)


def main() -> None:
    """Print CPU seconds of the jobs of a round with one new exposure, and with more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--known", default="12,204", help="exposures that are known before")
    parser.add_argument("--new", type=int, default=12, help="exposures of the larger round")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dspa-live-"))
    os.chdir(folder)
    Path("mics").mkdir()
    Path("flow.yaml").write_text(WORKFLOW, encoding="utf-8")
    project, steps = init(folder), read_workflow(Path("flow.yaml"))
    check_live(project, steps)
    session = open_session(project, Path("flow.yaml"))
    options = Options(Machines("inline").make_runner, cluster="inline")
    pace = Pace(at_once=100_000, settle=0.0)
    live, count = Live(project, session, steps, options, pace, lambda _: None), 0

    def round_of(new: int) -> float:
        """Let exposures appear, take them up, and return the CPU seconds."""
        nonlocal count
        for number in range(count, count + new):
            expose(Path("mics", f"m{number:05d}.mrc"), number)
        count += new
        live.look()
        seen, begun = live.look(), time.process_time()
        live.round(tuple(each.name for each in seen.ready))
        return time.process_time() - begun

    print("| known | new | CPU s of the round | CPU s an exposure more |\n|---|---|---|---|")
    for known in map(int, given.known.split(",")):
        round_of(known - count)
        one, more = round_of(1), round_of(given.new)
        each = (more - one) / (given.new - 1)
        print(f"| {known} | 1 | {one:.2f} | |")
        print(f"| {known + 1} | {given.new} | {more:.2f} | {each:.2f} |")
    begun = time.process_time()
    live.look()
    print(f"a look at {count} files that are known: {time.process_time() - begun:.4f} CPU s")


if __name__ == "__main__":
    main()
