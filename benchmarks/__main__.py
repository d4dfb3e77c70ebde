"""Run the benchmarks, or compare two runs; ``gpu_check`` has a command line of its own."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """List the benchmarks by the names of their files."""
    return sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


def machine() -> dict[str, str]:
    """Describe what the figures were taken on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "numpy": importlib.metadata.version("numpy"),
        "numba": importlib.metadata.version("numba"),
        "commit": commit.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def run_one(name: str) -> None:
    """Run one benchmark in this process; a line of JSON per row."""
    for row in importlib.import_module(f"benchmarks.bench_{name}").run():
        print(json.dumps(asdict(row)), flush=True)


def run_all(chosen: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Run benchmarks, each in a process of its own; return the rows and what failed."""
    rows: list[dict[str, Any]] = []
    failed = []
    for name in chosen:
        command = [sys.executable, "-m", "benchmarks", "--one", name]
        done = subprocess.run(
            command, cwd=FOLDER.parent, stdout=subprocess.PIPE, text=True, check=False
        )
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                row = {"benchmark": name, **json.loads(line)}
                rows.append(row)
                print(f"{name:14s} {row['what']:60s} {row['value']:12.4g} {row['unit']}")
        if done.returncode:
            failed.append(name)
            print(f"{name:14s} failed, exit status {done.returncode}")
    return rows, failed


def compare(old: Path, new: Path) -> None:
    """Print the ratio of what two runs have in common."""
    before = {(r["benchmark"], r["what"]): r for r in json.loads(old.read_text())["rows"]}
    for row in json.loads(new.read_text())["rows"]:
        other = before.get((row["benchmark"], row["what"]))
        if other and other["value"]:
            ratio = row["value"] / other["value"]
            print(f"{row['benchmark']:14s} {row['what']:60s} {ratio:8.3f} x ({row['unit']})")


def main() -> int:
    """Parse the command line and run."""
    if sys.argv[1:2] == ["gpu_check"]:
        return importlib.import_module("benchmarks.gpu_check.parent").main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"some of: {', '.join(names())}")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        run_one(given.one)
        return 0
    if given.compare:
        compare(*given.compare)
        return 0
    unknown = sorted(set(given.names) - set(names()))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(names())}")
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    rows, failed = run_all(given.names or names())
    if given.json:
        given.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
