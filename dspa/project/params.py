"""Parameters from the outside: command line, workflow files, job records."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dspa.data.errors import InputError
from dspa.stages.stage import check

if typing.TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_RANGE = re.compile(r"(\d{1,9})-(\d{1,9})")
LONGEST_RANGE = 100_000


@dataclass(frozen=True)
class Field:
    """One parameter as the outside sees it.

    Attributes
    ----------
    name : str
        Python name.
    type : type
        ``int``, ``float``, ``str`` or ``bool``: of the value, or of the items of a tuple.
    length : int or None
        None for a single value, 0 for a list of any length, n for n values.
    optional : bool
        Whether it may be None.
    required : bool
        Whether it has no default.
    default : Any
    metadata : mapping
        As made by `dspa.stages.stage.param`.
    """

    name: str
    type: type
    length: int | None
    optional: bool
    required: bool
    default: Any
    metadata: Mapping[str, Any]

    @property
    def option(self) -> str:
        """``--max-resolution``."""
        return "--" + self.name.replace("_", "-")

    @property
    def positional(self) -> bool:
        """Required words are arguments, all else options."""
        plain = self.type is str and self.length is None
        return self.required and plain and not self.metadata.get("choices")

    @property
    def several(self) -> bool:
        """Whether a text may also be a list of texts: the files of an expanded pattern."""
        return bool(self.metadata.get("several"))


@lru_cache(maxsize=64)
def fields_of(params: type) -> tuple[Field, ...]:
    """Return the fields of a Params dataclass.

    Parameters
    ----------
    params : type
        A frozen dataclass.
    """
    hints = typing.get_type_hints(params)
    return tuple(_field(item, hints[item.name]) for item in dataclasses.fields(params))


def _field(item: dataclasses.Field[Any], hint: Any) -> Field:
    options = [hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [each for each in typing.get_args(hint) if each is not type(None)]
    optional, kind, length = (
        hint is not options[0] and type(None) in typing.get_args(hint),
        options[0],
        None,
    )
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        length = 0 if inner[-1] is Ellipsis else len(inner)
        kind = inner[0]
    if kind not in (int, float, str, bool):
        raise TypeError(f"parameter {item.name}: {hint} cannot be given on a command line")
    required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    default = None if required else _default(item)
    return Field(item.name, kind, length, optional, required, default, item.metadata)


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default is not dataclasses.MISSING:
        return item.default
    assert item.default_factory is not dataclasses.MISSING
    return item.default_factory()


def from_plain(params: type, values: Mapping[str, Any]) -> Any:
    """Make parameters of plain values: from JSON, YAML, keyword arguments.

    Parameters
    ----------
    params : type
        A frozen dataclass.
    values : mapping of str to Any
        Names may have hyphens; lists become tuples; a list may be a comma-separated text.
    """
    known = {field.name: field for field in fields_of(params)}
    chosen = {}
    for given, value in values.items():
        name = given.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise InputError(f"there is no parameter {given!r}; {hint}")
        chosen[name] = convert(known[name], value)
    for name, field in known.items():
        if field.required and name not in chosen:
            label = name.upper() if field.positional else field.option
            raise InputError(f"{label} is missing: {field.metadata.get('help', '')}")
    made = params(**chosen)
    check(made)
    return made


def convert(field: Field, value: Any) -> Any:
    """Convert a plain value to the type of its field, or say in a sentence why not.

    Parameters
    ----------
    field : Field
    value : Any
    """
    if value is None and (field.optional or (field.default is None and not field.required)):
        return None
    if field.several and isinstance(value, list | tuple) and value:
        texts = tuple(_scalar(field, item) for item in value)
        return texts if len(texts) > 1 else texts[0]
    if field.length is None:
        return _scalar(field, value)
    if isinstance(value, str):
        value = [piece for piece in value.replace(",", " ").split() if piece]
    items = list(value) if isinstance(value, list | tuple) else [value]
    if field.type is int and field.length == 0:
        items = [number for item in items for number in _range(field, item)]
    if field.length and len(items) != field.length:
        raise InputError(f"{field.option} takes {field.length} values, got {len(items)}")
    return tuple(_scalar(field, item) for item in items)


def _range(field: Field, item: Any) -> Iterable[Any]:
    """Return the numbers of ``3-7``, ends included; anything else as it is."""
    match = _RANGE.fullmatch(item) if isinstance(item, str) else None
    if match is None:
        return (item,)
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + LONGEST_RANGE:
        raise InputError(
            f"{field.option} is {item!r}; a range goes from the smaller number to the larger, "
            f"over at most {LONGEST_RANGE}"
        )
    return range(first, last + 1)


def _scalar(field: Field, value: Any) -> Any:
    words = {int: "a whole number", float: "a number", bool: "yes or no", str: "text"}
    wrong = InputError(f"{field.option} is {value!r}; it must be {words[field.type]}")
    if field.type is bool:
        truth = {"true": True, "yes": True, "false": False, "no": False}
        if isinstance(value, str) and value.lower() in truth:
            return truth[value.lower()]
        if not isinstance(value, bool):
            raise wrong
        return value
    if value is None or isinstance(value, bool | list | dict | tuple):
        raise wrong
    if field.type is str:
        return str(value)
    try:
        if field.type is int and isinstance(value, float) and value != int(value):
            raise wrong
        return field.type(value)
    except (TypeError, ValueError, OverflowError):
        raise wrong from None
