"""Benchmarks do not rot: each file imports and has what the harness calls."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from dspa.geometry.rotation import random_rotations
from dspa.ops.images.transform import band_to_images, shift_phases
from dspa.ops.simulate.phantom import Atoms, gaussian_density
from dspa.ops.sums.project import project

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


def test_averages_correlate_with_their_true_projection_and_noise_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("benchmarks.average_truth")
    rng = np.random.default_rng(3)
    atoms = Atoms(rng.normal(0.0, 25.0, (40, 3)), np.ones(40), np.full(40, 8.0))
    density = gaussian_density(atoms, box=32, pixel_size=7.0)
    truth = module.Truth.of(density, pixel_size=7.0, diameter=150.0, finest=18.0)
    views = project(truth.volume, random_rotations(2, 5), truth.plane)
    views = views * shift_phases(truth.plane, np.array([[1.3, -2.2], [-0.4, 0.6]]))
    images = 3.0 * np.asarray(band_to_images(views, truth.plane))
    noise = rng.standard_normal((1, 32, 32)).astype(np.float32)
    curves = truth.curves(np.concatenate([images, noise]))
    assert curves[:2].min() > 0.9
    assert curves[2, 1:].mean() < 0.5
