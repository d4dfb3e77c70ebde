"""The table of other programs' parameters names options that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dspa.project.params import fields_of
from dspa.stages.registry import entries, find_stage

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
