"""Count what a GPU would be asked for, per pass, on the stand-in: launches, calls, waits, bytes.

No hardware: `tests.stand_in` computes with NumPy and counts. Each pass runs twice and the second is
counted, as images go to the device once in a job. Run from the root of the repository:
``python -m benchmarks.device_counts``.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dspa.dataflow.runner import reduce_chunks
from dspa.stages.class2d.reduction import Class2D
from tests.stages.device_passes import (
    class2d_runs,
    class2d_steps,
    class2d_table,
    volume_particles,
    volume_passes,
    weighing_of,
)
from tests.stand_in import Card

CLASS2D, VOLUMES = "class2d", "maps"


def passes(folder: Path, *, count: int, box: int, batch: int) -> dict[str, tuple[Any, Any, Any]]:
    """Make the passes of all stages: reduction, model and chunks, by name.

    Parameters
    ----------
    folder : Path
        Empty.
    count : int
        Particles.
    box : int
        Edge of the images of the passes over maps, px; the others have 33 px.
    batch : int
    """
    for name in (CLASS2D, VOLUMES, "passes"):
        (folder / name).mkdir()
    runs = class2d_runs(class2d_table(folder / CLASS2D, count), count=count, size=count)
    steps = class2d_steps(runs, count=count, batch=batch)
    made: dict[str, tuple[Any, Any, Any]] = {
        f"class2d, {name}": (Class2D(plan), model, runs) for name, (plan, model, _) in steps.items()
    }
    reduction, model = weighing_of(steps)
    made["class2d, weighing"] = reduction, model, runs
    particles = volume_particles(folder / VOLUMES, count=count, box=box)
    for name, whole in volume_passes(particles, folder / "passes", batch=batch).items():
        stage = "refine" if name in ("profile", "global", "local") else "abinitio"
        made[f"{stage}, {name}"] = whole
    return made


def count_passes(made: dict[str, tuple[Any, Any, Any]], *, batch: int) -> list[dict[str, Any]]:
    """Run every pass twice on the stand-in and count the second.

    Parameters
    ----------
    made : dict
        From `passes`.
    batch : int

    Returns
    -------
    list of dict
        Name of the pass, particles and counts.
    """
    rows = []
    for name, (reduction, model, chunks) in made.items():
        patch = pytest.MonkeyPatch()
        card = Card(patch)
        try:
            reduce_chunks(reduction.bind(model), chunks, batch)
            card.counts = type(card.counts)()
            reduce_chunks(reduction.bind(model), chunks, batch)
        finally:
            card.remove()
        items = sum(len(chunk) for chunk in chunks)
        rows.append({"pass": name, "particles": items, **asdict(card.counts)})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Write counts as a table: bytes per particle, the rest per pass."""
    lines = [
        "| pass | particles | launches | calls | waits | uploads | downloads | B up | B down |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        count = row["particles"]
        figures = [row[key] for key in ("launches", "calls", "waits", "uploads", "downloads")]
        figures += [round(row[key] / count) for key in ("bytes_up", "bytes_down")]
        lines.append(f"| {row['pass']} | {count} | {' | '.join(str(n) for n in figures)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device_counts", description=__doc__)
    parser.add_argument("--particles", type=int, default=160)
    parser.add_argument("--box", type=int, default=32, help="edge of images of maps, px")
    parser.add_argument("--batch", type=int, default=160)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = passes(Path(folder), count=given.particles, box=given.box, batch=given.batch)
        print(table(count_passes(made, batch=given.batch)))


if __name__ == "__main__":
    main()
