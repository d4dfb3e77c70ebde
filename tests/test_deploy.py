"""The files of deploy/ are well-formed, and say what they must."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_parse(path: Path) -> None:
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster-gpu.yaml"])
def test_slurm_files_make_a_job_script(name: str) -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    options = yaml.safe_load((DEPLOY / "slurm" / name).read_text())
    assert options.pop("kind") == "slurm"
    assert options.pop("workers") >= 1
    options.pop("interface", None)  # a network card of another machine
    options.pop("shared_temp_directory")  # of the cluster object, not of a job
    cluster_type = jobqueue.slurm.SLURMJob
    script = cluster_type("tcp://scheduler:8786", name="test", **options).job_script()
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "OMP_NUM_THREADS=1" in script
    assert script.rindex("--nthreads 1") > script.index("--nthreads") or "gpu" not in name
    if "gpu" in name:
        assert "--gres=gpu:4" in script
        assert "dask_cuda.cli worker" in script
    assert ("DSPA_DEVICE=cuda" in script) == ("gpu" in name)


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster-gpu.yaml"])
def test_kubernetes_clusters_hang_together(name: str) -> None:
    cluster = yaml.safe_load((DEPLOY / "kubernetes" / name).read_text())
    worker, scheduler = cluster["spec"]["worker"]["spec"], cluster["spec"]["scheduler"]
    (container,) = worker["containers"]
    assert container["args"][container["args"].index("--nthreads") + 1] == "1"
    claimed = {volume["name"] for volume in worker["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == claimed
    selector = scheduler["service"]["selector"]
    assert selector["dask.org/cluster-name"] == cluster["metadata"]["name"]
    named = {port["name"] for port in scheduler["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in scheduler["service"]["ports"]} <= named
    gpus = "nvidia.com/gpu" in container["resources"].get("limits", {})
    assert gpus == ("gpu" in name)
    assert gpus == ({"name": "DSPA_DEVICE", "value": "cuda"} in container.get("env", []))
    assert "nvidia" not in str(scheduler)


def test_images_hold_what_the_package_needs() -> None:
    for name in ("Dockerfile", "Dockerfile.cuda"):
        text = (DEPLOY / name).read_text()
        for needed in ("pyproject.toml", "README.md", "LICENSE", "COPY dspa dspa", "COPY kernels"):
            assert needed in text, f"{name} lacks {needed}"
        assert "USER dspa" in text
