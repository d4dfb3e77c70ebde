"""``dspa``: the stages as commands, and the project around them.

Commands are built from the table of stages and from the parameters of the stage that was asked
for. What is heavy is imported where it is needed, so that help comes at once.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dspa import __version__
from dspa.cli_project import project_commands
from dspa.cli_session import (
    CLUSTER_HELP,
    Session,
    complete_files,
    complete_jobs,
    find_project,
    must,
    new_project,
    project_option,
)
from dspa.data.errors import InputError, OutOfSpace
from dspa.stages.registry import Entry, entries, find_stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dspa.project.params import Field
    from dspa.stages.stage import Stage

GROUPS = {
    "import": "Bring files into the project.",
    "pick": "Find particles in micrographs.",
    "simulate": "Make data with known truth.",
    "topaz": "Train topaz, a deep picker (needs pip install 'dspa[topaz]').",
}
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
OWN = ("project", "cluster", "seed", "dry_run", "inputs", "name", "note")
RERUN = "Run a job once more, with its inputs and parameters; the options given differ."
TIGHT = 1 << 30  # bytes of address space in which Python and its libraries hardly fit
COMPLETE = "_DSPA_COMPLETE"  # set by the shell that asks how a word may end
EPILOG = "Inputs are jobs (J3, its name, last; J3.half1 for one output of it) or files."


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line and exit: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    for name in THREADS:  # a task has one core; set before NumPy loads
        os.environ.setdefault(name, "1")
    args = list(sys.argv[1:] if argv is None else argv)
    sys.exit(run(args))


def run(args: list[str]) -> int:
    """Run a command line and return its exit status.

    Parameters
    ----------
    args : list of str
        Without the program's name.
    """
    _take_any_text()
    try:
        build(args).main(args or ["--help"], prog_name="dspa", standalone_mode=False)
    except click.exceptions.Exit as error:
        return int(error.exit_code)
    except click.ClickException as error:
        return _complain(error.format_message(), 2)
    except InputError as error:
        return _complain(str(error), 2)
    except (KeyboardInterrupt, click.Abort) as error:
        return _complain(str(error.__cause__ or error) or "stopped", 130)
    except BrokenPipeError:
        return 1
    except OutOfSpace as error:
        return _complain(str(error), 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}{_tight()}", 1)
    except Exception as error:
        return _complain(_unforeseen(error), 1)
    except BaseException as error:
        if type(error).__name__ == "Killed":
            return _complain(str(error), 143)
        raise
    return 0


def _take_any_text() -> None:
    """Have the terminal take every text: the name of a file may hold what no encoding has."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _unforeseen(error: Exception) -> str:
    """Say in a sentence what nobody thought of."""
    tight = _tight()
    if isinstance(error, MemoryError) and not tight:
        from dspa.dataflow.process import memory_sentence

        return memory_sentence(error)
    first = (str(error).splitlines() or [""])[0]
    notes = "; ".join(["", *getattr(error, "__notes__", [])])
    return f"{type(error).__name__}: {first}{notes}{tight}"


def _tight() -> str:
    """Say that the address space is small, where it is: modules then fail in ways of their own."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if not 0 <= limit <= TIGHT:
        return ""
    size = f"{limit / 2**30:.2f} GiB"
    return f"; the address space is limited to {size} (ulimit -v, or h_vmem): raise that"


def build(args: Sequence[str]) -> click.Group:
    """Make the commands: the one asked for in full, the others as lines of the help.

    Parameters
    ----------
    args : sequence of str
        The command line.
    """
    typed = os.environ.get("COMP_WORDS", "").split()[1:] if COMPLETE in os.environ else args
    words = [word for word in typed if not word.startswith("-")][:2]
    app = click.Group(
        "dspa",
        help="Distributed single-particle analysis: from micrographs to maps.",
        epilog=EPILOG,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.params.append(_version_option())
    groups = {name: click.Group(name, help=text) for name, text in GROUPS.items()}
    for entry in entries():
        first, _, second = entry.name.partition(" ")
        asked = words[: 2 if second else 1] == [first, second][: 2 if second else 1]
        name = second or first
        if not asked:
            command = click.Command(name, help=_sentence(entry.summary))
        elif entry.takes and _completes_an_argument():
            command = _word_command(name, "inputs")
        else:
            command = _stage_command(name, entry)
        if second:
            app.add_command(groups[first])
        (groups[first] if second else app).add_command(command)
    if words[:1] == ["rerun"] and _completes_an_argument():
        app.add_command(_word_command("rerun", "job"))
    elif words[:1] == ["rerun"]:
        app.add_command(_rerun_command(typed))
    else:
        app.add_command(click.Command("rerun", help=RERUN))
    for command in project_commands():
        app.add_command(command)
    # In the order of the work, not of the alphabet.
    app.list_commands = lambda context: list(app.commands)  # type: ignore[assignment, method-assign]
    return app


def _version_option() -> click.Option:
    def show(context: click.Context, _param: click.Parameter, value: bool) -> None:  # noqa: FBT001
        if value:
            click.echo(f"dspa {__version__}")
            context.exit()

    return click.Option(
        ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=show,
        help="Show the version.",
    )  # fmt: skip


def _completes_an_argument() -> bool:
    """Tell whether a shell asks how a word ends that is no option, nor the value of one."""
    if COMPLETE not in os.environ or not os.environ.get("COMP_CWORD", "").isdecimal():
        return False
    words, at = os.environ.get("COMP_WORDS", "").split(), int(os.environ["COMP_CWORD"])
    begun, before = [*words[at : at + 1], ""][0], words[at - 1 : at]
    return not begun.startswith("-") and not any(word.startswith("-") for word in before)


def _word_command(name: str, argument: str) -> click.Command:
    """Make a command as far as the end of a job's name needs it: at once, without its stage."""
    jobs = click.Argument([argument], nargs=-1, shell_complete=complete_jobs)
    return click.Command(name, params=[jobs, project_option()],
                         context_settings={"ignore_unknown_options": True})  # fmt: skip


def _stage_command(name: str, entry: Entry) -> click.Command:
    """Make the whole command of a stage from its inputs and parameters."""
    from dspa.project.params import fields_of

    stage = find_stage(entry.name)
    fields = fields_of(stage.params)
    params: list[click.Parameter] = []
    positional = [item for item in stage.inputs if item.positional]
    if positional:
        label = "|".join(item.kind.upper() for item in positional)
        params.append(click.Argument(["inputs"], nargs=-1, metavar=f"JOB|{label}",
                                     shell_complete=complete_jobs))  # fmt: skip
    params += [
        click.Argument([field.name], required=False, nargs=-1 if field.several else 1,
                       metavar=field.name.upper() + ("..." if field.several else ""),
                       shell_complete=complete_files)
        for field in fields if field.positional
    ]  # fmt: skip
    params += _input_options(stage, fields)
    params += [_option(field) for field in fields if not field.positional]

    def invoke(**values: Any) -> None:
        _run_stage(stage, fields, values)

    return click.Command(
        name, params=params + _common_options(), callback=invoke, help=_sentence(stage.summary),
        short_help=_sentence(entry.summary), epilog=EPILOG,
    )  # fmt: skip


def _input_options(stage: Stage, fields: Sequence[Field]) -> list[click.Parameter]:
    taken = {*OWN, *(field.name for field in fields)}
    options: list[click.Parameter] = []
    for item in stage.inputs:
        if item.name in taken:
            continue
        text = item.help or f"{item.kind}: a job or a file"
        where = " (instead of the first argument)" if item.positional else ""
        need = "" if item.optional or item.positional else " [required]"
        options.append(click.Option(
            [_flag(item.name), f"input_{item.name}"], multiple=True, help=text + where + need,
            metavar="JOB|FILE" + (",..." if item.many else ""), shell_complete=complete_jobs,
        ))  # fmt: skip
    return options


def _rerun_command(args: Sequence[str]) -> click.Command:
    """Make ``dspa rerun J7``, with the options of the stage of J7."""
    from dspa.project.lineage import find_job, job_of
    from dspa.project.params import fields_of

    folder = None
    for word, following in zip(args, [*args[1:], None], strict=True):
        if word.startswith("--project"):
            folder = word.partition("=")[2] or following
    words = [word for word in args if not word.startswith("-") and word != folder][1:]
    project = find_project(folder) if words else None
    jobs = [word for word in words if job_of(project, word)[0] is not None]
    if len(jobs) > 1 and jobs[0] != args[1]:
        raise InputError(f"which job is to run again? name it first: dspa rerun {jobs[-1]} ...")
    words = jobs or words
    params: list[click.Parameter] = [
        click.Argument(["job"], metavar="JOB", shell_complete=complete_jobs)
    ]
    stage: Stage | None = None
    fields: Sequence[Field] = ()
    if words:
        stage = find_stage(find_job(project, words[0]).read().stage)
        fields = fields_of(stage.params)
        params += _input_options(stage, fields)
        params += [_option(field, pair=True) for field in fields]

    def invoke(**values: Any) -> None:
        if stage is not None:
            _rerun(stage, fields, values)

    return click.Command(
        "rerun", params=params + _common_options(seed=None), callback=invoke, help=RERUN,
    )  # fmt: skip


def _rerun(stage: Stage, fields: Sequence[Field], values: Mapping[str, Any]) -> None:
    """Run a job's stage once more, with what differs."""
    from dspa.project import running
    from dspa.project.again import again
    from dspa.project.lineage import check_name, find_job
    from dspa.project.rehearsal import rehearse

    project = must(find_project(values["project"]))
    job = find_job(project, values["job"])
    before = job.read()
    params, named = _given(stage, fields, values)
    made = again(project, job, params=params, inputs=named, seed=values["seed"])
    differs = "; ".join(made.differences) or "nothing differs"
    click.echo(f"as {job.name} {stage.name}: {differs}", err=True)
    place = Path(before.folder) if before.folder and Path(before.folder).is_dir() else Path.cwd()
    if any(field.positional and field.name in params for field in fields):
        place = Path.cwd()  # a file that was named now
    seed = before.seed if values["seed"] is None else values["seed"]
    note = values["note"] or f"as {job.name}: {differs}"
    with Session(values["cluster"], seed, name=values["name"], note=note) as session:
        with contextlib.chdir(place):
            if values["dry_run"]:
                check_name(project, values["name"])
                _print_plan(stage, rehearse(stage, made.inputs, made.params), made.inputs)
                return
            new = running.start(project, stage, made.inputs, made.params, options=session.options)
            session.tell(running.closing_lines(new))


def _given(
    stage: Stage, fields: Sequence[Field], values: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters and the inputs that were given by option."""
    params = {f.name: values[f.name] for f in fields if values.get(f.name) not in (None, ())}
    named = {
        item.name: values[f"input_{item.name}"]
        for item in stage.inputs
        if values.get(f"input_{item.name}")
    }
    return params, named


def _option(field: Field, *, pair: bool = False) -> click.Option:
    """Make the option of one parameter; values are converted with the rest of the parameters."""
    from dspa.stages.stage import range_text

    data = field.metadata
    limits = range_text(data).removeprefix("of ") if "minimum" in data else ""
    notes = [limits or data.get("unit", "")]
    if field.required:
        notes.append("required")
    elif field.default not in (None, "", ()):
        notes.append(f"default {_shown(field)}")
    note = "; ".join(text for text in notes if text)
    text = data.get("help", "") + (f" [{note}]" if note else "")
    flag = _flag(field.name)
    if field.type is bool and field.length is None:
        both = f"{flag}/--no-{flag[2:]}" if field.default or pair else flag
        return click.Option([both, field.name], is_flag=True, default=None, help=text)
    choices = data.get("choices")
    word = {int: "N", float: data.get("unit") or "X", str: "TEXT"}[field.type]
    metavar = "|".join(choices) if choices else word.upper()
    if field.length == 0:
        metavar += ",..."
    return click.Option(
        [flag, field.name], metavar=" ".join([metavar] * (field.length or 1)), help=text,
        nargs=field.length or 1, type=str, default=None,
        # A text may be a file's name: which do is for the command to say, not for the shell.
        shell_complete=complete_files if field.type is str and not choices else
        lambda _context, _param, begun: [
            word for word in choices or () if word.startswith(begun)
        ],
    )  # fmt: skip


def _common_options(seed: int | None = 0) -> list[click.Parameter]:
    told = "All randomness follows from it " + ("[default 0]" if seed == 0 else "[default: as it]")
    return [
        project_option(),
        click.Option(["--cluster"], default="local", metavar="WHERE", help=CLUSTER_HELP),
        click.Option(["--seed"], type=click.IntRange(0, 2**32 - 1), default=seed, metavar="N",
                     help=told),
        click.Option(["--name"], default="", metavar="NAME",
                     help="Name of the job, which stands for its number"),
        click.Option(["--note"], default="", metavar="TEXT", help="What to say of the job"),
        click.Option(["--dry-run"], is_flag=True, help="Say what would run, and how large it is"),
    ]  # fmt: skip


def _run_stage(stage: Stage, fields: Sequence[Field], values: Mapping[str, Any]) -> None:
    from dspa.project import running
    from dspa.project.lineage import check_name, check_words, resolve
    from dspa.project.params import from_plain
    from dspa.project.rehearsal import rehearse

    project = find_project(values["project"], must_exist=False)
    given, named = _given(stage, fields, values)
    check_words(project, stage, given)
    params = from_plain(stage.params, given)
    inputs = resolve(project, stage, values.get("inputs", ()), named)
    told = {"name": values["name"], "note": values["note"]}
    with Session(values["cluster"], values["seed"], **told) as session:
        if values["dry_run"]:
            check_name(project, values["name"])
            _print_plan(stage, rehearse(stage, inputs, params), inputs)
            return
        project = project or new_project(values["project"])
        job = running.start(project, stage, inputs, params, options=session.options)
        session.tell(running.closing_lines(job))


def _print_plan(stage: Stage, figures: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    from dspa.project.figures import figure, words

    click.echo(f"{stage.name} would run; nothing was started")
    for name, item in inputs.items():
        for each in item if isinstance(item, tuple) else (item,):
            if each is not None:
                click.echo(f"  {name:<20} {each.path}")
    for name, value in figures.items():
        click.echo(f"  {words(name):<20} {figure(name, value)}")


def _complain(sentence: str, status: int) -> int:
    click.echo(f"dspa: {' '.join(sentence.split())}", err=True)
    return status


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _shown(field: Field) -> str:
    value = field.default
    if isinstance(value, tuple):
        return " ".join(f"{item}" for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
