"""``mmrr draw``: other commands can read the benchmark, and its judgements are correct."""

from __future__ import annotations

import json
from pathlib import Path

import pypdfium2
import pytest

from mmrr.documents.discovery import find_sources
from mmrr.documents.rendering import RenderOptions, default_renderer, render_pages
from mmrr.errors import MmrrError
from mmrr.evaluation.trec import read_qrels, read_queries
from mmrr.training.synthetic import benchmark
from mmrr.training.synthetic.benchmark import BenchmarkSize, draw_benchmark
from mmrr.training.synthetic.canvas import DrawnPage
from mmrr.training.synthetic.sources import Block, Document, Question, read_documents, split
from tests.console import mmrr, refused
from tests.texts import RECORDS, write_texts

N_PAGES, N_QUESTIONS, N_PHRASES = 5, 6, 8
COUNTS = ("--pages", N_PAGES, "--questions", N_QUESTIONS, "--phrases", N_PHRASES)


class Made:
    """One benchmark, and the pages as they were drawn, by page id."""

    def __init__(self, folder: Path, sheets: dict[str, DrawnPage]) -> None:
        self.folder, self.sheets = folder, sheets
        self.records = [json.loads(line) for line in (folder / "queries.jsonl").read_text("utf-8").splitlines()]
        self.qrels = read_qrels(folder / "qrels.trec")

    def of(self, kind: str) -> list[dict[str, str]]:
        return [record for record in self.records if record["kind"] == kind]

    def text(self, page_id: str) -> str:
        return self.sheets[page_id].text().casefold()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("draw")
    sheets: dict[str, DrawnPage] = {}
    save = benchmark._save

    def record(pages: list[DrawnPage], path: Path) -> None:
        sheets.update({f"{path.name}/{at:04d}": page for at, page in enumerate(pages, 1)})
        save(pages, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "_save", record)
        texts = write_texts(root / "texts.jsonl")
        result = mmrr("draw", texts, "--output", root / "new" / "bench", *COUNTS, "--seed", 1)
    folder = root / "new" / "bench"
    assert result.stdout.splitlines()[-1] == str(folder)
    assert f"{N_PAGES} pages in " in result.stderr
    assert [path.name for path in folder.parent.iterdir()] == ["bench"], "a temporary folder is left"
    return Made(folder, sheets)


@pytest.mark.renderer
def test_pages_come_back_at_the_size_they_were_drawn_in(made: Made, tmp_path: Path) -> None:
    rendered = {}
    for source in find_sources([made.folder]):
        with pypdfium2.PdfDocument(source.path) as pdf:
            n_pages = len(pdf)
        for renderer in {default_renderer(), "pdfium"}:
            for page in render_pages(source, 1, n_pages, tmp_path, RenderOptions(renderer)):
                assert (page.status, page.text) == ("ok", "")  # no text layer
                page_id = f"{source.doc_id}/{page.number:04d}"
                rendered[page_id] = (page.width_px, page.height_px)
                assert rendered[page_id] == made.sheets[page_id].image.size
    assert len(rendered) == N_PAGES


def test_other_commands_read_its_files(made: Made) -> None:
    queries = read_queries(made.folder / "queries.jsonl")
    assert [query.query_id for query in queries] == list(made.qrels)
    assert {record["kind"] for record in made.records} == {"question", "phrase"}
    judged = {page_id for pages in made.qrels.values() for page_id in pages}
    assert judged <= set(made.sheets)
    assert {relevance for pages in made.qrels.values() for relevance in pages.values()} == {1}


def test_a_phrase_is_on_one_page_only(made: Made) -> None:
    phrases = made.of("phrase")
    assert len(phrases) == N_PHRASES
    lines = {
        " ".join(line.split())
        for record in RECORDS
        for block in record["blocks"]
        for line in (block["text"].splitlines() if "text" in block else map(" ".join, block["rows"]))
    } | {record["title"] for record in RECORDS}
    for record in phrases:
        assert 3 <= len(record["text"].split()) <= 6
        on = {page_id for page_id in made.sheets if record["text"].casefold() in made.text(page_id)}
        assert on == set(made.qrels[record["query_id"]])
        assert len(on) == 1
        assert any(record["text"] in line for line in lines), "it spans two lines of the text"


def test_a_question_is_answered_by_its_pages_and_by_no_others(made: Made) -> None:
    questions = made.of("question")
    assert 0 < len(questions) <= N_QUESTIONS
    assert len({record["text"] for record in questions}) == len(questions)
    for record in questions:  # each answer occurs once in these texts
        on = {page_id for page_id in made.sheets if record["answer"].casefold() in made.text(page_id).split()}
        found = set(made.qrels[record["query_id"]])
        assert found
        assert found <= {page_id for page_id in made.sheets if record["answer"].casefold() in made.text(page_id)}
        assert on <= found


@pytest.mark.slow
def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    documents = read_documents(write_texts(tmp_path / "texts.jsonl"))
    folders = [tmp_path / name for name in ("one", "two", "other")]
    for folder, seed in zip(folders, (2, 2, 3), strict=True):
        draw_benchmark(documents, folder, BenchmarkSize(1, 2, 2), seed=seed)
    one, two, other = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert one == two
    assert set(one) == {"report-0001.pdf", "queries.jsonl", "qrels.trec"}
    assert all(one[name] != other[name] for name in ("report-0001.pdf", "queries.jsonl"))


def test_only_held_out_texts_are_drawn(tmp_path: Path) -> None:
    texts = [write_texts(tmp_path / f"{name}.jsonl", RECORDS[name::2]) for name in (0, 1)]
    args = ("draw", *texts, "--output", tmp_path / "out", "--pages", 2, "--questions", 50, "--phrases", 0)
    result = json.loads(mmrr(*args, "--held-out", 0.25, "--json").stdout)
    held_out = split([document for path in texts for document in read_documents(path)], 0.25)[1]
    possible = {question.text for document in held_out for question in document.questions}
    queries = read_queries(tmp_path / "out" / "queries.jsonl")
    assert {query.text for query in queries} <= possible
    assert (result["folder"], result["pages"], result["phrases"]) == (str(tmp_path / "out"), 2, 0)
    assert 0 < result["questions"] == len(queries) < 50


@pytest.mark.slow
def test_a_question_is_left_out_if_its_answer_is_cut_off(tmp_path: Path) -> None:
    text = "Nothing of this says how the story ends. " * 900 + "It ends with a kiss."
    asked = (Question("How does it end?", "a kiss", 0), Question("How many words are there?", "7205", 0))
    story = Document("story", "made-up", "A story", (Block("text", text),), asked)
    made = draw_benchmark([story], tmp_path / "out", BenchmarkSize(pages=2, phrases=0))
    assert (made.pages, made.questions) == (2, 0)


def test_fewer_questions_than_wanted_is_a_note_not_an_error(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts.jsonl")
    result = mmrr("draw", texts, "--output", tmp_path / "out", "--pages", 1, "--questions", 90, "--phrases", 2)
    assert " of the 90 questions asked for" in result.stderr
    assert "phrases asked for" not in result.stderr


def test_a_folder_with_files_is_not_changed(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts.jsonl")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "holds files already" in refused("draw", texts, "--output", tmp_path / "full", *COUNTS)
    assert "is a file" in refused("draw", texts, "--output", texts, *COUNTS)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "mine.txt", "texts.jsonl"]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((), "no document has text to draw"),
        ((Block("text", "  "), Block("table", rows=((" ",),))), "no document has text to draw"),
        ((Block("text", "\ue0c7"), Block("table", "a table of no rows")), "no document has text to draw"),
    ],
)
def test_texts_that_cannot_be_drawn_are_one_line(tmp_path: Path, blocks: tuple[Block, ...], message: str) -> None:
    with pytest.raises(MmrrError, match=message):
        draw_benchmark([Document("a", "", "", blocks, ())], tmp_path / "out", BenchmarkSize(pages=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    texts = write_texts(tmp_path / "texts.jsonl")
    monkeypatch.setattr(benchmark, "_save", full)
    assert "No space left on device" in refused("draw", texts, "--output", tmp_path / "out", "--pages", 1)
    monkeypatch.setattr(benchmark, "_save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert "nothing was written" in mmrr("draw", texts, "--output", tmp_path / "out", "--pages", 1, code=130).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["texts.jsonl"]
