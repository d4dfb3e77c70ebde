"""Small YAML files of people: plain values only, no aliases, no depth, no surprise of size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from dspa.data.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

LARGEST = 2**20
_DEEPEST = 32


def read_yaml(path: Path, what: str) -> Any:
    """Read a YAML file.

    An alias stands for what an anchor holds, and aliases of aliases for more than memory can:
    neither is needed here, so neither is read.

    Parameters
    ----------
    path : Path
    what : str
        What the file should be, for messages: ``workflow``.

    Raises
    ------
    InputError
        If it is no YAML of plain values, is larger than 1 MiB or deeper than 32 levels.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would block for ever
            raise InputError(f"{path}: not a file; check the path")
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path}: larger than a {what} can be (1 MiB)")
        text = path.read_text(encoding="utf-8")
        _check_events(path, text, what)
        return yaml.safe_load(text)
    except InputError:
        raise
    except (OSError, ValueError, OverflowError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cannot read the {what} {path}: {reason}") from error


def _check_events(path: Path, text: str, what: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise InputError(
                f"{path}: has an alias (*{event.anchor}); write the value out: aliases are not "
                f"read in a {what}"
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            raise InputError(f"{path}: nested deeper than a {what} can be ({_DEEPEST} levels)")
