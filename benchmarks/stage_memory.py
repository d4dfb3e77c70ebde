"""Measure the memory of every process of a job against what ``--dry-run`` says it takes.

``python -m benchmarks.stage_memory STAGE [OPTIONS ...]`` runs ``dspa STAGE OPTIONS`` and polls the
resident memory of the process that leads the job and of its workers. Give ``--cluster local:N``
among the options, and ``--project`` a folder.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

POLL = 0.05  # seconds


def main(options: list[str]) -> int:
    """Run a stage, print what its plan says and the peaks of its processes in GiB."""
    command = [str(Path(sys.executable).parent / "dspa"), *options]
    told = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=False)
    for line in told.stdout.splitlines():
        if "memory" in line or "band" in line:
            print(line.strip())
    job = subprocess.Popen(command)
    most: dict[int, int] = {}
    while job.poll() is None:
        for process in _family(job.pid):
            try:
                most[process.pid] = max(most.get(process.pid, 0), process.memory_info().rss)
            except psutil.Error:
                continue  # it has ended
        time.sleep(POLL)
    used = resident_usage()
    print(f"lead {most.pop(job.pid, 0) / 2**30:.2f} GiB")
    for number, peak in enumerate(sorted(most.values(), reverse=True)):
        if peak > 100 << 20:  # not the processes that only start others
            print(f"worker {number} {peak / 2**30:.2f} GiB")
    print(f"CPU {used:.0f} s")
    return job.returncode


def _family(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants."""
    try:
        lead = psutil.Process(pid)
        return [lead, *lead.children(recursive=True)]
    except psutil.Error:
        return []


def resident_usage() -> float:
    """CPU seconds of the processes that this one has waited for."""
    times = psutil.Process().cpu_times()
    return float(times.children_user + times.children_system)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
