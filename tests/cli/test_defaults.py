"""Defaults from files: which value wins, where ``mmrr config`` says it is from, and what is wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrr.cli import defaults
from tests.console import mmrr, refused


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, no user's file and no variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MMRR_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))  # Linux
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # macOS
    for key in defaults.KEYS:
        monkeypatch.delenv("MMRR_" + key.upper().replace("-", "_"), raising=False)
    return tmp_path


def write_user(text: str) -> Path:
    path = defaults.user_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def shown(*args: object) -> dict[str, tuple[object, str, str]]:
    """key -> (value, source, detail) of ``mmrr config``."""
    rows = json.loads(mmrr("config", *args, "--json").stdout)["defaults"]
    return {row["key"]: (row["value"], row["source"], row["detail"]) for row in rows}


def test_built_in_defaults_without_files() -> None:
    found = shown()
    assert list(found) == list(defaults.KEYS)
    assert found["work"] == ("mmrr-work", "built-in", "")
    assert found["scorer"] == ("minireranker", "built-in", "")
    assert {source for _, source, _ in found.values()} == {"built-in"}


def test_a_flag_wins_over_the_environment_over_the_project_over_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    user = write_user('[mmrr]\ndevice = "user"\nwork = "user-work"\n')
    assert shown()["device"] == ("user", "file", str(user))
    Path("mmrr.toml").write_text('[mmrr]\ndevice = "project"\n')
    assert shown()["device"] == ("project", "file", "mmrr.toml")
    assert shown()["work"] == ("user-work", "file", str(user))
    monkeypatch.setenv("MMRR_DEVICE", "environment")
    assert shown()["device"] == ("environment", "environment", "MMRR_DEVICE")
    assert shown("--device", "flag")["device"] == ("flag", "flag", "")


def test_the_table_says_where_a_value_is_from() -> None:
    Path("mmrr.toml").write_text("[mmrr]\nworkers = 3\n")
    lines = mmrr("config").stdout.splitlines()
    (line,) = [line for line in lines if " workers " in line]
    assert "3" in line
    assert "file mmrr.toml" in line


def test_a_command_uses_the_defaults(folder: Path) -> None:
    Path("mmrr.toml").write_text('[mmrr]\nwork = "elsewhere"\nscorer-model = "no/model"\n')
    assert f"no workspace at {folder / 'elsewhere'}" in refused("ls")
    assert f"no workspace at {folder / 'here'}" in refused("ls", "--work", "here")
    assert f"no workspace at {folder / 'elsewhere'}" in refused("eval", "--qrels", "q")


def test_a_group_passes_defaults_to_its_commands() -> None:
    """mmdocir is a command of the group eval."""
    Path("mmrr.toml").write_text('[mmrr]\nwork = "mmrr.toml"\n')
    assert "mmrr.toml is a file" in refused("eval", "mmdocir", "--data", "none")


def test_every_key_is_an_option_of_mmrr_config() -> None:
    values: dict[object, object] = {str: "x", int: 7, float: 0.5, bool: True}
    lines = []
    for key, kind in defaults.KEYS.items():
        value = kind[0] if isinstance(kind, tuple) else values[kind]
        lines.append(f"{key} = {json.dumps(value)}")
    Path("mmrr.toml").write_text("[mmrr]\n" + "\n".join(lines))
    assert {source for _, source, _ in shown().values()} == {"file"}


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("HOME", str(folder))
    Path("mmrr.toml").write_text('[mmrr]\nwork = "~/w"\n')
    assert shown()["work"][0] == str(folder / "w")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[mmrr]\ndevise = "cpu"\n', "unknown key 'devise' in the table [mmrr]; did you mean 'device'?"),
        (
            '[mmrr]\nscorer_model = "x"\n',
            "unknown key 'scorer_model' in the table [mmrr]; did you mean 'scorer-model'?",
        ),
        ("[mmrr]\nxyz = 1\n", "unknown key 'xyz' in the table [mmrr]; `mmrr config` lists the keys"),
        ('[mmrr]\nworkers = "two"\n', "found workers = 'two'; expected a value of type integer"),
        ("[mmrr]\nworkers = true\n", "found workers = True; expected a value of type integer"),
        ("[mmrr]\ndevice = 0\n", "found device = 0; expected a value of type string"),
        ('[mmrr]\ndtype = "float8"\n', "found dtype = 'float8'; expected one of auto, float32, bfloat16, float16"),
        ('device = "cpu"\n', "found 'device' outside the table [mmrr]"),
        ("mmrr = 3\n", "expected a table that starts with the line [mmrr]"),
        ("[mmrr\n", "found no valid TOML"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(text: str, says: str) -> None:
    Path("mmrr.toml").write_text(text)
    message = refused("ls")
    assert message.startswith("error: mmrr.toml: ")
    assert says in message
    Path("mmrr.toml").unlink()
    path = write_user(text)
    assert f"error: {path}: " in refused("ls")


def test_a_variable_names_another_user_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "other.toml").write_text("[mmrr]\nworkers = 5\n")
    monkeypatch.setenv("MMRR_CONFIG", str(folder / "other.toml"))
    assert shown()["workers"] == (5, "file", str(folder / "other.toml"))
