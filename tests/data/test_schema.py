"""The schema: what it accepts, and that it names the first departure."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.data import schema
from dspa.data.errors import InputError


def _particles(**more: object) -> object:
    return schema.make("particles", {"uid": [1, 2], "optics": [0, 0], "pixel_size": [1.5], **more})


def test_dims_and_dtypes_come_from_the_schema() -> None:
    table = _particles(pose=np.tile(np.eye(3), (2, 1, 1)), defocus_u=[1, 2])
    assert table["pose"].dims == ("particle", "i", "j")
    assert table["defocus_u"].dtype == np.float64
    assert table["uid"].dtype == np.uint64
    assert table.attrs == {"kind": "particles", "layout_version": schema.LAYOUT_VERSION}


def test_every_variable_of_every_schema_has_known_dims_and_a_meaning() -> None:
    for kind, each in schema.SCHEMAS.items():
        for name, variable in each.variables.items():
            known = {*each.tables, *schema.FIXED_DIMS, *schema.FREE_DIMS, *"zyx"}
            assert set(variable.dims) <= known, (kind, name)
            assert variable.meaning
            assert variable.dtype == "str" or np.dtype(variable.dtype)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"defocus": [1, 2]}, "unknown variable 'defocus'"),
        ({"defocus_u": [1, 2, 3]}, "different lengths"),
        ({"shift": np.zeros((2, 3))}, "dim xy has 3"),
        ({"optics": [0, 1]}, "optics points to entry 1"),
        ({"image_stack": [0, 0]}, "image_stack points to entry 0"),
        ({"extra:a": ("galaxy", [1, 2])}, "first is no table"),
        ({"extra:" + "a" * 300: ("particle", [1, 2])}, "too long"),
        ({"extra:a": ("particle", np.array([1j, 2j]))}, "use numbers or text"),
    ],
)
def test_a_departure_is_named(more: dict[str, object], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        _particles(**more)


def test_a_newer_layout_and_another_kind_are_refused() -> None:
    table = _particles()
    with pytest.raises(InputError, match="layout version 99"):
        schema.validate(table.assign_attrs(layout_version=99))
    with pytest.raises(InputError, match="kind is 'movie'"):
        schema.validate(table.assign_attrs(kind="movie"))
    with pytest.raises(InputError, match="uid"):
        schema.validate(table.drop_vars("uid"))
