"""The table of other programs' parameters names options that there are."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from dspa.data.errors import InputError
from dspa.project.params import fields_of
from dspa.stages.registry import entries, find_stage
from dspa.stages.stage import check

PAGE = (Path(__file__).parents[1] / "docs/guide/parameters.md").read_text()
NAMES = sorted((entry.name for entry in entries()), key=len, reverse=True)
COMMON = {"--cluster", "--seed", "--project", "--dry-run"}


def named():
    """Yield every stage and option of the page; options without a stage follow the one before."""
    for line in PAGE.splitlines():
        cells = line.split("|")
        stage = ""
        for text in re.findall(r"`([^`]+)`", cells[3]) if len(cells) > 4 else ():
            stage = next((name for name in NAMES if text.startswith(name + " ")), stage)
            for option in re.findall(r"--[a-z0-9-]+", text):
                if option not in COMMON:
                    yield stage, option


def test_the_page_is_read():
    assert len(set(named())) > 50


@pytest.mark.parametrize("stage", sorted({stage for stage, _ in named()}))
def test_every_option_of_the_page_is_one(stage):
    known = {field.option for field in fields_of(find_stage(stage).params)}
    assert {option for name, option in named() if name == stage} <= known


@pytest.mark.parametrize("stage", ["class2d", "abinitio", "refine"])
def test_what_users_tune_is_on_the_page(stage):
    listed = {option for name, option in named() if name == stage}
    assert len(listed) >= 0.6 * len(fields_of(find_stage(stage).params))


@pytest.mark.parametrize("stage", NAMES)
def test_every_number_has_a_range(stage):
    for field in fields_of(find_stage(stage).params):
        if field.type in (int, float):
            low, high = field.metadata["minimum"], field.metadata["maximum"]
            assert low is not None and high is not None, field.option
            assert low < high, field.option
            for value in (10**20, 1e308, -(10**20)):
                with pytest.raises(InputError, match=f"{field.option} is .* use a value from"):
                    check_value(field, field.type(value))


def check_value(field, value):
    """Check one value as that of the parameter alone."""
    alone = dataclasses.make_dataclass(
        "Alone", [(field.name, object, dataclasses.field(metadata=field.metadata))]
    )
    check(alone((value,)))
