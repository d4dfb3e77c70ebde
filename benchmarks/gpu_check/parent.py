"""Run the sections one after another, each in a process of its own, and keep what they say."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Seconds that a section may take on a GPU; in this order, as each tells why the next may fail.
LIMITS = {
    "versions": 45,
    "kernels": 70,
    "ops": 45,
    "steps": 90,
    "whole": 90,
    "rates": 90,
    "command": 60,
    "profile": 45,
}
SLOWER = 8  # times as long may they take on the stand-in


def main(arguments: list[str]) -> int:
    """Parse the command line and run; 0 if all sections passed.

    Parameters
    ----------
    arguments : list of str
        After ``gpu_check``.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu_check", description=__doc__)
    parser.add_argument("--budget", type=float, default=470.0, help="seconds in all [470]")
    parser.add_argument("--json", type=Path, help="file that results are written to as they come")
    parser.add_argument("--only", help=f"some of: {','.join(LIMITS)}")
    parser.add_argument("--stand-in", action="store_true", help="without a GPU, few particles")
    given = parser.parse_args(arguments)
    chosen = given.only.split(",") if given.only else list(LIMITS)
    unknown = sorted(set(chosen) - set(LIMITS))
    if unknown:
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(LIMITS)}")
    report: dict[str, Any] = {"stand_in": given.stand_in, "sections": []}
    start = time.monotonic()
    for name in chosen:
        left = given.budget - (time.monotonic() - start)
        limit = min(left, LIMITS[name] * (SLOWER if given.stand_in else 1))
        section = {"name": name, "status": "skipped: no time left", "rows": []}
        report["sections"].append(section)
        if limit > 1:
            run_section(section, limit, stand_in=given.stand_in, keep=lambda: _write(given, report))
        _write(given, report)
        _tell(section)
    good = [each["status"] == "passed" for each in report["sections"]]
    print(f"{sum(good)} of {len(good)} sections passed in {time.monotonic() - start:.0f} s")
    return 0 if all(good) else 1


def run_section(section: dict[str, Any], limit: float, *, stand_in: bool, keep: Any) -> None:
    """Run one section; its rows and its status go into ``section`` as they come.

    Parameters
    ----------
    section : dict
        With its name.
    limit : float
        Seconds.
    stand_in : bool
    keep : callable
        Called after each row.
    """
    command = [sys.executable, "-m", "benchmarks.gpu_check.child", section["name"]]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        environment.setdefault(threads, "1")
    if stand_in:
        command.append("--stand-in")
        environment.pop("DSPA_DEVICE", None)
    else:
        environment["DSPA_DEVICE"] = "cuda"
    begun = time.monotonic()
    child = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    late: list[bool] = []

    def stop() -> None:
        """End the section and all that it has started."""
        late.append(True)
        os.killpg(child.pid, signal.SIGKILL)

    timer = Timer(limit, stop)
    timer.start()
    other: list[str] = []
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith('{"'):
            section["rows"].append(json.loads(line))
            keep()
        else:
            other = [*other, line.rstrip()][-25:]
    child.wait()
    timer.cancel()
    section["seconds"] = round(time.monotonic() - begun, 1)
    failed = [row for row in section["rows"] if row.get("good") is False]
    if late:
        section["status"] = f"stopped after {limit:.0f} s"
    elif child.returncode:
        section["status"] = f"ended with {child.returncode}"
    elif failed or not section["rows"]:
        section["status"] = f"{len(failed)} of {len(section['rows'])} failed"
    else:
        section["status"] = "passed"
    if section["status"] != "passed":
        section["output"] = other


def _write(given: argparse.Namespace, report: dict[str, Any]) -> None:
    if given.json:
        part = given.json.with_suffix(".part")
        part.write_text(json.dumps(report, indent=1))
        part.replace(given.json)


def _tell(section: dict[str, Any]) -> None:
    print(f"== {section['name']}: {section['status']}, {section.get('seconds', 0)} s", flush=True)
    for row in section["rows"]:
        mark = {True: "ok", False: "WRONG"}.get(row.get("good"), "")
        value = row["value"]
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"   {row['what']:58s} {shown:>14s} {row['unit']:14s} {mark}", flush=True)
    for line in section.get("output", ()):
        print(f"   | {line}")
