"""Files and words from outside that mean harm, or are worse than damaged: one sentence each."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.dataflow.arrays_file import read_arrays
from dspa.dataflow.checkpoint import CheckpointError, Checkpoints, Stored, load
from dspa.dataflow.cluster import check_address, connect
from dspa.dataflow.yaml_file import read_yaml
from tests.dataflow.saved import save

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (BOMB, "has an alias"),
        ("[" * 5000, "nested deeper"),
        ("a:\n" + "".join(f"{' ' * i}- \n" for i in range(1, 400)), "nested deeper"),
        ("a: !!python/object/apply:os.system ['true']", "cannot read the"),
        ("? [a, b]\n: 1", "cannot read the"),
        ("a: " + "9" * 10_000, "line 1: a number of 10000 digits"),
        ("a: [", "cannot read the"),
        ("x" * (2 << 20), "larger than"),
    ],
)
def test_yaml_that_explodes_is_refused_at_once(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(InputError, match=complaint) as caught:
        read_yaml(path, "workflow")
    assert time.process_time() - began < 2.0
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=complaint):
        connect(str(path))


@pytest.mark.parametrize(
    "address",
    [
        "tcp://127.0.0.1:8786#@10.0.0.1:1",
        "tcp://127.0.0.1:8786@10.0.0.1:1",
        "tcp://10.0.0.1:1#127.0.0.1:2",
        "tcp://127.0.0.1:8786/10.0.0.1:1",
        "tcp://127.0.0.1:8786?x=1",
        "tcp://127.0.0.1:8786,tcp://10.0.0.1:1",
        "tcp://user@127.0.0.1:8786",
        "tcp://127.0.0.1\\@10.0.0.1:1",
        "tcp://127.0.0.1:8786 ",
        "tcp://127.0.0.1:99999",
        "tcp://127.0.0.1",
        "tls://:8786",
        "ucx://127.0.0.1:1",
    ],
)
def test_an_address_is_a_host_and_a_port_and_nothing_else(address: str) -> None:
    with pytest.raises(InputError, match="is not an address"):
        check_address(address)


def test_addresses_that_are_safe() -> None:
    assert check_address("tcp://127.0.0.1:8786") == "tcp://127.0.0.1:8786"
    assert check_address("tcp://[::1]:8786") == "tcp://[::1]:8786"
    assert check_address("insecure+tcp://node-3.cluster:1") == "tcp://node-3.cluster:1"
    assert check_address("tls://10.0.0.1:8786") == "tls://10.0.0.1:8786"
    with pytest.raises(InputError, match="over plain tcp anyone"):
        check_address("tcp://10.0.0.1:8786")
    with pytest.raises(InputError, match=r"insecure\+tcp://\[fd00::2\]:8786 if it is yours"):
        check_address("tcp://[fd00::2]:8786")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("kind: local\nworkers: many", "workers is 'many'"),
        ("kind: local\nworkers: .inf", "workers is inf"),
        ("kind: cuda\nworkers: 0", "workers is 0"),
        ("kind: local\nmemory_limit: [1]", "memory_limit is no size"),
        ("kind: local\nmemory_limit: .inf", "memory_limit is no size"),
        ("kind: 7", "needs a line 'kind:"),
        ("- kind", "needs a line 'kind:"),
        ("kind: tls\naddress: x", "kind tls needs"),
    ],
)
def test_cluster_files_with_odd_values(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=complaint):
        connect(str(path))


def test_whatever_fails_as_a_cluster_starts_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text("no certificate")
    path.write_text(
        f"kind: tls\naddress: tls://127.0.0.1:1\nca_file: {tmp_path}/ca\n"
        f"certificate: {tmp_path}/cert\nkey: {tmp_path}/key\n"
    )
    with pytest.raises(InputError, match="cannot be used") as caught:
        _ = connect(str(path)).client
    assert "\n" not in str(caught.value)


def test_compressed_arrays_are_not_inflated(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    np.savez_compressed(path, a=np.zeros(40_000_000, np.uint8))
    with pytest.raises(ValueError, match="compressed"):
        read_arrays(path)
    with pytest.raises(CheckpointError, match="compressed"):
        load(Stored(str(path), "0" * 64))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
    ],
)
def test_an_array_larger_than_its_file_is_not_made(header: str, tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    text = header.encode().ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    with pytest.raises(ValueError, match="absurd"):
        read_arrays(path)


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    held = {"a": np.arange(6.0).reshape(2, 3), "word": np.array("x"), "none": np.zeros((0, 4))}
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, "it001", held)
    model = checkpoints.load("it001").model
    assert set(model) == set(held)
    for name, values in held.items():
        np.testing.assert_array_equal(model[name], values)
        assert model[name].dtype == values.dtype


@pytest.mark.parametrize("text", ["a: 1\na: 2\n", "steps:\n- b: 1\n  b: 2\n"])
def test_a_key_that_stands_twice_is_refused(tmp_path, text):
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"line [23]: [ab] stands there twice"):
        read_yaml(path, "workflow")


def test_numbers_are_read_as_they_are_written(tmp_path):
    path = tmp_path / "numbers.yaml"
    path.write_text("a: 010\nb: 1:30\nc: 2026-13-45\nd: 1e5\ne: -0.5\nf: 12\ng: yes\nh: 1:59:59\n")
    found = read_yaml(path, "workflow")
    assert found == {
        "a": "010", "b": "1:30", "c": "2026-13-45", "d": 1e5, "e": -0.5, "f": 12, "g": True,
        "h": "1:59:59",
    }  # fmt: skip
