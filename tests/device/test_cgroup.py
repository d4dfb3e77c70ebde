"""Limits of the groups that this process is in: both versions, inner and outer, and kills."""

from __future__ import annotations

import pytest

from dspa.device.cgroup import UNLIMITED, kill_count, memory_left, memory_limit

MIB = 2**20


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def second(folder, limit, used, dropped=0, kills=0):
    top = f"sys/fs/cgroup/{folder}".rstrip("/")
    return {
        f"{top}/memory.max": f"{limit}\n",
        f"{top}/memory.current": f"{used}\n",
        f"{top}/memory.stat": f"anon 1\ninactive_file {dropped}\nactive_file 99\n",
        f"{top}/memory.events": f"low 0\noom 7\noom_kill {kills}\noom_group_kill 0\n",
    }


def first(folder, limit, used, dropped=0, kills=0):
    top = f"sys/fs/cgroup/memory/{folder}".rstrip("/")
    return {
        f"{top}/memory.limit_in_bytes": f"{limit}\n",
        f"{top}/memory.usage_in_bytes": f"{used}\n",
        f"{top}/memory.stat": f"inactive_file 3\ntotal_inactive_file {dropped}\n",
        f"{top}/memory.oom_control": f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n",
    }


FIRST = "9:name=systemd:/x\n4:cpu,memory:/batch/job7\n1:cpuset:/\n0::/\n"
CASES = {
    "second, own group": ("0::/batch/job7\n", second, 500, 200, 50, 350),
    "second, a group around it": ("0::/batch/job7/step\n", second, 500, 200, 50, 350),
    "first, own group": (FIRST, first, 500, 200, 50, 350),
    "more is used than the limit": (FIRST, first, 500, 700, 0, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_the_limit_of_a_batch_job_counts(case, tmp_path):
    lines, group, limit, used, dropped, left = CASES[case]
    outer = group("", "max" if group is second else 2**63 - 4096, 900 * MIB)
    own = group("batch/job7", limit * MIB, used * MIB, dropped * MIB)
    write(tmp_path, outer | own | {"proc/self/cgroup": lines})
    assert memory_left(tmp_path) == left * MIB
    assert memory_limit(tmp_path) == limit * MIB


@pytest.mark.parametrize("group", [first, second])
def test_the_smallest_limit_holds(group, tmp_path):
    line = "0::/a/b\n" if group is second else "4:memory:/a/b\n0::/\n"
    files = {"proc/self/cgroup": line}
    for folder, limit, used in (("", 900, 890), ("a", 300, 100), ("a/b", 200, 20)):
        files |= group(folder, limit * MIB, used * MIB)
    write(tmp_path, files)
    assert memory_left(tmp_path) == 10 * MIB
    assert memory_limit(tmp_path) == 200 * MIB


@pytest.mark.parametrize("path", ["/docker/0123", "/../../elsewhere"])
def test_in_a_container_the_root_is_its_own(path, tmp_path):
    write(tmp_path, second("", 400 * MIB, 100 * MIB) | {"proc/self/cgroup": f"0::{path}\n"})
    assert memory_left(tmp_path) == 300 * MIB


def test_both_versions_side_by_side(tmp_path):
    files = first("batch/job7", 100 * MIB, 0) | {"proc/self/cgroup": FIRST}
    files["sys/fs/cgroup/unified/cgroup.procs"] = ""
    write(tmp_path, files)
    assert memory_left(tmp_path) == 100 * MIB


@pytest.mark.parametrize("line", ["", "0::/gone\n", "nonsense\n", "4:memory\n", "::::\n"])
def test_where_nothing_limits_nothing_is_known(line, tmp_path):
    write(tmp_path, {"proc/self/cgroup": line})
    assert memory_left(tmp_path) == memory_limit(tmp_path) == UNLIMITED
    assert kill_count(root=tmp_path) is None


@pytest.mark.parametrize("group", [first, second])
def test_kills_are_counted_in_the_own_group(group, tmp_path):
    line = "0::/a/b\n" if group is second else "4:memory:/a/b\n0::/\n"
    files = {"proc/self/cgroup": line, "proc/vmstat": "nr_free 1\noom_kill 40\n"}
    write(tmp_path, files | group("a", 9, 9, kills=8) | group("a/b", 9, 9, kills=3))
    file, count = kill_count(root=tmp_path)
    assert count == 3
    write(tmp_path, group("a/b", 9, 9, kills=4))
    assert kill_count(file, root=tmp_path) == (file, 4)
    file.unlink()
    assert kill_count(file, root=tmp_path) is None
    assert kill_count(root=tmp_path) == (tmp_path / "proc/vmstat", 40)
