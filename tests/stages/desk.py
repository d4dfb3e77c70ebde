"""A desk to run stages at: each in a folder of its own, and what they said is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.stages.stage import Context, check


class Desk:
    """Runs stages in a folder and keeps what they say."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.heard, self.count = folder, [], 0

    def run(self, stage: Any, inputs: dict[str, Any] | None = None, **params: Any) -> Any:
        made = stage.params(**params)
        check(made)
        self.count += 1
        folder = self.folder / "jobs" / f"J{self.count:03d}-test"
        folder.mkdir(parents=True)
        events = Events(folder, (self.heard.append,))
        given: dict[str, Any] = {each.name: None for each in stage.inputs} | (inputs or {})
        return dict(stage.run(Context(folder, InlineRunner(folder), events), given, made))

    def said(self, kind: str = "") -> str:
        texts = [e["text"] for e in self.heard if e["kind"] in (kind or ("message", "warning"))]
        return " | ".join(texts)
