"""One worker and more: wall time, CPU time, and how busy the workers were.

``python -m benchmarks.workers`` classifies and refines simulated particles of RNA polymerase II
(``$DSPA_TEST_DATA``) with ``--workers 1 2``, one run after the other, as a user runs them. Workers
are busy while they add chunks; beside that a pass brings sums together and makes the model.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks.__main__ import machine
from benchmarks.class2d_ablation import MOLECULES, models_folder, write_sample
from benchmarks.class2d_scale import Outcome, command
from dspa.dataflow.events import read_events
from dspa.io.model import read_model
from dspa.io.volumes import write_volume
from dspa.ops.images.filter import low_pass
from dspa.ops.simulate.phantom import gaussian_density

BOX, PIXEL = 64, 3.5
COARSE = 40.0  # A, of the map that the refinement begins from


def run(stage: list[str], table: Path, folder: Path, *, workers: int) -> tuple[Outcome, float, int]:
    """Run a stage in a fresh project: what it took, the share of busy workers, image visits."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command(["init", "."], folder)
    command(["import", "particles", str(table), "--check", "headers"], folder)
    found = command([*stage, "--cluster", f"local:{workers}", "--seed", "1"], folder)
    events = [event for _, event in read_events(next(folder.glob("jobs/J002*")) / "events.jsonl")]
    passes = [event for event in events if event["kind"] == "pass"]
    room = sum(float(event["seconds"]) * int(event["workers"]) for event in passes)
    visits = sum(int(e.get("particles", 0)) for e in events if e["kind"] == "iteration")
    return found, sum(float(event["busy"]) for event in passes) / room, visits


def main() -> int:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench-workers"))
    parser.add_argument("--particles", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--iterations", type=int, default=20, help="of the refinement, at most")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--stages", nargs="+", default=["class2d", "refine"])
    given = parser.parse_args()
    folder, polymerase = given.folder.resolve(), MOLECULES["polymerase"]
    sample = write_sample(
        polymerase, folder / "particles", particles=given.particles, box=BOX, pixel_size=PIXEL
    )
    atoms = read_model(str(models_folder() / f"{polymerase.model}.pdb.gz"), assembly="1")
    density = gaussian_density(atoms, box=BOX, pixel_size=PIXEL)
    start = folder / "start.mrc"
    write_volume(start, low_pass(density, COARSE, pixel_size=PIXEL), pixel_size=PIXEL)
    stages = {
        "class2d": ["class2d", "J1", "--classes", str(given.classes)],
        "refine": ["refine", "J1", "--volume", str(start), "--iterations", str(given.iterations)],
    }
    print(", ".join(f"{key} {value}" for key, value in machine().items()), flush=True)
    for name in given.stages:
        for workers in given.workers:
            taken, busy, visits = run(
                stages[name], sample.table, folder / "project", workers=workers
            )
            print(
                f"| {name} | {workers} | {taken.wall:.0f} s | {taken.cpu:.0f} s | "
                f"{100 * busy:.0f} % | {visits / taken.wall:.0f}/s | {visits / taken.cpu:.0f}/s |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
