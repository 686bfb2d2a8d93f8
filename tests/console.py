"""Helpers for tests of whole commands: run them in this process, and read what a workspace holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from mmrr.cli.main import app
from mmrr.workspace.files import seal, unseal
from tests.pdfs import make_pdf

THESIS = ["The thesis is due on the last Friday of June", "Formatting rules for the cover of a thesis"]
SOIL = ["Soil moisture in spring", "Rainfall table by month", "Appendix on sensors"]
#: Small pages, so that a command takes seconds. PDFium and float32 are available on every machine, so that pixels and
#: numbers do not depend on the machine.
INDEX = ("--renderer", "pdfium", "--max-tokens", "64", "--workers", "1")
FP32 = ("--dtype", "float32")


def mmrr(*args: object, code: int = 0) -> Result:
    """Run one command. An exception that the command does not catch is raised here."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == code, f"exit code {result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result


def artifact(result: Result) -> Path:
    """The folder of the artifact, from the last line of stdout."""
    path = Path(result.stdout.splitlines()[-1])
    assert (path / "manifest.json").is_file()
    return path


def refused(*args: object, code: int = 1) -> str:
    """Run a command that must fail with exactly one line of error and nothing on stdout. Returns that line."""
    result = mmrr(*args, code=code)
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == lines[0], "something follows the error"
    assert "Traceback" not in result.stderr
    return lines[0]


def manifest(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((path / "manifest.json").read_text("utf-8"))
    return values


def shards(work: Path, stage: str) -> set[str]:
    return {path.name for path in (work / "shards" / stage).glob("*")}


def files(work: Path) -> dict[str, tuple[int, int]]:
    """(inode, modification time) of each file of the shards and artifacts: equal if nothing was written again."""
    kept = {}
    for path in work.rglob("*"):
        relative = path.relative_to(work)
        if path.is_file() and len(relative.parts) > 1 and relative.parts[0] != "tmp":
            stat = path.stat()
            kept[relative.as_posix()] = (stat.st_ino, stat.st_mtime_ns)
    return kept


def copy_workspace(source: Path, target: Path) -> Path:
    """A copy of a folder with documents and a workspace ``work``, whose documents count as found in the copy."""
    shutil.copytree(source, target)
    move_documents(target / "work", source, target)
    return target


def move_documents(work: Path, source: Path, target: Path) -> None:
    """Record that the documents of a workspace were found in another folder."""
    for path in (work / "pages").glob("*/manifest.json"):
        values = unseal(path.read_bytes())
        origins = json.dumps(values["provenance"]["sources"]).replace(str(source), str(target))
        values["provenance"]["sources"] = json.loads(origins)
        path.write_text(seal(values, indent=1))


def run_lines(path: Path) -> dict[str, list[tuple[str, float]]]:
    """{query_id: [(page_id, score)]} of a TREC run, in the order of its lines."""
    run: dict[str, list[tuple[str, float]]] = {}
    for line in path.read_text("utf-8").splitlines():
        query_id, q0, page_id, rank, score, _ = line.split(" ")
        hits = run.setdefault(query_id, [])
        hits.append((page_id, float(score)))
        assert (q0, int(rank)) == ("Q0", len(hits))
    return run


def write_documents(folder: Path, **pages: Sequence[str | bytes]) -> Path:
    """``name=["page one", ...]`` -> ``folder/name.pdf``. Pages as in ``make_pdf``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in pages.items():
        (folder / f"{name}.pdf").write_bytes(make_pdf(texts))
    return folder


def write_queries(path: Path, *queries: tuple[str, str] | tuple[str, str, str]) -> Path:
    names = ("query_id", "text", "doc_id")
    records = [dict(zip(names, query, strict=False)) for query in queries]
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return path


def misused(*args: object) -> str:
    """Run a command with wrong usage: exit code 2 and one line of error. Returns that line."""
    return refused(*args, code=2)
