"""cryoSPARC datasets: conventions, both containers, and the way through STAR and back."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import lz4.block
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dspa.data import store
from dspa.data.errors import InputError
from dspa.geometry.rotation import matrix_from_euler
from dspa.io import cs, cs_join
from dspa.io.cs import read_cs, write_cs
from dspa.io.cs_particles import Orientation, read_cs_particles
from dspa.io.cs_write import write_cs_particles
from dspa.io.particles import read_particles, write_particles
from dspa.io.volumes import write_image_stack

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 12


def _fields(**more: np.ndarray) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    pose = Rotation.random(COUNT, random_state=1).as_rotvec()
    # A turn too many: the same rotation with a vector longer than pi, as real files have.
    pose[::3] *= (1 - 2 * np.pi / np.linalg.norm(pose[::3], axis=1))[:, None]
    n = COUNT
    return {
        "uid": rng.integers(2**63, 2**64, n, dtype=np.uint64),
        "blob/path": np.array([b">J3/a.mrc", b">J3/b.mrc"] * (n // 2), "S20"),
        "blob/idx": np.arange(n, dtype="u4") // 2,
        "blob/shape": np.full((n, 2), 8, "u4"),
        "blob/psize_A": np.full(n, 1.3099979, "f4"),
        "blob/sign": np.full(n, -1, "f4"),
        "blob/import_sig": rng.integers(0, 2**64, n, dtype=np.uint64),
        "ctf/type": np.full(n, b"", "S9"),
        "ctf/exp_group_id": np.arange(n, dtype="u4") % 2 + 7,
        "ctf/accel_kv": np.full(n, 300, "f4"),
        "ctf/cs_mm": np.full(n, 2.7, "f4"),
        "ctf/amp_contrast": np.full(n, 0.07, "f4"),
        "ctf/df1_A": rng.uniform(1e4, 2e4, n).astype("f4"),
        "ctf/df2_A": rng.uniform(1e4, 2e4, n).astype("f4"),
        "ctf/df_angle_rad": rng.uniform(-1, 1, n).astype("f4"),
        "ctf/phase_shift_rad": np.zeros(n, "f4"),
        "ctf/tetra_A": rng.normal(size=(n, 4)).astype("f4"),
        "alignments3D/pose": pose.astype("f4"),
        "alignments3D/shift": rng.normal(size=(n, 2)).astype("f4"),
        "alignments3D/psize_A": np.full(n, 2.6199958, "f4"),
        "alignments3D/split": np.arange(n, dtype="u4") % 2,
        "alignments3D/class": np.full(n, 3, "u4"),
        "alignments3D/alpha": rng.normal(size=n).astype("f4"),
        "location/micrograph_path": np.array([b"m1.mrc", b"m2.mrc"] * (n // 2)),
        "location/micrograph_shape": np.tile(np.array([4000, 6000], "u4"), (n, 1)),
        "location/center_x_frac": rng.uniform(size=n).astype("f4"),
        "location/center_y_frac": rng.uniform(size=n).astype("f4"),
        "location/micrograph_psize_A": np.full(n, 0.655, "f4"),
        **more,
    }


def _assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert set(a) == set(b)
    for name, values in a.items():
        assert values.dtype == b[name].dtype, name
        np.testing.assert_array_equal(values, b[name], err_msg=name)


def test_conventions(tmp_path: Path) -> None:
    fields = _fields()
    # The vector of conventions.md: rot 30, tilt 40, psi 50 degrees.
    fields["alignments3D/pose"][0] = [0.13128837, 0.74457334, 1.33523483]
    fields["location/center_x_frac"][0], fields["location/center_y_frac"][0] = 0.25, 0.75
    write_cs(tmp_path / "p.cs", fields)
    table = read_particles(tmp_path / "p.cs")
    np.testing.assert_allclose(
        table["pose"][0], matrix_from_euler(*np.deg2rad([30.0, 40.0, 50.0])), atol=1e-6
    )
    np.testing.assert_allclose(table["shift"], fields["alignments3D/shift"] * 2.6199958, rtol=1e-6)
    # A fraction of the columns, and of the rows from the bottom.
    np.testing.assert_allclose(table["coordinate"][0], [1500 * 0.655, 1000 * 0.655])
    np.testing.assert_allclose(table["spherical_aberration"], [2.7e7, 2.7e7])
    assert table["half_set"].values.tolist() == [1, 2] * 6
    assert (table["image_sign"] == -1).all()
    assert (table["class_index"] == 3).all()
    assert table["stack_name"].values.tolist() == ["J3/a.mrc", "J3/b.mrc"]
    assert table["optics_name"].values.tolist() == ["expGroup7", "expGroup8"]


def test_orientation_options(tmp_path: Path) -> None:
    write_cs(tmp_path / "p.cs", _fields())
    plain = read_cs_particles(tmp_path / "p.cs")
    top = read_cs_particles(tmp_path / "p.cs", orientation=Orientation(bottom_left=False))
    y = plain["coordinate"][:, 1] + top["coordinate"][:, 1]
    np.testing.assert_allclose(y, 4000 * 0.655, rtol=1e-6)
    upside = Orientation(mirrored=True)
    mirrored = read_cs_particles(tmp_path / "p.cs", orientation=upside)
    turn = np.diag([1.0, -1.0, -1.0])
    np.testing.assert_allclose(mirrored["pose"], turn @ plain["pose"].values)
    np.testing.assert_allclose(mirrored["shift"][:, 1], -plain["shift"][:, 1])
    np.testing.assert_allclose(mirrored["defocus_angle"], -plain["defocus_angle"])
    write_cs_particles(mirrored, tmp_path / "q.cs", orientation=upside)
    _assert_equal(read_cs(tmp_path / "p.cs"), read_cs(tmp_path / "q.cs"))


def test_cs_to_star_to_cs_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "J3").mkdir()
    for name in "ab":  # found beside the file, so that links for RELION are made on the way
        stack = np.random.default_rng(0).normal(size=(6, 8, 8))
        write_image_stack(tmp_path / "J3" / f"{name}.mrc", stack, pixel_size=1.31)
    write_cs(tmp_path / "p.cs", _fields())
    first = read_particles(tmp_path / "p.cs")
    write_particles(first, tmp_path / "p.star")
    again = read_particles(tmp_path / "p.star")
    write_particles(again, tmp_path / "p.zarr")
    write_particles(read_particles(tmp_path / "p.zarr"), tmp_path / "q.cs")
    _assert_equal(read_cs(tmp_path / "p.cs"), read_cs(tmp_path / "q.cs"))
    assert np.linalg.norm(read_cs(tmp_path / "q.cs")["alignments3D/pose"], axis=1).max() > np.pi
    for name in ("pose", "shift", "coordinate", "defocus_u", "image_index", "image_sign"):
        np.testing.assert_allclose(again[name], first[name], atol=1e-6)
    assert all(p.endswith(".mrcs") for p in again["stack_path"].values)


def test_changed_values_replace_kept_fields(tmp_path: Path) -> None:
    write_cs(tmp_path / "p.cs", _fields())
    table = read_particles(tmp_path / "p.cs")
    pose, shift = table["pose"].values.copy(), table["shift"].values.copy()
    pose[1], shift[1] = np.eye(3), [10.0, -20.0]
    table = table.assign(pose=(("particle", "i", "j"), pose), shift=(("particle", "xy"), shift))
    write_cs_particles(table, tmp_path / "q.cs")
    before, after = read_cs(tmp_path / "p.cs"), read_cs(tmp_path / "q.cs")
    rows = np.arange(COUNT) != 1
    np.testing.assert_array_equal(
        before["alignments3D/pose"][rows], after["alignments3D/pose"][rows]
    )
    np.testing.assert_allclose(after["alignments3D/pose"][1], 0, atol=1e-6)
    again = read_particles(tmp_path / "q.cs")
    np.testing.assert_allclose(again["shift"], shift, atol=1e-5)


def test_a_table_without_history_becomes_a_dataset(tmp_path: Path) -> None:
    write_cs(tmp_path / "p.cs", _fields())
    table = read_particles(tmp_path / "p.cs")
    bare = table.drop_vars([v for v in table.variables if str(v).startswith("extra:")])
    write_cs_particles(bare, tmp_path / "q.cs")
    again = read_particles(tmp_path / "q.cs")
    for name in ("pose", "shift", "coordinate", "half_set", "class_index", "image_sign"):
        np.testing.assert_allclose(again[name], bare[name], atol=2e-3, err_msg=name)


def test_poses_of_2d_and_of_several_classes(tmp_path: Path) -> None:
    fields = {k: v for k, v in _fields().items() if not k.startswith("alignments3D")}
    angle = np.linspace(0, 6, COUNT, dtype="f4")
    write_cs(
        tmp_path / "a.cs",
        fields | {"alignments2D/pose": angle, "alignments2D/class": fields["blob/idx"]},
    )
    flat = read_particles(tmp_path / "a.cs")
    np.testing.assert_allclose(flat["pose"], matrix_from_euler(0, 0, angle), atol=1e-6)
    write_particles(flat.assign(class_index=flat["class_index"] + 1), tmp_path / "b.cs")
    np.testing.assert_array_equal(
        read_cs(tmp_path / "b.cs")["alignments2D/class"], fields["blob/idx"] + 1
    )
    poses = Rotation.random(2 * COUNT, random_state=2).as_rotvec().reshape(COUNT, 2, 3)
    posterior = np.tile(np.array([0.2, 0.8], "f4"), (COUNT, 1))
    multi = {
        "alignments3D_multi/pose": poses.astype("f4"),
        "alignments3D_multi/class_posterior": posterior,
    }
    write_cs(tmp_path / "c.cs", fields | multi)
    best = read_particles(tmp_path / "c.cs")
    expected = Rotation.from_rotvec(poses[:, 1]).inv().as_matrix()
    np.testing.assert_allclose(best["pose"], expected, atol=1e-6)
    assert (best["class_index"] == 1).all()


def _write_stream(path: Path, fields: dict[str, Any]) -> None:
    """Write fields as the compressed stream."""
    heap, dtype, columns = b"\0", [], []
    for name, values in fields.items():
        if values.dtype.kind == "S":
            words = sorted(set(values.tolist()) - {b""})
            at = {b"": 0}
            for word in words:
                at[word] = len(heap)
                heap += word + b"\0"
            values = np.array([at[v] for v in values.tolist()], "<u8")
            dtype.append([name, "|O"])
        else:
            dtype.append([name, values.dtype.str, *([values.shape[1:]] if values.ndim > 1 else [])])
        columns.append(lz4.block.compress(values.tobytes(), store_size=False))
    header = {
        "length": COUNT,
        "dtype": dtype,
        "compression": "lz4",
        "compressed_fields": list(fields),
    }
    raw = json.dumps(header).encode()
    raw = b"\x95CSDAT" + struct.pack("<I", len(raw)) + raw
    raw += b"".join(struct.pack("<I", len(c)) + c for c in columns)
    path.write_bytes(raw + heap)


def test_the_compressed_stream(tmp_path: Path) -> None:
    fields = _fields()
    _write_stream(tmp_path / "p.cs", fields)
    found = read_cs(tmp_path / "p.cs")
    for name, values in fields.items():
        expected = [v.decode() for v in values.tolist()] if values.dtype.kind == "S" else values
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


@pytest.mark.parametrize("write", [write_cs, _write_stream])
def test_spans_make_the_table_that_the_whole_makes(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = _fields()
    write(tmp_path / "p.cs", fields)
    more = {"uid": fields["uid"][::-1].copy(), "a/b": np.arange(COUNT, dtype=">f4")}
    write_cs(tmp_path / "p_passthrough.cs", more)
    files = (tmp_path / "p.cs", tmp_path / "p_passthrough.cs")
    whole = read_cs_particles(*files)
    np.testing.assert_array_equal(whole["extra:cs:a/b:f4"].values, np.arange(COUNT)[::-1])
    monkeypatch.setattr(cs_join, "SPAN", 5)
    by_spans = read_cs_particles(*files, folder=tmp_path)
    assert whole.identical(store.loaded(by_spans))
    assert cs.rows(files[0]) == COUNT


def test_fields_of_the_wrong_shape_are_named(tmp_path: Path) -> None:
    fields = _fields()
    fields["alignments3D/pose"] = np.zeros((COUNT, 2), "f4")
    write_cs(tmp_path / "p.cs", fields)
    with pytest.raises(InputError, match="alignments3D/pose"):
        read_particles(tmp_path / "p.cs")


@pytest.mark.data
@pytest.mark.parametrize("name", ["cryosparc_P12_J24_001_particles.cs", "empiar_10076_7.cs"])
def test_real_files_lose_nothing(name: str, data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / "interop" / "cryosparc" / name
    write_particles(read_particles(source), tmp_path / "p.star")
    write_particles(read_particles(tmp_path / "p.star"), tmp_path / "q.cs")
    _assert_equal(read_cs(source), read_cs(tmp_path / "q.cs"))


@pytest.mark.data
def test_cs_and_star_of_the_same_particles_agree(data_dir: Path) -> None:
    folder = data_dir / "interop" / "cryosparc"
    one = read_particles(folder / "empiar_10076_7.cs")
    other = read_particles(folder / "empiar_10076_7.star")
    for name in ("defocus_u", "defocus_v", "pixel_size", "voltage", "image_index"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(one["defocus_angle"], other["defocus_angle"], atol=1e-4)


def _halves() -> tuple[dict[str, Any], dict[str, Any]]:
    """What a refinement writes, and what passes through it, in another order."""
    fields = _fields()
    place = {k: v[::-1] for k, v in fields.items() if k.startswith("location/") or k == "uid"}
    return {k: v for k, v in fields.items() if not k.startswith("location/")}, place


def test_the_two_files_of_a_job_are_joined_by_uid(tmp_path: Path) -> None:
    made, passed = _halves()
    write_cs(tmp_path / "J5_particles.cs", made)
    # What the job wrote itself counts more than what passed through it.
    write_cs(tmp_path / "J5_passthrough.cs", {**passed, "ctf/df1_A": np.zeros(COUNT, "f4")})
    write_cs(tmp_path / "whole.cs", _fields())
    paths = [tmp_path / "J5_passthrough.cs", tmp_path / "J5_particles.cs"]
    joined, whole = read_cs_particles(*paths), read_cs_particles(tmp_path / "whole.cs")
    for name in ("uid", "coordinate", "defocus_u", "pose"):
        np.testing.assert_array_equal(joined[name], whole[name], err_msg=name)
    other = {**passed, "uid": passed["uid"] + np.uint64(1)}
    write_cs(tmp_path / "J6_passthrough.cs", other)
    with pytest.raises(InputError, match=r"J6_passthrough\.cs holds 0 of the 12 particles of"):
        read_cs_particles(paths[1], tmp_path / "J6_passthrough.cs")


def test_rows_that_a_join_leaves_out_are_counted(tmp_path: Path) -> None:
    made, passed = _halves()
    images = {k: v for k, v in made.items() if k.startswith("blob/")}
    own = {k: v for k, v in made.items() if k not in images}
    write_cs(tmp_path / "own.cs", own)
    write_cs(
        tmp_path / "J5_passthrough.cs",
        {k: v[:8] for k, v in (images | {"uid": own["uid"]}).items()},
    )
    write_cs(tmp_path / "J6_passthrough.cs", passed)
    names = ["own.cs", "J5_passthrough.cs", "J6_passthrough.cs"]
    for order in (names, names[::-1]):
        table = read_cs_particles(*(tmp_path / name for name in order), numbered=True)
        np.testing.assert_array_equal(table["uid"], own["uid"][:8])
        np.testing.assert_allclose(table["defocus_u"], own["ctf/df1_A"][:8])
        assert table["file_row"].values.tolist() == [*range(1, 9)]
        left = table.attrs["set_aside"].replace(f"{tmp_path}/", "")
        assert left == "4 of 12 rows of own.cs that J5_passthrough.cs does not hold"
    write_cs(tmp_path / "own.cs", {k: v[2:] for k, v in made.items()})
    left = read_cs_particles(tmp_path / "J6_passthrough.cs", tmp_path / "own.cs").attrs["set_aside"]
    assert "2 of 12 rows of" in left and left.endswith("own.cs does not hold")


@pytest.mark.parametrize("size", [0.0, -1.0, np.nan])
def test_shifts_in_pixels_of_no_size_are_told(size: float, tmp_path: Path) -> None:
    fields = _fields()
    fields["alignments3D/psize_A"][[2, 5]] = size
    fields["alignments3D/shift"][5] = 0.0
    write_cs(tmp_path / "p.cs", fields)
    table = read_particles(tmp_path / "p.cs")
    told = f"alignments3D/psize_A is no size in 1 row with a shift (row 3: {size:g}); blob/psize_A"
    assert told in table.attrs["doubts"]
    shift = fields["alignments3D/shift"][2] * fields["blob/psize_A"][2]
    np.testing.assert_allclose(table["shift"][2], shift, rtol=1e-6)


def test_half_of_a_job_says_what_is_missing(tmp_path: Path) -> None:
    made, passed = _halves()
    bare = {k: v for k, v in made.items() if not k.startswith("blob/")}
    write_cs(tmp_path / "refined.cs", bare)
    write_cs(tmp_path / "J5_passthrough.cs", passed)
    with pytest.raises(InputError, match=r"no blob/path.*give the passthrough file"):
        read_cs_particles(tmp_path / "refined.cs")
    with pytest.raises(InputError, match=r"no blob/path.*give the particles file"):
        read_cs_particles(tmp_path / "J5_passthrough.cs")
    with pytest.raises(InputError, match="no blob/path, so no images; export"):
        read_cs_particles(tmp_path / "refined.cs", tmp_path / "J5_passthrough.cs")
    write_cs(tmp_path / "picked.cs", passed)
    assert "coordinate" in read_cs_particles(tmp_path / "picked.cs")


def test_alignments_of_ab_initio_classes(tmp_path: Path) -> None:
    fields = {k: v for k, v in _fields().items() if not k.startswith("alignments")}
    poses = Rotation.random(3 * COUNT, random_state=2).as_rotvec().reshape(3, COUNT, 3)
    best = np.arange(COUNT) % 3
    for k in range(3):
        fields |= {
            f"alignments_class_{k}/pose": poses[k].astype("f4"),
            f"alignments_class_{k}/shift": np.full((COUNT, 2), k + 1, "f4"),
            f"alignments_class_{k}/psize_A": np.full(COUNT, 2.0, "f4"),
            f"alignments_class_{k}/class_posterior": np.where(best == k, 0.9, 0.05).astype("f4"),
        }
    write_cs(tmp_path / "p.cs", fields)
    table = read_cs_particles(tmp_path / "p.cs")
    assert table["class_index"].values.tolist() == best.tolist()
    expected = Rotation.from_rotvec(poses[best, np.arange(COUNT)]).as_matrix()
    np.testing.assert_allclose(table["pose"], np.swapaxes(expected, 1, 2), atol=1e-6)
    np.testing.assert_allclose(table["shift"][:, 0], 2.0 * (best + 1))
    for k in range(3):
        del fields[f"alignments_class_{k}/class_posterior"]
    write_cs(tmp_path / "p.cs", fields)
    table = read_cs_particles(tmp_path / "p.cs")
    assert "pose" not in table
    assert table.attrs["set_aside"] == "the poses of 3 classes without class_posterior"


def test_infinite_and_missing_values_spare_the_others(tmp_path: Path) -> None:
    fields = _fields(**{"pick_stats/power": np.full(COUNT, np.inf, "f4")})
    fields["ctf/df1_A"][3] = np.inf
    fields["location/center_x_frac"][4] = np.nan
    write_cs(tmp_path / "p.cs", fields)
    table = read_particles(tmp_path / "p.cs")
    assert np.flatnonzero(np.isnan(table["defocus_u"])).tolist() == [3]
    assert np.flatnonzero(np.isnan(table["coordinate"]).any(axis=1)).tolist() == [4]
    assert np.isnan(table["power"]).all()


def test_a_voltage_of_zero_is_unknown(tmp_path: Path) -> None:
    write_cs(tmp_path / "p.cs", _fields(**{"ctf/accel_kv": np.zeros(COUNT, "f4")}))
    assert np.isnan(read_particles(tmp_path / "p.cs")["voltage"]).all()


def test_files_that_deny_each_other_are_refused(tmp_path: Path) -> None:
    """Only what passed through a job yields; else the first file would win without a word."""
    made, passed = _halves()
    order = {k: v[::-1] for k, v in made.items()}
    first, second = tmp_path / "a.cs", tmp_path / "b.cs"
    write_cs(first, made)
    write_cs(second, order | passed)
    same = read_cs_particles(first, second)  # the same values, in another order
    np.testing.assert_array_equal(same["uid"], made["uid"])
    for name, change in (("ctf/df1_A", 1.0), ("alignments3D/pose", 0.5), ("blob/path", b"y")):
        values = order[name].copy()
        values[3] += change
        write_cs(second, order | passed | {name: values})
        with pytest.raises(InputError, match=rf"a\.cs and .*b\.cs have different values of {name}"):
            read_cs_particles(first, second)
        write_cs(tmp_path / "b_passthrough.cs", order | passed | {name: values})
        joined = read_cs_particles(tmp_path / "b_passthrough.cs", first)
        np.testing.assert_array_equal(joined["defocus_u"], same["defocus_u"])
    later = {k: np.zeros_like(v) if k == "location/center_x_frac" else v for k, v in passed.items()}
    write_cs(tmp_path / "c_passthrough.cs", later)
    with pytest.raises(InputError, match=r"_passthrough.cs have different values of location/ce"):
        read_cs_particles(first, tmp_path / "b_passthrough.cs", tmp_path / "c_passthrough.cs")


def test_particles_of_no_half_set_stay_so(tmp_path: Path) -> None:
    write_cs(tmp_path / "p.cs", _fields())
    table = read_particles(tmp_path / "p.cs")
    bare = table.drop_vars([v for v in table.variables if str(v).startswith("extra:")])
    for half in (np.zeros(COUNT, "i1"), np.arange(COUNT, dtype="i1") % 3):
        write_cs_particles(bare.assign(half_set=("particle", half)), tmp_path / "q.cs")
        again = read_particles(tmp_path / "q.cs")
        found = again["half_set"].values if "half_set" in again else np.zeros(COUNT)
        np.testing.assert_array_equal(found, half)


def test_poses_close_to_the_axis_are_no_turns_in_the_plane(tmp_path: Path) -> None:
    write_cs(tmp_path / "p.cs", _fields())
    table = read_particles(tmp_path / "p.cs")
    bare = table.drop_vars([v for v in table.variables if str(v).startswith("extra:")])
    for tilt in (0.0, 1e-3):
        pose = matrix_from_euler(np.zeros(COUNT), np.full(COUNT, tilt), np.linspace(0, 3, COUNT))
        write_cs_particles(bare.assign(pose=(("particle", "i", "j"), pose)), tmp_path / "q.cs")
        again = read_particles(tmp_path / "q.cs")["pose"].values
        np.testing.assert_allclose(again, pose, atol=1e-6)
