"""Stages for tests: they stand in for the real ones in the registry."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import signal
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dspa.data.errors import InputError
from dspa.stages import registry
from dspa.stages.registry import Entry
from dspa.stages.stage import Input, Stage, param


def load_toy_reduction():
    path = Path(__file__).parents[1] / "dataflow" / "toy_reduction.py"
    spec = importlib.util.spec_from_file_location("toy_reduction", path)
    module = sys.modules.setdefault("toy_reduction", importlib.util.module_from_spec(spec))
    if not hasattr(module, "passes"):
        spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class MakeParams:
    source: str = param(help="where from")
    size: int = param(8, "how many", unit="px", minimum=1, maximum=100)
    names: tuple[str, ...] = param((), "names")


def make(context, inputs, params):
    if params.source == "wrong":
        (context.folder / "half.zarr").mkdir()
        raise InputError("wrong: give --pixel-size")
    if params.source == "broken":
        context.events.emit("progress", task="make", done=1, total=3)
        (context.folder / "half.zarr").mkdir()
        raise InputError("broken: line 3 has no pixel size; give --pixel-size")
    if params.source == "crash":
        raise ZeroDivisionError("division by zero")
    path = context.folder / "particles.zarr"
    np.save(context.folder / "particles.npy", np.arange(params.size))
    path.write_text(params.source)
    (context.folder / "micrographs.zarr").write_text("m")
    context.events.message("made")
    context.events.emit("result", particles=params.size)
    return {"particles": path, "micrographs": context.folder / "micrographs.zarr"}


@dataclass(frozen=True)
class IterateParams:
    iterations: int = param(3, "passes", minimum=1, maximum=100)
    power: tuple[float, float] | None = param(None, "range", unit="A", minimum=0, maximum=1e4)
    auto: bool = param(False, "choose")
    mode: str = param("fast", "mode", choices=("fast", "slow"))
    suicide: int = param(0, "iteration after which the process kills itself")
    pause: float = param(0.0, "seconds between passes")


def iterate(context, inputs, params):
    toy = load_toy_reduction()
    last = context.runner.checkpoints.latest()
    first, model = (0, {"volume": np.zeros(512, np.float32)}) if last is None else last[:2]
    for number in range(first + 1, params.iterations + 1):
        chunks = [toy.ToyChunk(i) for i in range(5)]
        model = context.runner.run(toy.ToyReduction(), chunks, model, name=f"it{number:03d}").model
        context.events.emit("iteration", iteration=number, resolution=10.0 / number)
        time.sleep(params.pause)
        if params.suicide == number and first == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    path = context.folder / "volume.npy"
    np.save(path, model["volume"])
    return {"volume": path, "half1": path}


def combine(context, inputs, params):
    text = "\n".join(f"{name}={inputs[name]}" for name in sorted(inputs))
    path = context.folder / "combined.txt"
    path.write_text(text)
    return {"mask": path}


def admit(inputs, params):
    if params.source == "refused":
        raise InputError("refused: this source is not known; use another")


STAGES = (
    Stage("toy make", "Make particles", MakeParams, (), make, admit=admit),
    Stage(
        "toy iterate",
        "Iterate",
        IterateParams,
        (
            Input("particles", "particles"),
            Input("guess", "volume", positional=False, optional=True),
        ),
        iterate,
        plan=lambda inputs, params: {"passes": params.iterations},
    ),
    Stage(
        "toy combine",
        "Combine",
        MakeParams,
        (
            Input("particles", "particles"),
            Input("micrographs", "micrographs"),
            Input("volumes", "volume", positional=False, optional=True, many=True),
        ),
        combine,
    ),
)


def install():
    name = "dspa.stages.toy"
    module = types.ModuleType(name)
    module.STAGES = STAGES
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules[name] = module
    toys = tuple(Entry(stage.name, "toy", stage.summary) for stage in STAGES)
    registry.ENTRIES = (*registry.ENTRIES, *toys)


if __name__ == "__main__":
    install()
    import cloudpickle

    from dspa import cli
    from dspa.project import lease

    lease.BEAT = float(os.environ.get("TOY_BEAT", lease.BEAT))
    cloudpickle.register_pickle_by_value(load_toy_reduction())  # workers do not know it
    cli.GROUPS["toy"] = "Toys."
    sys.exit(cli.run(sys.argv[1:]))
