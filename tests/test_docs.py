"""The documentation holds together: links lead somewhere, pages are listed, commands exist."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
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
PROJECT_COMMANDS = {
    "init",
    "status",
    "show",
    "resume",
    "run",
    "demo",
    "worker",
    "app",
    "import",
    "kill",
    "delete",
    "clear",
    "name",
    "note",
    "relink",
    "rerun",
    "live",
}


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


ROOMS = "app data dataflow device geometry io kernels ops project stages".split()
EXAMPLES = re.compile("NAME|dose")  # of the recipes
DOTTED = re.compile(rf"`(?:dspa\.)?((?:{'|'.join(ROOMS)})(?:\.\w+)+)")
FULL = re.compile(r"(?<![\w./])dspa((?:\.[a-z_0-9]+)+)(?![\w/])", re.IGNORECASE)
PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|sh|yaml|toml))`")
# dspa.NAME: found when it is used
FUNCTIONS = {"class2d", "select2d", "pick_blob", "plots", "result", "import_particles"}
SITE = [page for page in PAGES if page.is_relative_to(ROOT / "docs")]


def resolves(dotted: str) -> bool:
    """Tell whether a name under dspa is a module, or something in one."""
    words = dotted.split(".")
    if words[0] in FUNCTIONS:
        return True
    for count in range(len(words), 0, -1):
        name = ".".join(["dspa", *words[:count]])
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is not None:
            thing = importlib.import_module(name)
            for word in words[count:]:
                thing = getattr(thing, word, None)
            return thing is not None
    return False


@pytest.mark.parametrize("page", SITE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_of_the_code_resolve(page: Path) -> None:
    text = page.read_text()
    names = {*DOTTED.findall(text), *(name.lstrip(".") for name in FULL.findall(text))}
    wrong = sorted(name for name in names if not resolves(name))
    assert not wrong, f"{page.name} names {wrong}, which are not in dspa"
    for path in PATH.findall(text):
        places = (ROOT / path, ROOT / "dspa" / path, page.parent / path)
        named = path.split("/")[0] in {"tests", "benchmarks", "docs", "deploy", "dspa", *ROOMS}
        there = any(place.exists() for place in places) or EXAMPLES.search(path)
        assert not named or there, f"{page.name} names {path}"


@pytest.mark.parametrize("page", SITE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_are_short_enough_to_read(page: Path) -> None:
    words = len(page.read_text().split())
    assert words <= 1500 or page.parent.name == "records", f"{page.name} has {words} words"


def test_pages_of_a_guide_hold_no_riddles() -> None:
    riddle = re.compile(r"\b(nobody|whoever|so many|is told)\b", re.IGNORECASE)
    found = [(page.name, riddle.search(page.read_text())) for page in SITE]
    assert not [(name, match[0]) for name, match in found if match]


def test_pictures_are_small() -> None:
    sizes = {path: path.stat().st_size for path in ROOT.glob("docs/**/*.*g") if path.is_file()}
    assert sizes and max(sizes.values()) < 300_000 and sum(sizes.values()) < 3_000_000


def test_the_site_takes_every_page_and_leads_links_within_it(tmp_path: Path) -> None:
    """The sources of the site, without Sphinx: what is linked is there, formulas are left alone."""
    pytest.importorskip("sphinx")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import build;"
        "print(build.linked(build.ROOT / 'CONTRIBUTING.md', 'project/contributing.md'))"
    )
    run = [sys.executable, "-c", code, str(ROOT / "docs/site")]
    text = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert "(../method/code/rooms.md)" in text and "](docs/" not in text
