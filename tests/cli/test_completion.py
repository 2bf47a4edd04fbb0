"""Scripts that complete mlxpipe's command line in a shell."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_types import Command

from mlxpipe.cli import COMMANDS, SHELLS

BASH = shutil.which("bash")

#: Completes the words after it as bash would, and prints what it offers.
COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function=$(complete -p mlxpipe | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function" mlxpipe "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(cli: Command, tmp_path: Path) -> Path:
    pytest.importorskip("shtab")
    path = tmp_path / "mlxpipe.bash"
    path.write_text(cli("completion", "bash").out, encoding="utf-8")
    return path


def offered(script: Path, *words: str) -> set[str]:
    """What bash offers for the last word."""
    assert BASH is not None
    command = [BASH, "--norc", "-c", COMPLETE, "bash", str(script), "mlxpipe", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=script.parent)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.skipif(BASH is None, reason="no bash")
def test_bash_completes_commands_and_options(script: Path) -> None:
    subprocess.run([str(BASH), "-n", str(script)], check=True)

    assert offered(script, "") >= {command.name for command in COMMANDS}
    assert offered(script, "exp") == {"explain", "export"}
    assert offered(script, "run", "--lo") == {"--locked"}
    assert offered(script, "export", "--to", "") == {"mlx", "ollama"}
    assert offered(script, "completion", "z") == {"zsh"}


@pytest.mark.skipif(BASH is None, reason="no bash")
def test_bash_completes_files_where_a_spec_is_wanted(script: Path) -> None:
    (script.parent / "my-spec.yaml").write_text("", encoding="utf-8")

    assert "my-spec.yaml" in offered(script, "plan", "my-")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script_that_names_every_command(cli: Command, shell: str) -> None:
    pytest.importorskip("shtab")

    result = cli("completion", shell)

    assert (result.code, result.err) == (0, "")
    assert [each.name for each in COMMANDS if each.name not in result.out] == []


def test_without_its_library_the_error_names_the_extra(
    cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)

    result = cli("completion", "bash")

    assert (result.code, result.out) == (2, "")
    assert "error[missing-extra]" in result.err
    assert "pip install 'mlxpipe[completion]'" in result.err


def test_an_unknown_shell_is_refused_with_the_known_ones(cli: Command) -> None:
    result = cli("completion", "csh")

    assert result.code == 2
    assert "'zsh'" in result.err
