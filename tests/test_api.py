"""The Python API finds what the commands find, with the same artifacts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmrr
from mmrr.config import Machine, Render
from tests.console import FP32, INDEX, SOIL, THESIS, write_documents
from tests.console import mmrr as command

QUERY = "When is the thesis due?"
RENDER = Render("pdfium", max_tokens=64)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    write_documents(folder, thesis=THESIS, soil=SOIL)
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, documents: Path, tiny_path: Path, tiny_embedder_path: Path) -> Path:
    """A workspace that the commands made."""
    folder = tmp_path_factory.mktemp("work") / "w"
    command("index", documents, "--work", folder, "--embedder", tiny_embedder_path, *INDEX, *FP32)
    command("precache", "--work", folder, "--scorer-model", tiny_path, *FP32)
    return folder


@pytest.fixture(scope="module")
def workspace(work: Path) -> Iterator[mmrr.Workspace]:
    with mmrr.open(work, device="cpu", dtype="float32") as opened:
        yield opened


def test_search_gives_what_the_commands_give(workspace: mmrr.Workspace, work: Path):
    shown = json.loads(command("rerank", QUERY, "--work", work, "--json").stdout)["queries"][0]["results"]
    hits = workspace.search(QUERY)
    assert [hit.page_id for hit in hits] == [row["page_id"] for row in shown]
    assert [hit.first_stage_rank for hit in hits] == [row["first_stage_rank"] for row in shown]
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    first = json.loads(command("retrieve", QUERY, "--work", work, "--json").stdout)["queries"][0]["results"]
    hits = workspace.search(QUERY, rerank=False)
    assert [(hit.page_id, hit.first_stage_rank) for hit in hits] == [(row["page_id"], None) for row in first]


def test_questions_together_have_the_answers_that_they_have_alone(workspace: mmrr.Workspace):
    queries = [QUERY, "soil", mmrr.Query("mine", "rainfall"), QUERY]
    together = workspace.search_many(queries, top_k=3)
    for query, hits in zip(queries, together, strict=True):
        alone = workspace.search(query, top_k=3)
        assert [hit.page_id for hit in hits] == [hit.page_id for hit in alone]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in alone], abs=1e-4)
    assert workspace.search_many([]) == []


def test_a_model_is_loaded_once(workspace: mmrr.Workspace, monkeypatch: pytest.MonkeyPatch):
    from mmrr.embedders import qwen3_vl
    from mmrr.scorers import minireranker

    workspace.search("a question that was not asked before")

    def load(*args: object) -> None:
        pytest.fail("a model was loaded again")

    monkeypatch.setattr(qwen3_vl.Embedder, "__init__", load)
    monkeypatch.setattr(minireranker.Scorer, "__init__", load)
    assert workspace.search("another new question")


def test_hits_have_their_page(workspace: mmrr.Workspace):
    hit = workspace.search(QUERY, first_stage="bm25", rerank=False, document="thesis.pdf", top_k=1)[0]
    assert (hit.document, hit.page, hit.page_id) == ("thesis.pdf", 1, "thesis.pdf/0001")
    assert "last Friday" in hit.text()
    assert hit.image().mode == "RGB"
    assert len(workspace.pages()) == len(THESIS) + len(SOIL)
    assert [page.number for page in workspace.pages("soil.pdf")] == [1, 2, 3]
    assert {entry["doc_id"] for entry in workspace.documents()} == {"thesis.pdf", "soil.pdf"}


def test_index_and_precache_make_the_artifacts_of_the_commands(
    tmp_path: Path, work: Path, documents: Path, tiny_path: Path, tiny_embedder_path: Path
):
    machine = Machine("cpu", "float32", workers=1)
    with mmrr.Workspace(tmp_path / "w", create=True, machine=machine) as made:
        indexed = made.index(documents, embedder=str(tiny_embedder_path), render=RENDER)
        made.precache(str(tiny_path))
    assert (indexed.pages, str(indexed.changes)) == (5, "2 added")
    current = [json.loads((folder / "head.json").read_text()) for folder in (tmp_path / "w", work)]
    for stage in ("pages", "embed", "index", "precache"):
        assert current[0][stage] == current[1][stage]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"topk": 3}, "search has no option topk; expected some of: candidates, channels, document"),
        ({"document": "thesiss.pdf"}, "the nearest are thesis.pdf"),
        ({"first_stage": "nothing"}, "first_stage is 'nothing'; expected one of: "),
    ],
)
def test_a_wrong_option_is_one_line(workspace: mmrr.Workspace, options: dict[str, object], expected: str):
    with pytest.raises(mmrr.MmrrError, match=expected):
        workspace.search(QUERY, **options)


def test_an_empty_question_and_a_missing_workspace_are_refused(workspace: mmrr.Workspace, tmp_path: Path):
    with pytest.raises(mmrr.MmrrError, match="question 2: the query is empty"):
        workspace.search_many([QUERY, " "])
    with pytest.raises(mmrr.MmrrError, match="no workspace at"):
        mmrr.open(tmp_path / "none")


@pytest.mark.slow
def test_a_script_without_a_guard_runs_once(tmp_path: Path, documents: Path):
    """Rendering spawns processes, which would import the script again."""
    script = tmp_path / "script.py"
    script.write_text(
        "import mmrr\nfrom mmrr.config import Machine, Render\n"
        "print('the script runs')\n"
        f"with mmrr.Workspace({str(tmp_path / 'w')!r}, create=True, machine=Machine(workers=2)) as ws:\n"
        f"    ws.index({str(documents)!r}, render=Render('pdfium', max_tokens=64))\n"
        f"    print(ws.search({QUERY!r}, top_k=1)[0].page_id)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["the script runs", "thesis.pdf/0001"]
    assert done.stderr == ""


def test_the_section_of_the_guide_on_images(
    work: Path, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workspace: mmrr.Workspace
):
    text = (Path(__file__).parents[1] / "docs" / "python.md").read_text("utf-8")
    section = text.split("## Images as queries")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for name in ("table.png", "page-1.png"):
        shutil.copy(workspace.pages()[0].image, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    code = code.replace("reader-reranker", str(tiny_path)).replace('open("work")', f'open("{work}", dtype="float32")')
    names: dict[str, list[mmrr.Hit]] = {}
    exec(compile(code, "docs/python.md", "exec"), names)
    assert len(names["hits"]) == 2
    assert names["hits"][0].query.image
