"""Small YAML files of people: plain values only, no aliases, no depth, no surprise of size."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from dspa.data.errors import InputError, plainly

if TYPE_CHECKING:
    from pathlib import Path

LARGEST = 2**20
_DEEPEST = 32


class _Plain(yaml.SafeLoader):
    """Reads numbers as people write them, dates as words, and no key twice.

    YAML 1.1 takes 010 for eight, 1:30 for ninety and 2026-11-29 for a date.
    """

    def construct_mapping(  # the signature is PyYAML's
        self,
        node: yaml.MappingNode,
        deep: bool = False,  # noqa: FBT001, FBT002
    ) -> dict[Any, Any]:
        """Make a dictionary of a mapping whose keys differ."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ValueError(
                        f"line {key.start_mark.line + 1}: {key.value} stands there twice; keep one"
                    )
                seen.add(key.value)
        return dict(super().construct_mapping(node, deep=deep))


_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9][0-9]{0,30})",
    "tag:yaml.org,2002:float": r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
_Plain.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag.endswith((":bool", ":null", ":merge"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _rule in _NUMBERS.items():
    _Plain.add_implicit_resolver(_tag, re.compile(f"^(?:{_rule})$"), list("-+.0123456789"))


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
        if not path.exists():
            raise InputError(f"{path}: there is no such file; check the path")
        if not path.is_file():  # a pipe would block for ever
            raise InputError(f"{path}: not a file; check the path")
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path}: larger than a {what} can be (1 MiB)")
        text = path.read_text(encoding="utf-8")
        _check_events(path, text, what)
        loader = _Plain(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except InputError:
        raise
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cannot read the {what} {path}: {reason}") from error
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"cannot read the {what} {path}: {plainly(error)}") from error


def _check_events(path: Path, text: str, what: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise InputError(
                f"{path}: has an alias (*{event.anchor}); write the value out: aliases are not "
                f"read in a {what}"
            )
        if isinstance(event, yaml.ScalarEvent) and re.fullmatch(r"[-+]?\d{31,}", event.value):
            place = f"line {event.start_mark.line + 1}: " if event.start_mark else ""
            raise InputError(
                f"{path}: {place}a number of {len(event.value)} digits; nothing is that large"
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            raise InputError(f"{path}: nested deeper than a {what} can be ({_DEEPEST} levels)")
