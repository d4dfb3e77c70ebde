"""``dspa motion`` and ``dspa simulate movies``: from frames to micrographs that later jobs take."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.dataflow.dask_runner import DaskRunner
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io import mrc
from dspa.io.micrographs import read_micrograph_image, read_micrographs, write_micrographs
from dspa.io.movie_truth import read_movie_truth
from dspa.io.star import find_block, read_star
from dspa.stages.motion import stage as motion
from dspa.stages.motion.params import Params
from dspa.stages.simulation import movies as simulate
from dspa.stages.stage import Context, check

SMALL = simulate.Params(
    micrographs=2, width=320, height=288, particles=6, pixel_size=2.0, frames=8, snr=1.0,
    dose_per_frame=2.0, drift=15.0, dome=5.0, thon=0.7, contamination=0, edge=0.0, ice=0.0,
)  # fmt: skip
PARAMS = Params(patches=(4, 4), bfactor=40.0, even_odd=True, save_nodw=True)


def _context(folder: Path, runner: Any = None, heard: list[Any] | None = None) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    events = Events(folder, () if heard is None else (heard.append,))
    return Context(folder, runner or InlineRunner(folder, events), events, 3)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("session")
    check(SMALL)
    simulate.run(_context(folder), {}, SMALL)
    return folder


@pytest.fixture(scope="module")
def corrected(session: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corrected")
    check(PARAMS)
    motion.run(_context(folder), {"movies": session / "movies.zarr"}, PARAMS)
    return folder


def _as_relion_reads_it(path: Path, points: np.ndarray) -> np.ndarray:
    """Displacements (frames, p, 2) in pixels, by RELION's formula: minus what it shifts by."""
    blocks = read_star(path)
    general, shifts = find_block(blocks, "general"), find_block(blocks, "global_shift")
    assert general is not None and shifts is not None
    rows, columns = (int(general.columns[f"rlnImageSize{a}"][0]) for a in "YX")
    whole = np.stack([shifts.columns[f"rlnMicrographShift{a}"] for a in "XY"], axis=1)
    model = find_block(blocks, "local_motion_model")
    assert model is not None and int(general.columns["rlnMotionModelVersion"][0]) == 1
    factors = np.asarray(model.columns["rlnMotionModelCoeff"], float).reshape(2, 6, 3)
    x, y = points[:, 0] / columns - 0.5, points[:, 1] / rows - 0.5
    places = np.stack([np.ones_like(x), x, x * x, y, y * y, x * y])
    z = np.arange(len(whole))[:, None]
    local = np.einsum("dab,tb,ap->tpd", factors, np.concatenate([z, z**2, z**3], axis=1), places)
    return -(whole[:, None] + local)


def test_motion_is_found_and_told_as_relion_reads_it(session: Path, corrected: Path) -> None:
    table = read_micrographs(corrected / "micrographs.zarr")
    star = read_micrographs(corrected / "micrographs.star")
    assert table.attrs["kind"] == "micrographs"
    assert star["extra:rlnMicrographMetadata"].values[0] == "motion/movie_0000.star"
    assert (table["motion"].values > 15.0).all()
    for name, (points, moved) in read_movie_truth(session / "motion_truth.star").items():
        stem = Path(name).stem
        inner = (np.abs(points / points.max(axis=0) - 0.5) < 0.4).all(axis=1)
        told = 2.0 * _as_relion_reads_it(corrected / "motion" / f"{stem}.star", points / 2.0)
        error = (told - moved)[:, inner]
        error -= error.mean(axis=0)
        assert np.linalg.norm(error, axis=-1).mean() < 0.5
        for suffix in ("", "_noDW", "_ODD", "_EVN"):
            header = mrc.read_header(corrected / "micrographs" / f"{stem}{suffix}.mrc")
            assert (header.shape, header.dtype, header.pixel_size) == ((1, 288, 320), "<f2", 2.0)
        truth = read_micrograph_image(session / "structures" / f"structure_{stem[-4:]}.mrc")
        image = read_micrograph_image(corrected / "micrographs" / f"{stem}.mrc")
        edge = (slice(20, -20),) * 2
        assert np.corrcoef(truth[edge].ravel(), image[edge].ravel())[0, 1] > 0.75


def test_the_same_bits_on_any_worker(session: Path, corrected: Path, clusters, tmp_path) -> None:
    heard: list[Any] = []
    events = Events(tmp_path, (heard.append,))
    runner = DaskRunner(clusters(2), folder=tmp_path, events=events)
    context = Context(tmp_path, runner, events, 3)
    motion.run(context, {"movies": session / "movies.zarr"}, PARAMS)
    for path in sorted((corrected / "micrographs").iterdir()):
        assert (tmp_path / "micrographs" / path.name).read_bytes() == path.read_bytes()
    for path in sorted((corrected / "motion").glob("*.star")):
        assert (tmp_path / "motion" / path.name).read_bytes() == path.read_bytes()


def test_a_bad_movie_is_set_aside_and_done_ones_are_kept(session: Path, tmp_path: Path) -> None:
    shutil.copytree(session, tmp_path / "copy")
    source = tmp_path / "copy" / "movies.zarr"
    table = read_micrographs(source).load()
    paths = [str(tmp_path / "copy" / "movies" / f"movie_{n:04d}.tif") for n in range(2)]
    table = table.assign(path=("micrograph", np.array(paths, object)))

    write_micrographs(table, source)
    whole = Path(paths[1]).read_bytes()
    Path(paths[1]).write_bytes(whole[: len(whole) // 2])
    heard: list[Any] = []
    quick = replace(PARAMS, even_odd=False, save_nodw=False)
    context = _context(tmp_path / "job", heard=heard)
    outputs = motion.run(context, {"movies": source}, quick)
    assert read_micrographs(outputs["micrographs"]).sizes["micrograph"] == 1
    assert any("movie_0001.tif set aside" in e.get("text", "") for e in heard)
    done = tmp_path / "job" / "micrographs" / "movie_0000.mrc"
    columns, before = mrc.read_header(done).shape[2], done.stat().st_mtime_ns
    motion.run(context, {"movies": source}, quick)  # as `dspa resume` does
    assert done.stat().st_mtime_ns == before
    motion.run(context, {"movies": source}, replace(quick, bin=2.0))
    assert mrc.read_header(done).shape[2] * 2 == columns
    table = read_micrographs(tmp_path / "job" / "micrographs.zarr")
    assert table["pixel_size"].values[0] == pytest.approx(4.0)


def test_an_unknown_dose_is_asked_for(session: Path) -> None:
    table = read_micrographs(session / "movies.zarr").load().drop_vars("dose")
    with pytest.raises(InputError, match="--dose-per-frame, or --no-dose-weighting"):
        motion.movie_tasks(table, PARAMS)
    assert len(motion.movie_tasks(table, replace(PARAMS, dose_weighting=False))) == 2


def test_a_dry_run_tells_memory(session: Path) -> None:
    plan = motion.plan({"movies": session / "movies.zarr"}, PARAMS)
    assert plan["movies"] == 2 and plan["frames"] == 8
    assert 0 < plan["memory per worker (MiB)"] < 100
