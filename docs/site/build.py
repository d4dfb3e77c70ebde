"""Build the site: the pages of docs/, the commands, the pages of the project, the API.

    python docs/site/build.py [OUT]

The sources are put together in build/docs, so that nothing made here lies among what is written by
hand. Warnings of Sphinx are errors; a link or an anchor that leads nowhere is one.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from sphinx.cmd.build import build_main

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SOURCE = ROOT / "build" / "docs" / "source"
# Pages that lie beside what they describe, by their place in the site.
PROJECT = {
    "project/contributing.md": "CONTRIBUTING.md",
    "project/changelog.md": "CHANGELOG.md",
    "project/deploy.md": "deploy/README.md",
    "project/benchmarks.md": "benchmarks/README.md",
}
# What comes first in a part of the menu; the other pages of the folder follow by name.
MENU = {
    "Guide": (
        "guide",
        "start exposures live picks topaz extraction classes maps ctf-refine focus app "
        "command-line commands",
    ),
    "Method": (
        "method",
        "conventions ctf ctf-refine picking template-picking likelihood poses sums class2d",
    ),
    "Code": ("method/code", "rooms architecture data-model reductions kernels"),
    "Records": ("records", "about ctf aberrations picking"),
    "Project": ("project", "contributing"),
    "API": ("api", ""),
}
SHARED = ("--project", "--cluster", "--seed", "--name", "--note", "--dry-run", "--help")
LINK = re.compile(r"(\[[^\]\n]*\])\(([^)#\s:]+)(#[^)\s]*)?\)")


def main(out: str) -> int:
    """Put the sources together and run Sphinx; returns its exit status."""
    made = {name: linked(ROOT / path, name) for name, path in PROJECT.items()}
    for path in DOCS.rglob("*.md"):
        name = path.relative_to(DOCS).as_posix()
        made[name] = linked(path, name)
    made["guide/commands.md"] = commands()
    packages = modules()
    made |= {f"api/{name}.rst": api(name, found) for name, found in packages.items()}
    made["index.md"] += menu(made)
    write(made)
    jobs = ["-j", "auto"]
    return build_main([
        "-b", "html", "-a", "-W", "--keep-going", "-q", *jobs, "-c", str(DOCS / "site"),
        "-d", str(SOURCE.parent / "doctrees"), str(SOURCE), out,
    ])  # fmt: skip


def write(made: dict[str, str]) -> None:
    """Write what changed, copy the pictures, remove what is there no more."""
    pictures = {
        path.relative_to(DOCS).as_posix(): path
        for path in DOCS.rglob("*")
        if path.suffix in {".png", ".jpg", ".svg"}
    }
    for path in SOURCE.rglob("*") if SOURCE.exists() else ():
        if path.is_file() and path.relative_to(SOURCE).as_posix() not in made | pictures:
            path.unlink()
    for name, text in made.items():
        target = SOURCE / name
        if not target.exists() or target.read_text() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    for name, picture in pictures.items():
        (SOURCE / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(picture, SOURCE / name)


def linked(path: Path, name: str) -> str:
    """Return a page whose links lead to where a page is in the site.

    A file that is not a page of the site is named, not linked.
    """
    places = {ROOT / project: place for place, project in PROJECT.items()}

    def place(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(path.parent / match[2]))
        if target in places:
            found = places[target]
        elif target.is_relative_to(DOCS) or not target.exists():
            found = os.path.relpath(target, DOCS)
        else:
            return f"`{target.relative_to(ROOT).as_posix()}`"
        return f"{match[1]}({os.path.relpath(found, Path(name).parent)}{match[3] or ''})"

    return LINK.sub(place, path.read_text())


def menu(names: Iterable[str]) -> str:
    """Return the tables of contents that make the menu of the site."""
    text = ""
    for title, (folder, first) in MENU.items():
        pages = sorted(
            str(Path(name).with_suffix("")) for name in names if str(Path(name).parent) == folder
        )
        order = [f"{folder}/{name}" for name in first.split()]
        order = [page for page in order if page in pages]
        order += [page for page in pages if page not in order]
        if order:
            head = f"\n\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n"
            text += head + "\n".join(order) + "\n```\n"
    return text


def modules() -> dict[str, list[str]]:
    """List the packages of the code and the modules in each, by dotted name."""
    found: dict[str, list[str]] = {}
    for folder in (ROOT / "dspa", ROOT / "kernels"):
        for path in sorted(folder.rglob("*.py")):
            if not path.stem.startswith("_"):
                package = ".".join(path.parent.relative_to(ROOT).parts)
                if folder.name == "kernels":  # installed as a package of dspa
                    package = f"dspa.{package}"
                found.setdefault(package, []).append(f"{package}.{path.stem}")
    return found


def api(package: str, found: list[str]) -> str:
    """Return the page of a package: one section for each of its modules."""
    lines = [package, "=" * len(package), ""]
    if importlib.util.find_spec(package) is not None:
        lines += [f".. automodule:: {package}", "   :no-members:", ""]
    for module in found:
        lines += [module, "-" * len(module), "", f".. automodule:: {module}", ""]
    return "\n".join(lines)


def commands() -> str:
    """Return the page of commands: every one with its options, as its help has them."""
    from dspa.cli import build
    from dspa.stages.registry import entries

    lines = [(DOCS / "guide" / "commands.md").read_text()]
    for entry in entries():
        command: Any = build(entry.name.split())
        for word in entry.name.split():
            command = command.commands[word]
        context = click.Context(command)
        usage = " ".join(command.collect_usage_pieces(context))
        records = [option.get_help_record(context) for option in command.params]
        lines += [f"## dspa {entry.name}", "", command.help, ""]
        lines += ["```", f"dspa {entry.name} {usage}", "```", ""]
        lines += ["| option | meaning |", "|---|---|"]
        lines += [row(*record) for record in records if record and not record[0].startswith(SHARED)]
        lines += [""]
    return "\n".join(lines)


def row(option: str, text: str) -> str:
    """Return a row of a table of options."""
    option, text = (cell.replace("|", "\\|").replace("<", "&lt;") for cell in (option, text))
    return f"| `{option}` | {text} |"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:] or [str(ROOT / "build" / "docs" / "html")]))
