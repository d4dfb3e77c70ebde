"""Benchmarks do not rot: each file imports and has what the harness calls."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "benchmarks").glob("bench_*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_benchmark_imports_and_runs_when_called(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module(f"benchmarks.{path.stem}")
    assert callable(module.run), f"{path.name} has no run()"
    assert (module.__doc__ or "").strip()
    assert "benchmarks.rows" in sys.modules
