"""Which pages a search may find: --document, --pages, --metadata and --where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrr.errors import MmrrError
from mmrr.workspace import selection
from tests.cli.chain import QUESTION
from tests.cli.conftest import Prepared
from tests.console import INDEX, mmrr, refused, write_queries


@pytest.mark.parametrize("command", ["retrieve", "rerank"])
def test_filters_apply_before_the_first_stage_cuts_off(prepared: Prepared, tmp_path: Path, command: str) -> None:
    (tmp_path / "meta.csv").write_text("document,year,kind\nsoil.pdf,2021,report\nthesis,2019,rules\n")
    (tmp_path / "meta.jsonl").write_text('{"doc_id": "soil", "tags": ["wet", "dry"]}\n')
    queries = write_queries(tmp_path / "q.jsonl", ("q1", "the thesis and the soil by month"))
    base = (command, "--queries", queries, "--work", prepared.work, "--candidates", 1, "--json")

    def found(*options: object) -> list[str]:
        return [row["page_id"] for row in json.loads(mmrr(*base, *options).stdout)["queries"][0]["results"]]

    (best,) = found()
    other = "soil" if best.startswith("thesis") else "thesis"
    assert [page.split(".")[0] for page in found("--document", other)] == [other]
    assert [page.split(".")[0] for page in found("--document", f"{other[0]}*.pdf")] == [other]
    assert found("--document", "soil", "--document", "thesis") == [best]
    csv_file = ("--metadata", tmp_path / "meta.csv", "--where")
    assert found(*csv_file, "year>=2020 and kind=report")[0].startswith("soil")
    assert found(*csv_file, "not (year>=2020)")[0].startswith("thesis")
    assert found("--metadata", tmp_path / "meta.jsonl", "--where", "tags~wet")[0].startswith("soil")
    assert set(found("--pages", "2")) <= {"soil.pdf/0002", "thesis.pdf/0002"}
    for options, says in (
        (("--where", "year>1"), "the index has none"),
        (csv_file[:2], "pass both"),
        ((*csv_file, "year>"), "found the end"),
        ((*csv_file, "year>3000"), "no page of the 5 in the index fits"),
        (("--pages", "9-3"), "9-3 is no range"),
        (("--document", "x*"), "no document fits 'x*'"),
        (("--document", "soil", "--document", "sole"), "the nearest are soil.pdf"),
    ):
        assert says in refused(*base[:-1], *options)


def test_metadata_is_stored_with_the_collection(copy: Prepared, tmp_path: Path) -> None:
    """Other values compute nothing again, and a folder without a file of metadata keeps its values."""
    (copy.docs / "metadata.jsonl").write_text('{"file": "soil.pdf", "year": "2021"}\n{"file": "gone.pdf", "year": 1}\n')
    work = ("--work", copy.work)

    def found(where: str) -> set[str]:
        rows = json.loads(mmrr("retrieve", "thesis and soil", *work, "--where", where, "--json").stdout)
        return {row["page_id"].split("/")[0] for row in rows["queries"][0]["results"]}

    def listed() -> dict[str, object]:
        rows = json.loads(mmrr("ls", "--documents", *work, "--json").stdout)
        assert rows["skipped"] == []
        return {row["doc_id"]: row["metadata"] for row in rows["documents"]}

    before = sorted(copy.work.glob("*/*/manifest.json"))
    said = mmrr("index", copy.docs, *work, *INDEX)
    assert "metadata: 1 of its names are no documents: gone.pdf" in said.output
    assert sorted(copy.work.glob("*/*/manifest.json")) == before
    assert listed() == {"soil.pdf": {"year": 2021}, "thesis.pdf": {}}
    assert found("year>=2020") == {"soil.pdf"}
    (copy.docs / "metadata.jsonl").unlink()
    (tmp_path / "more.csv").write_text("document,year\nthesis,2019\n")
    mmrr("index", copy.docs, *work, *INDEX, "--metadata", tmp_path / "more.csv")
    assert listed() == {"soil.pdf": {"year": 2021}, "thesis.pdf": {"year": 2019}}
    mmrr("rm", "--document", "soil", *work)
    assert listed() == {"thesis.pdf": {"year": 2019}}
    (copy.docs / "metadata.csv").write_text("nothing\n1\n")
    assert "metadata.csv, line 2" in refused("index", copy.docs, *work, *INDEX)
    assert "none of its documents" in refused(
        "index", copy.docs / "thesis.pdf", *work, *INDEX, "--metadata", said_of(tmp_path)
    )


def said_of(folder: Path) -> Path:
    """A file of metadata of an unknown document."""
    (folder / "other.csv").write_text("document,year\nnowhere.pdf,2019\n")
    return folder / "other.csv"


def test_filters_apply_to_the_candidates_of_a_run(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "first.trec").write_text("q Q0 thesis.pdf/0002 1 3.5 other\nq Q0 soil.pdf/0003 2 2.5 other\n")
    command = ("rerank", QUESTION, "--run", tmp_path / "first.trec", "--work", prepared.work, "--json")
    found = json.loads(mmrr(*command, "--document", "soil").stdout)["queries"][0]["results"]
    assert [row["page_id"] for row in found] == ["soil.pdf/0003"]
    assert found[0]["first_stage_score"] == 2.5


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("year>=2020", True),
        ("year=2021.0 and kind=Report", True),
        ("kind=report or kind~PORT", True),
        ("not year<2020", True),
        ("date>2021-01", True),
        ("author='A. B'", True),
        ("none>=2020", False),
        ("missing=1", False),
        ("(year=1 or year=2021) and not (kind=x)", True),
        ("kind", None),
        ("year==2021", None),
        ("year=2021 kind=x", None),
        ("__import__('os').system('x')", None),
        ("(" * 200, None),
    ],
)
def test_conditions_on_metadata(text: str, fits: bool | None) -> None:
    values: dict[str, str | float] = {
        "year": 2021.0,
        "kind": "Report",
        "date": "2021-03-01",
        "author": "A. B",
        "none": "-",
    }
    if fits is None:
        with pytest.raises(MmrrError, match="--where"):
            selection.parse(text)
    else:
        assert selection.parse(text)(values) is fits
