"""The documentation holds together: links lead somewhere, pages are listed, commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dspa.stages.registry import ENTRIES

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md"),
     *ROOT.glob("benchmarks/*.md")]
)  # fmt: skip
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"^\$? ?dspa ([a-z0-9-]+(?: [a-z]+)?)", re.MULTILINE)
PROJECT_COMMANDS = {"init", "status", "show", "resume", "run", "demo", "worker", "app", "import"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_in_the_index() -> None:
    docs = ROOT / "docs"
    listed = set(LINK.findall((docs / "index.md").read_text()))
    pages = {path.relative_to(docs).as_posix() for path in docs.glob("**/*.md")} - {"index.md"}
    assert pages <= listed, f"docs/index.md does not list {sorted(pages - listed)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_exist(page: Path) -> None:
    known = {entry.name for entry in ENTRIES}
    for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.DOTALL):
        for words in COMMAND.findall(block):
            first = words.split()[0]
            exists = words in known or first in known or first in PROJECT_COMMANDS
            assert exists, f"{page.name}: there is no `dspa {words}`"
