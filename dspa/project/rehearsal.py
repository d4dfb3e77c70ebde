"""A stage as far as it goes without computing: what would be refused is refused now."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dspa.data.errors import InputError
from dspa.dataflow.checkpoint import Checkpoints
from dspa.dataflow.events import Event, Events
from dspa.device import memory_budget
from dspa.project.lineage import Resolved, paths
from dspa.stages.stage import Context, check

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dspa.stages.stage import Stage


class _Enough(Exception):
    """The stage would begin to compute."""


def rehearse(stage: Stage, inputs: Resolved, params: Any) -> dict[str, Any]:
    """Check all of a job that can be checked before it runs, and return the figures of its plan.

    Parameters
    ----------
    stage : Stage
    inputs : mapping
        From `dspa.project.lineage.resolve`.
    params : dataclass

    Returns
    -------
    dict
        Items, chunks, memory as the stage plans them; ``warning`` where it would warn.
    """
    check(params)
    given = paths(inputs)
    needed = require_memory(stage, given, params)
    if stage.admit is not None:
        stage.admit(given, params)
    figures = dict(stage.plan(given, params)) if stage.plan is not None else {}
    if needed:
        figures["memory of this process"] = f"{needed / 2**30:.2f} GiB"
    if (stage.admit is not None and not stage.warns) or not stage.contained:
        return figures
    warnings: list[str] = []

    def heard(event: Event) -> None:
        if event["kind"] == "warning":
            warnings.append(str(event.get("text", "")))

    with tempfile.TemporaryDirectory(prefix="dspa-plan-") as folder:
        events = Events(None, (heard,))
        runner = _Rehearsal(Path(folder), events)
        if stage.warns:  # whose plan tells the memory, of workers that may be elsewhere
            runner.memory = sys.maxsize
        try:
            stage.run(Context(Path(folder), runner, events), given, params)
        except _Enough:
            pass
        except InputError as error:
            raise InputError(str(error).replace(folder, "the job's folder")) from error
    return figures | ({"warning": "; ".join(dict.fromkeys(warnings))} if warnings else {})


def require_memory(stage: Stage, inputs: Mapping[str, Any], params: Any) -> int:
    """Return the bytes the process that leads a job needs; refuse if they are not there.

    Parameters
    ----------
    stage : Stage
    inputs : mapping
        Paths.
    params : dataclass

    Raises
    ------
    InputError
        With both numbers.
    """
    if stage.lead is None:
        return 0
    needed, free = stage.lead(inputs, params), memory_budget()
    if needed > free:
        raise InputError(
            f"{stage.name} of these tables needs {needed / 2**30:.2f} GiB in the process that "
            f"leads it, and {free / 2**30:.2f} GiB are free here; lead it from a machine with more "
            "memory (the workers may stay where they are), or split the set"
        )
    return needed


@dataclass
class _Rehearsal:
    """A runner that runs nothing."""

    folder: Path
    events: Events
    workers: int = 1
    memory: int = field(default_factory=memory_budget)

    @property
    def checkpoints(self) -> Checkpoints:
        """No checkpoints."""
        return Checkpoints(self.folder / "checkpoints")

    def run(self, *_: Any, **__: Any) -> NoReturn:
        """Stop here."""
        raise _Enough

    def map(
        self, function: Any, items: Iterable[Any], *, name: str = "map", keep: Any = None
    ) -> list[Any]:
        """Stop here, if there is anything to do."""
        if list(items):
            raise _Enough
        return []

    def close(self) -> None:
        """Nothing is held."""
