"""The command line: parse, call the API, print, exit with the contracted code.

Commands are imported when they are called, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlxpipe._version import __version__
from mlxpipe.commands import command as find
from mlxpipe.errors import ExitCode, MlxpipeError

UNEXPECTED = """\
error[unexpected]: {kind}: {error}
  = help: this is a bug of mlxpipe; please report it with what the same command says with --debug\
"""

SPEC_HELP = "a spec (YAML), or a checkpoint directory"

SHELLS = ("bash", "zsh", "fish", "tcsh")


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand.

    Attributes:
        name: What the user types; `mlxpipe.commands` has a function for it.
        help: One line.
        epilog: Examples.
        arguments: Adds the arguments to a parser.
    """

    name: str
    help: str
    epilog: str
    arguments: Callable[[argparse.ArgumentParser], None]


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Has room for the indentation of the longest command, which argparse forgets."""

    def add_argument(self, action: argparse.Action) -> None:
        """Reckon with an argument's width."""
        super().add_argument(action)
        if action.nargs == argparse.PARSER:
            self._action_max_length += self._indent_increment


def _spec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", metavar="SPEC", help=SPEC_HELP)
    _composing(parser)


def _composing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("composition")
    group.add_argument(
        "--set",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        help="set a value of the spec, such as model.dtype=float32; repeatable",
    )
    group.add_argument(
        "--only",
        metavar="CHOICE",
        action="append",
        default=[],
        help="of a matrix: a label, a glob of labels, or AXIS=VALUE; repeatable",
    )


def _show(parser: argparse.ArgumentParser) -> None:
    _spec(parser)
    parser.add_argument("--origins", action="store_true", help="say where each value came from")


def _run(parser: argparse.ArgumentParser) -> None:
    _spec(parser)
    parser.add_argument(
        "--locked", action="store_true", help="refuse what is not as the spec's lock says"
    )
    parser.add_argument(
        "--force", action="store_true", help="do every task again, reusing and resuming nothing"
    )
    parser.add_argument(
        "--keep-going", action="store_true", help="of a matrix: go on after one that failed"
    )
    parser.add_argument(
        "--shard", metavar="I/N", help="of a matrix: only part I of N, for parallel jobs"
    )
    _digesting(parser)


def _lock(parser: argparse.ArgumentParser) -> None:
    _spec(parser)
    parser.add_argument(
        "--check", action="store_true", help="compare with the lock instead of writing it"
    )
    parser.add_argument(
        "--lock-file", metavar="FILE", help="default: SPEC's name with .lock.yaml for its suffix"
    )
    _digesting(parser)


def _digesting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-versions",
        action="store_true",
        help="accept other versions of mlxpipe, MLX, mlx-lm and the tokenizer's packages",
    )
    parser.add_argument(
        "--no-cache",
        action="store_false",
        dest="cache",
        help="read every byte of the weights, even of files that were hashed before and have not "
        "been written to since; a second per gigabyte, or what the disk needs",
    )


def _plan(parser: argparse.ArgumentParser) -> None:
    _spec(parser)
    parser.add_argument("--all", action="store_true", dest="every", help="list every module")


def _explain(parser: argparse.ArgumentParser) -> None:
    _spec(parser)
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        help="module paths, tensors or override keys; none: whatever is wrong or notable",
    )


def _export(parser: argparse.ArgumentParser) -> None:
    _spec(parser)
    parser.add_argument(
        "-o", "--output", metavar="DIR", required=True, help="the directory, or the Ollama store"
    )
    parser.add_argument(
        "--to", choices=("mlx", "ollama"), default="mlx", help="what to write (default: mlx)"
    )
    parser.add_argument("--name", metavar="MODEL[:TAG]", help="the entry's name, for ollama")
    parser.add_argument(
        "--unsupported",
        choices=("dense", "keep", "error"),
        default="dense",
        help="modules that the format cannot hold packed (default: dense, in float32)",
    )
    parser.add_argument(
        "--dtype",
        choices=("exact", "checkpoint"),
        default="exact",
        help="what conversions compute: no bit lost, or the checkpoint's 16 bits",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("specs", metavar="SPEC", nargs="+", help=SPEC_HELP + "; several are fine")
    _composing(parser)


def _diff(parser: argparse.ArgumentParser) -> None:
    what = "a spec, a checkpoint or run directory, a lock, or a plan's JSON"
    parser.add_argument("one", metavar="A", help=what)
    parser.add_argument("other", metavar="B", help="the same")
    parser.add_argument("--exit-code", action="store_true", help="end with 1 if they differ")


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="a run directory, or the summary of a matrix"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="report.html", help="default: report.html"
    )
    parser.add_argument("--title", help="default: the name of the first run's spec")


def _init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="DIR|MODEL", help="a checkpoint directory, hub:ORG/NAME or ollama:NAME"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write here instead of printing")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")


def _examples(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", metavar="list|copy", nargs="?", choices=("list", "copy"), default="list"
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="of copy: which; see the list")
    parser.add_argument(
        "directory", metavar="DIR", nargs="?", default=".", help="of copy: where (default: here)"
    )


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def _nothing(parser: argparse.ArgumentParser) -> None:
    pass


COMMANDS = (
    Command(
        "run",
        "run a spec's tasks and leave a record; finished tasks are reused, interrupted ones resume",
        "  mlxpipe run spec.yaml\n  mlxpipe run spec.yaml --locked\n"
        "  mlxpipe run spec.yaml --set run.seed=7\n"
        "  mlxpipe run spec.yaml --format json | jq .tasks",
        _run,
    ),
    Command(
        "plan",
        "decide every tensor from headers alone, like a compiler's dry run",
        "  mlxpipe plan spec.yaml\n  mlxpipe plan path/to/checkpoint --all",
        _plan,
    ),
    Command(
        "explain",
        "say why a module is what it is: claims, their origins and fates, the arithmetic",
        "  mlxpipe explain spec.yaml\n  mlxpipe explain spec.yaml model.layers.0.mlp.gate",
        _explain,
    ),
    Command(
        "check",
        "check specs and their checkpoints without MLX; for CI and pre-commit",
        "  mlxpipe check specs/*.yaml",
        _check,
    ),
    Command(
        "lock",
        "pin what a spec means and reads: every file, the tokenizer, the table, the versions",
        "  mlxpipe lock spec.yaml           # writes spec.lock.yaml; commit it\n"
        "  mlxpipe lock spec.yaml --check   # exit code 3 and what changed, if anything did",
        _lock,
    ),
    Command(
        "export",
        "write the model in another format, whole or not at all, without loading it",
        "  mlxpipe export spec.yaml -o out/model\n"
        "  mlxpipe export path/to/checkpoint -o ~/.ollama/models --to ollama --name qwen3:nvfp4",
        _export,
    ),
    Command(
        "show",
        "print the resolved spec",
        "  mlxpipe show spec.yaml\n  mlxpipe show spec.yaml --origins",
        _show,
    ),
    Command(
        "diff",
        "say what differs between two specs, plans, locks or runs, module by module",
        "  mlxpipe diff before.yaml after.yaml\n  mlxpipe diff runs/spec/ONE runs/spec/OTHER",
        _diff,
    ),
    Command(
        "report",
        "write a page about runs: results, size against quality, schemes over depth, texts",
        "  mlxpipe report runs/spec/20260101-120000-ab12\n"
        "  mlxpipe report runs/spec/*/ -o report.html",
        _report,
    ),
    Command(
        "init",
        "write a spec for a checkpoint",
        "  mlxpipe init path/to/checkpoint -o spec.yaml\n"
        "  mlxpipe init ollama:qwen3.6:35b -o qwen.yaml",
        _init,
    ),
    Command("schema", "print the spec's JSON Schema", "  mlxpipe schema > schema.json", _nothing),
    Command(
        "doctor",
        "say what this machine computes with, what is slow and how to mend it",
        "  mlxpipe doctor",
        _nothing,
    ),
    Command(
        "examples",
        "list the examples and pipelines that come with mlxpipe, or copy one",
        "  mlxpipe examples\n  mlxpipe examples copy quickstart\n"
        "  mlxpipe examples copy questions path/to/directory",
        _examples,
    ),
    Command(
        "completion",
        "print a script that completes commands and options in a shell",
        "  mlxpipe completion bash > ~/.local/share/bash-completion/completions/mlxpipe\n"
        "  mlxpipe completion zsh > ~/.zfunc/_mlxpipe   # a directory of $fpath",
        _completion,
    ),
)

EPILOG = """\
start here:
  mlxpipe init path/to/checkpoint -o spec.yaml
  mlxpipe plan spec.yaml
  mlxpipe run spec.yaml

exit codes: 0 fine, 1 an expectation failed, 2 usage or spec, 3 source or lock, 4 plan,
            5 execution, 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="mlxpipe",
        description="Run quantised language models on MLX from a YAML spec that says whom to "
        "believe, and know for every tensor what was decided and why.",
        epilog=EPILOG,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mlxpipe {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    common = _common()
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name,
            help=command.help,
            description=command.help[0].upper() + command.help[1:] + ".",
            epilog=f"examples:\n{command.epilog}",
            formatter_class=_HelpFormatter,
            parents=[common],
        )
        command.arguments(sub)
    return parser


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("output")
    group.add_argument(
        "--format",
        choices=("human", "json"),
        default="human",
        help="json: one object on stdout, everything for people on stderr",
    )
    group.add_argument("-q", "--quiet", action="store_true", help="results and errors only")
    group.add_argument("--no-progress", action="store_true", help="no progress bars")
    group.add_argument("--debug", action="store_true", help="a traceback with errors")
    return common


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = build_parser()
    # The parser goes along, for completion scripts are made of it.
    options = parser.parse_args(arguments, argparse.Namespace(parser=parser))
    try:
        code = int(find(options.command)(options))
        # Here, where a reader that went away can still be told from an error.
        sys.stdout.flush()
        return code
    except MlxpipeError as error:
        if options.debug:
            raise
        from mlxpipe.report.github import annotate

        print(error, file=sys.stderr)
        annotate(error.diagnostics)
        return int(error.exit_code)
    except BrokenPipeError:
        # The reader went away (`| head`): end as other tools do, without a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if options.debug:
            raise
        print(UNEXPECTED.format(kind=type(error).__name__, error=error), file=sys.stderr)
        return int(ExitCode.EXECUTION)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return int(ExitCode.INTERRUPTED)
