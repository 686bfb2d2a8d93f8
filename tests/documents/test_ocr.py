"""OCR of pages without a text layer: with a fake package, and with RapidOCR if it is installed."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from mmrr.cli import report
from mmrr.config import Machine, Render
from mmrr.context import Context
from mmrr.contracts import ScorerSpec
from mmrr.documents.discovery import find_sources
from mmrr.documents.ocr import ENGINE, Line, in_reading_order
from mmrr.evaluation import mmdocir
from mmrr.stages.render import render
from mmrr.workspace.pages import Collection, load, read_texts
from mmrr.workspace.store import Workspace
from tests.console import INDEX, artifact, files, manifest, mmrr, refused, shards, write_documents
from tests.documents.fake_ocr import WORDS, Engine
from tests.pdfs import make_pdf
from tests.test_layering import LIBRARY, imports

SAMPLE = Path(__file__).parents[2] / "data" / "sample"


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)


def sheet(grey: int) -> bytes:
    """The content stream of a grey page."""
    return b"%.4f g 0 0 612 792 re f" % (grey / 255)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A PDF whose pages 2 and 4 have no text, a PDF with text only, and a scan."""
    folder = write_documents(tmp_path / "docs", soil=["Soil moisture in spring"])
    (folder / "mixed.pdf").write_bytes(
        make_pdf(["The thesis is due in June", sheet(0), "Rules for the cover", sheet(64)])
    )
    Image.new("RGB", (96, 128), (128, 128, 128)).save(folder / "scan.png")
    return folder


def collection(work: Path, path: Path) -> tuple[Workspace, Collection]:
    """The pages of an index."""
    workspace = Workspace(work)
    pages = workspace.find("pages", manifest(path)["inputs"]["pages"])
    assert pages
    return workspace, load(workspace, pages)


# Whole commands, with the fake package


def test_pages_without_text_are_read_and_found(engine: Engine, docs: Path, tmp_path: Path) -> None:
    work = tmp_path / "w"
    result = mmrr("index", docs, "--work", work, *INDEX, "--ocr", "auto")
    assert "6 pages of 3 documents (3 ok); 2 read by OCR, 1 without text" in result.stderr
    assert sorted(engine.greys_read()) == [0, 64, 128]  # the others have a text layer
    made = artifact(result)
    assert manifest(made)["content"].items() >= {"pages": 6, "pages_with_text": 5}.items()

    workspace, pages = collection(work, made)
    texts = dict(zip((page.page_id for page in pages.pages), read_texts(workspace, pages), strict=True))
    assert texts["mixed.pdf/0002"] == "lighthouse keeper"  # sorted by place, not in the order of the package
    assert texts["mixed.pdf/0004"] == ""
    assert texts["scan.png/0001"] == "barley harvest"
    assert texts["mixed.pdf/0001"].strip() == "The thesis is due in June"

    listing = [json.loads(line) for line in (pages.manifest.path / "pages.jsonl").read_text().splitlines()]
    by_ocr = {record["page_id"]: record["ocr"] for record in listing if "ocr" in record}
    assert set(by_ocr) == {"mixed.pdf/0002", "mixed.pdf/0004", "scan.png/0001"}
    lines = (workspace.shard("pages", by_ocr["mixed.pdf/0002"]) / "text.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"number": 2, "text": "lighthouse keeper", "ocr": ENGINE},
        {"number": 4, "text": "", "ocr": ENGINE},
    ]
    found = mmrr("retrieve", "Where is the lighthouse keeper?", "--work", work, "--first-stage", "bm25", "--json")
    (answer,) = json.loads(found.stdout)["queries"]
    assert answer["results"][0]["page_id"] == "mixed.pdf/0002"
    assert ENGINE in mmrr("ls", "--work", work, "--json").stdout
    assert "all as written" in mmrr("verify", "--work", work).stdout
    assert "removed 0 unused shards" in mmrr("rm", "--work", work).stderr  # the text from OCR is in use


def test_ocr_added_later_reads_pages_and_repeats_nothing_else(engine: Engine, docs: Path, tmp_path: Path) -> None:
    work = tmp_path / "w"
    without_ocr = mmrr("index", docs, "--work", work, *INDEX)
    assert "(3 ok); 3 without text" in without_ocr.stderr
    assert "ocr" not in manifest(collection(work, artifact(without_ocr))[1].manifest.path)["config"]
    drawn = shards(work, "pages")
    before = files(work / "shards")

    read = mmrr("index", docs, "--work", work, *INDEX, "--ocr", "auto")
    assert len(engine.greys_read()) == 3
    assert files(work / "shards").items() >= before.items()
    assert len(shards(work, "pages") - drawn) == 2  # for the two documents with pages to read
    (_, first), (_, second) = (collection(work, artifact(result)) for result in (without_ocr, read))
    assert first.manifest.fingerprint != second.manifest.fingerprint
    assert first.shards == second.shards  # so vectors and page caches of the images stay
    assert second.manifest.bytes > first.manifest.bytes

    assert artifact(mmrr("index", docs, "--work", work, *INDEX)) == artifact(without_ocr)
    assert artifact(mmrr("index", docs, "--work", work, *INDEX, "--ocr", "auto")) == artifact(read)
    assert engine.greys_read() == []


def test_a_second_copy_of_a_document_is_not_read_again(engine: Engine, docs: Path, tmp_path: Path) -> None:
    (docs / "copy.pdf").write_bytes((docs / "mixed.pdf").read_bytes())
    result = mmrr("render", docs, "--work", tmp_path / "w", *INDEX, "--ocr", "auto")
    assert sorted(engine.greys_read()) == [0, 64, 128]
    assert "3 read by OCR, 2 without text" in result.stderr


def test_ctrl_c_keeps_the_shards_that_are_read(engine: Engine, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name, grey in (("a", 0), ("b", 128), ("c", 192)):
        (docs / f"{name}.pdf").write_bytes(make_pdf([sheet(grey)]))

    @contextmanager
    def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
        ticks = iter(range(total))

        def advance(n: int) -> None:
            if what == "ocr" and next(ticks) == 1:
                raise KeyboardInterrupt

        yield advance

    options, machine = Render("pdfium", max_tokens=64, ocr="auto"), Machine(workers=1)
    with Workspace.open(tmp_path / "w", create=True) as workspace:
        with pytest.raises(KeyboardInterrupt):
            render(Context(workspace, machine, progress), find_sources([docs]), options)
        engine.greys_read()
        assert workspace.current("pages") is None
        made = render(Context(workspace, machine), find_sources([docs]), options)
        assert 0 not in engine.greys_read()  # the first document was finished
        assert read_texts(workspace, load(workspace, made)) == [WORDS[0], WORDS[2], WORDS[3]]
        assert made.provenance["pages_computed"] == 0
        assert made.provenance["pages_read"] == 2


def test_a_dead_process_gives_one_line(engine: Engine, docs: Path, tmp_path: Path) -> None:
    engine.do("die")
    error = refused("index", docs, "--work", tmp_path / "w", *INDEX, "--ocr", "auto")
    assert "--workers 1" in error


def test_an_unreadable_page_fails_alone(engine: Engine, docs: Path, tmp_path: Path) -> None:
    engine.do("fail")
    work = tmp_path / "w"
    result = mmrr("index", docs, "--work", work, *INDEX, "--ocr", "auto")
    assert "(3 ok); 3 without text" in result.stderr
    workspace, pages = collection(work, artifact(result))
    read = set(pages.text_shards) - set(pages.shards)
    details = {page["detail"] for key in read for page in workspace.shard_record("pages", key)["pages"]}
    assert details == {"OCR failed: ValueError: no such page"}


def test_a_damaged_image_is_not_read(engine: Engine, docs: Path, tmp_path: Path) -> None:
    work = tmp_path / "w"
    mmrr("index", docs, "--work", work, *INDEX)
    (image,) = (path for path in work.glob("shards/pages/*/0001.png") if Image.open(path).getpixel((9, 9))[0] == 128)
    data = bytearray(image.read_bytes())
    data[-20] ^= 1  # the size stays: a file of another size is rendered again without an error
    image.write_bytes(data)
    assert "0001.png does not match its hash" in refused("index", docs, "--work", work, *INDEX, "--ocr", "auto")
    assert "2 read by OCR" in mmrr("index", docs, "--work", work, *INDEX, "--ocr", "auto").stderr


@pytest.mark.usefixtures("without_packages")
def test_a_missing_package_is_reported_before_any_work(docs: Path, tmp_path: Path) -> None:
    error = refused("index", docs, "--work", tmp_path / "w", *INDEX, "--ocr", "auto")
    assert "needs rapidocr and onnxruntime, which are not installed" in error
    assert error.endswith("run: pip install 'mmrr[ocr]'")
    assert not shards(tmp_path / "w", "pages")
    mmrr("index", docs, "--work", tmp_path / "w", *INDEX)  # only OCR needs the packages


def test_the_package_is_imported_only_for_reading() -> None:
    names = {
        name.partition(".")[0]: at_once
        for name, at_once in imports(LIBRARY["mmrr.documents.ocr"], "mmrr.documents.ocr")
    }
    assert names["rapidocr"] is False
    assert names["cv2"] is False


def test_the_published_benchmark_has_its_own_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmdocir, "open_benchmark", lambda data: SimpleNamespace(form="published"))
    error = refused(
        "eval", "mmdocir", "--data", tmp_path, "--work", tmp_path / "w", "--first-stage", "bm25", "--ocr", "auto"
    )
    assert error.endswith("leave out --ocr")


# A scorer that reads text


@dataclass(frozen=True)
class Nothing:
    """Options of a family without options."""


class Reader:
    """A scorer of a family that reads text: the page cache is the length of the text."""

    def __init__(self, *_: object) -> None: ...

    def shared_state(self) -> dict[str, torch.Tensor]:
        return {"none": torch.zeros(1)}

    def prepare(self, contents: list[str], kept: list[None]) -> list[dict[str, torch.Tensor]]:
        return [{"length": torch.tensor([len(text)])} for text in contents]


@pytest.fixture
def text_family(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint: Any = SimpleNamespace(
        id="x", config=dict, identity=lambda dtype: {"id": "x", "revision": "1", "dtype": dtype}
    )
    family = SimpleNamespace(
        SPEC=ScorerSpec(checkpoints=(), model_types=(), accepts_pruning=False, listwise=False),
        Prepare=Nothing,
        Score=Nothing,
        load=Reader,
        page_input=lambda options: "text",
        resolve=lambda options, config: options,
        prompt=lambda options: "",
        grid=lambda *_: (4, 4),
        cache_bytes=lambda *_: 8,
    )
    monkeypatch.setattr("mmrr.modeling.families.load", lambda kind, name: family)
    monkeypatch.setattr("mmrr.stages.precache.resolve", lambda *_: checkpoint)


@pytest.mark.usefixtures("text_family")
def test_precache_says_how_many_pages_a_text_scorer_cannot_read(engine: Engine, docs: Path, tmp_path: Path) -> None:
    work = ("--work", tmp_path / "w")
    precache = ("precache", *work, "--scorer", "fake", "--scorer-model", "x", "--dtype", "float32")
    mmrr("index", docs, *work, *INDEX)
    without_ocr = mmrr(*precache)
    assert manifest(artifact(without_ocr))["content"]["without_text"] == 3
    note = "3 of 6 pages have no text for the scorer to read; mmrr index --ocr auto reads it from their images"
    assert note in without_ocr.stderr

    mmrr("index", docs, *work, *INDEX, "--ocr", "auto")
    read = mmrr(*precache)
    assert "6 pages, 5 to read" in read.stderr  # only the shards with changed text
    assert manifest(artifact(read))["content"]["without_text"] == 1
    assert "1 of 6 pages have no text for the scorer to read; OCR found none on them" in read.stderr


def test_a_scorer_of_images_has_no_such_note(capsys: pytest.CaptureFixture[str]) -> None:
    session: Any = None  # not used
    report.without_text(session, SimpleNamespace(content={"pages": 3}))  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""


# Reading order


def column(left: float, width: float, texts: list[str], top: float = 100) -> list[Line]:
    """Lines 20 pixels high, from top to bottom."""
    return [Line(left, top + 24 * i, left + width, top + 24 * i + 20, text) for i, text in enumerate(texts)]


def test_columns_are_read_one_after_the_other() -> None:
    lines = [
        Line(100, 20, 900, 60, "Title"),
        *column(0, 480, ["a1", "a2", "a3", "a4"]),
        *column(500, 480, ["b1", "b2", "b3"], top=110),  # with other baselines
        Line(0, 220, 980, 240, "Across"),
        *column(0, 300, ["c1", "c2", "c3"], top=300),
        *column(340, 300, ["d1", "d2", "d3"], top=300),
        *column(680, 300, ["e1", "e2", "e3"], top=300),
    ]
    expected = "Title a1 a2 a3 a4 b1 b2 b3 Across c1 c2 c3 d1 d2 d3 e1 e2 e3"
    assert in_reading_order(lines[::-1]).replace("\n", " ") == expected


def test_tables_are_read_row_by_row() -> None:
    lines = [
        *column(0, 400, ["pH", "Colour", "Total hardness", "Chloride"]),
        *column(600, 60, ["6.50", "8.00", "11.50", "12.00"], top=104),
    ]
    assert in_reading_order(lines) == "pH 6.50\nColour 8.00\nTotal hardness 11.50\nChloride 12.00"


def test_an_empty_page_has_no_text() -> None:
    assert in_reading_order([]) == ""


# RapidOCR


@pytest.mark.slow
def test_rapidocr_reads_a_page_of_the_sample(tmp_path: Path) -> None:
    """The page is drawn as for a vision model and put into a PDF as an image, so it has no text layer."""
    pytest.importorskip("rapidocr", reason="the ocr extra is not installed")
    pytest.importorskip("onnxruntime", reason="the ocr extra is not installed")
    from mmrr.documents.rendering import RenderOptions, render_pages

    (source,) = find_sources([SAMPLE / "graduate-handbook.pdf"])
    (page,) = render_pages(source, 8, 8, tmp_path, RenderOptions("pdfium"))
    docs = tmp_path / "docs"
    docs.mkdir()
    Image.open(tmp_path / page.file).save(docs / "scan.pdf", resolution=150)

    result = mmrr("index", docs, "--work", tmp_path / "w", "--ocr", "auto", "--workers", 1, "--renderer", "pdfium")
    assert "1 page of 1 document (1 ok); 1 read by OCR" in result.stderr
    workspace, pages = collection(tmp_path / "w", artifact(result))
    (text,) = read_texts(workspace, pages)
    wanted, read = (Counter(re.findall(r"\w+", words.lower())) for words in (page.text, text))
    assert (wanted & read).total() >= 0.95 * wanted.total()
    assert (wanted & read).total() >= 0.95 * read.total()
    assert "\n" in text
    found = mmrr("retrieve", "When is the thesis due?", "--work", tmp_path / "w", "--first-stage", "bm25", "--json")
    assert json.loads(found.stdout)["queries"][0]["results"]
