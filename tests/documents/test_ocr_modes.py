"""Which pages OCR reads, with which model, and the blanks that it loses. A stand-in replaces the package."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from mmrr.documents.ocr_blanks import mend
from mmrr.workspace.pages import load, read_texts
from mmrr.workspace.store import Workspace
from tests.console import INDEX, artifact, manifest, mmrr, refused, write_documents
from tests.documents.fake_ocr import Engine
from tests.documents.layered import scan, with_wrong_letters
from tests.documents.test_text_layer import PROSE
from tests.pdfs import make_pdf


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A scan with a stamp, a scan without, a page of text, and a page whose layer is garbled (white: grey 255)."""
    folder = write_documents(tmp_path / "docs")
    (folder / "scan.pdf").write_bytes(make_pdf([scan(0, "Scanned by X"), scan(128), "Rules for the cover"]))
    (folder / "wrong.pdf").write_bytes(with_wrong_letters(PROSE, shift=1))
    return folder


def texts(work: Path, index: Path) -> dict[str, str]:
    workspace = Workspace(work)
    found = workspace.find("pages", manifest(index)["inputs"]["pages"])
    assert found
    collection = load(workspace, found)
    ids = (page.page_id for page in collection.pages)
    return dict(zip(ids, map(str.strip, read_texts(workspace, collection)), strict=True))


def test_auto_reads_what_the_layer_does_not_say(engine: Engine, docs: Path, tmp_path: Path) -> None:
    work = tmp_path / "w"
    without = mmrr("index", docs, "--work", work, *INDEX)
    assert "1 page is an image with a text layer of few words" in without.stderr
    assert "1 page has a garbled text layer" in without.stderr
    listed = json.loads(mmrr("ls", "--documents", "--work", work, "--json").stdout)["documents"]
    scanned, wrong = (entry["notes"] for entry in listed)
    assert (scanned["little_text"], wrong["garbled"]) == ([1], [1])
    assert "garbled" not in scanned

    read = mmrr("index", docs, "--work", work, *INDEX, "--ocr", "auto")
    assert len(engine.greys_read()) == 3  # not the page of text
    assert "few words" not in read.stderr
    found = texts(work, artifact(read))
    assert found["scan.pdf/0001"] == "Scanned by X\nlighthouse keeper"
    assert found["scan.pdf/0002"] == "barley harvest"
    assert found["scan.pdf/0003"] == "Rules for the cover"
    assert "lighthouse" not in found["wrong.pdf/0001"]  # the stand-in reads nothing on white: the layer stays


def test_force_reads_every_page(engine: Engine, docs: Path, tmp_path: Path) -> None:
    work = tmp_path / "w"
    read = mmrr("index", docs, "--work", work, *INDEX, "--ocr", "force")
    assert len(engine.greys_read()) == 4
    assert texts(work, artifact(read))["scan.pdf/0003"] == "Rules for the cover"
    assert "every page" in mmrr("ls", "--work", work, "--json").stdout
    mmrr("index", docs, "--work", work, *INDEX, "--ocr", "force")
    assert engine.greys_read() == []


@pytest.mark.parametrize(
    ("old", "new", "pages"),
    [(["--ocr"], "auto", 3), (["--no-ocr"], "never", 0), (["--ocr", "--no-ocr"], "never", 0)],
)
def test_the_old_switch_works_with_a_notice(
    engine: Engine, docs: Path, tmp_path: Path, old: list[str], new: str, pages: int
) -> None:
    result = mmrr("render", *old, docs, "--work", tmp_path / "w", *INDEX)
    assert f"{old[-1]} is now --ocr {new}" in result.stderr
    assert len(engine.greys_read()) == pages


def test_a_defaults_file_may_have_the_old_switch(
    engine: Engine, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mmrr.toml").write_text("[mmrr]\nocr = true\n")
    monkeypatch.chdir(tmp_path)
    mmrr("render", docs, "--work", tmp_path / "w", *INDEX)
    assert len(engine.greys_read()) == 3


# Languages


def test_a_language_of_the_package_needs_no_model(engine: Engine, docs: Path, tmp_path: Path) -> None:
    mmrr("render", docs, "--work", tmp_path / "w", *INDEX, "--ocr", "auto", "--ocr-language", "de")
    assert engine.model() == "None"


def test_a_missing_model_is_named_with_its_place(engine: Engine, docs: Path, tmp_path: Path) -> None:
    command = ("index", docs, "--work", tmp_path / "w", *INDEX, "--ocr", "auto", "--ocr-language")
    error = refused(*command, "ko")
    assert "korean_PP-OCRv5_rec_mobile.onnx, which is not in" in error
    assert "download https://" in error
    assert "expected one of ar, " in refused(*command, "xx")
    assert "there is no such file" in refused(*command, tmp_path / "no.onnx")
    assert engine.greys_read() == []


def test_a_model_on_this_disk_is_used(engine: Engine, docs: Path, tmp_path: Path) -> None:
    models = engine.folder / "rapidocr" / "models"
    models.mkdir()
    model = models / "korean_PP-OCRv5_rec_mobile.onnx"
    model.write_bytes(b"a model")
    runtime = """
        class InferenceSession:
            def __init__(self, path, providers): pass
            def get_modelmeta(self):
                from types import SimpleNamespace
                return SimpleNamespace(custom_metadata_map={"character": "a"})
    """
    lines = [line[8:] for line in runtime.splitlines()]
    (engine.folder / "onnxruntime" / "__init__.py").write_text("\n".join(lines))
    command = ("render", docs, "--work", tmp_path / "w", *INDEX, "--ocr", "auto", "--ocr-language")
    first = artifact(mmrr(*command, "ko"))
    assert engine.model() == str(model)
    assert "korean_PP-OCRv5_rec_mobile.onnx" in manifest(first)["config"]["ocr"]
    copy = tmp_path / "my.onnx"
    copy.write_bytes(b"another model")
    assert artifact(mmrr(*command, copy)) != first
    assert engine.model() == str(copy)


# Blanks


def line_of(words: list[str], *, blank: int) -> tuple[Image.Image, list[float], list[tuple[int, int]]]:
    """A drawn line with blanks of this width in pixels, the centres of its characters, and the corners of its box."""
    font = ImageFont.load_default(20)
    image = Image.new("L", (600, 40), "white")
    draw = ImageDraw.Draw(image)
    x, centres = 10.0, []
    for word in words:
        for character in word:
            width = draw.textlength(character, font)
            draw.text((x, 8), character, "black", font)
            centres.append(x + width / 2)
            x += width
        x += blank
    right = int(x) - blank + 2
    return image, centres, [(8, 6), (right, 6), (right, 34), (8, 34)]


WORDS = ["Die", "Dauer", "des", "Mietvertrages", "betraegt", "zwei", "Jahre"]


@pytest.mark.parametrize(
    ("read", "blank", "expected"),
    [
        ("Die Dauer desMietvertrages betraegt zweiJahre", 7, " ".join(WORDS)),
        ("Die Dauer des Mietvertrages betraegt zwei Jahre", 7, " ".join(WORDS)),
        ("DieDauerdesMietvertragesbetraegtzweiJahre", 7, "DieDauerdesMietvertragesbetraegtzweiJahre"),  # no measure
    ],
)
def test_lost_blanks_are_put_back(read: str, blank: int, expected: str) -> None:
    image, centres, corners = line_of(WORDS, blank=blank)
    assert mend(read, centres, corners, image) == expected


def test_letters_and_numbers_are_not_parted() -> None:
    words = ["In", "1995", "11,150", "lit", "fill", "will", "it", "rij"]
    image, centres, corners = line_of(words, blank=7)
    assert mend(" ".join(words), centres, corners, image) == " ".join(words)


def test_a_line_that_does_not_fit_its_characters_stays() -> None:
    image, centres, corners = line_of(WORDS, blank=7)
    for wrong in (centres[1:], []):
        assert mend("desMietvertrages", wrong, corners, image) == "desMietvertrages"
    assert all(a < b for a, b in pairwise(centres))
