"""Help, versions and shell completion: complete, and without loading a model library."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from mmrr import __version__ as mmrr_version
from mmrr.cli.main import PANELS, app
from tests.console import mmrr

ROOT = Path(__file__).parents[2]
GROUP = typer.main.get_command(app)
COMMANDS = [[name] for name in GROUP.commands] + [["eval", name] for name in GROUP.commands["eval"].commands]
HEAVY = {"torch", "transformers", "faiss", "numpy", "PIL", "huggingface_hub", "pyarrow"}
#: Runs the command line and prints on the last line of stderr which modules are loaded.
LOADED = """
import atexit, sys
sys.argv[0] = "mmrr"
atexit.register(lambda: print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr))
from mmrr.cli.main import main
main()
"""


def loaded_by(*args: str, **variables: str) -> tuple[str, set[str]]:
    """Stdout of a command line in its own process, and the packages it loads."""
    ran = subprocess.run(
        [sys.executable, "-c", LOADED, *args],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **variables},
    )
    return ran.stdout, set(ran.stderr.splitlines()[-1].split())


def test_commands_are_in_panels_in_order() -> None:
    text = mmrr("--help").stdout
    words = [name for panel, commands in PANELS.items() for name in (panel, *commands)]
    places = [re.search(rf"^[╭│]─? {name} ", text, flags=re.MULTILINE) for name in words]
    assert all(places), words
    starts = [place.start() for place in places if place]
    assert starts == sorted(starts)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_and_every_option_has_a_help_text(command: list[str]) -> None:
    assert "Usage: mmrr " + " ".join(command) in mmrr(*command, "--help").stdout
    found = GROUP.commands[command[0]]
    for name in command[1:]:
        found = found.commands[name]
    assert found.help
    first_line = found.help.splitlines()[0]
    assert len(first_line) <= 60
    assert first_line.endswith(".")
    assert all(parameter.help for parameter in found.params), [parameter.name for parameter in found.params]


@pytest.mark.parametrize("command", PANELS["Everyday"])
def test_everyday_commands_show_an_example(command: str) -> None:
    assert f"Example: `mmrr {command} " in (GROUP.commands[command].help or "")


@pytest.mark.parametrize("command", [[], ["rerank"], ["eval", "mmdocir"], ["train"]], ids=" ".join)
def test_help_loads_no_model_library(command: list[str]) -> None:
    text, loaded = loaded_by(*command, "--help")
    assert "Usage: " in text
    assert not loaded & HEAVY


def test_versions_are_printed_without_loading_the_packages() -> None:
    text, loaded = loaded_by("--version")
    versions = dict(line.split(" ", 1) for line in text.splitlines())
    assert versions == {
        "mmrr": mmrr_version,
        "Python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "transformers": importlib.metadata.version("transformers"),
    }
    assert not loaded & HEAVY


def complete(line: str) -> set[str]:
    """What bash would offer after the last word of ``line``, which may be empty."""
    words = line.split(" ")
    text, loaded = loaded_by(_MMRR_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    assert not loaded & HEAVY
    return set(text.splitlines())


@pytest.mark.parametrize(
    ("line", "offered", "hidden"),
    [
        ("mmrr re", {"rerank", "render", "retrieve"}, {"index"}),
        ("mmrr ", {"index", "eval", "fuse"}, {"blend"}),
        ("mmrr rerank --first-stage ", {"words", "meaning", "sight", "hybrid"}, set()),
        ("mmrr rerank --fu", {"--fuse"}, {"--blend"}),
    ],
)
def test_the_shell_completes_commands_options_and_choices(line: str, offered: set[str], hidden: set[str]) -> None:
    found = complete(line)
    assert offered <= found
    assert not hidden & found


def test_the_option_reference_is_current(tmp_path: Path) -> None:
    """docs/cli.md is current; python -m typer mmrr.cli.main utils docs --name mmrr --output docs/cli.md."""
    from typer.cli import app as typer_cli

    result = CliRunner().invoke(
        typer_cli, ["mmrr.cli.main", "utils", "docs", "--name", "mmrr", "--output", str(tmp_path / "cli.md")]
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "cli.md").read_text("utf-8") == (ROOT / "docs" / "cli.md").read_text("utf-8")
