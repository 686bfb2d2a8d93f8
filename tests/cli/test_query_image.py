"""Images as queries, from the command line and from a file of queries: ``mmrr retrieve`` and ``mmrr rerank``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from mmrr.evaluation.trec import read_queries
from mmrr.queries import fingerprinted, identity, query_image
from mmrr.types import Query
from tests.cli.chain import QUESTION, Chain
from tests.cli.conftest import Prepared
from tests.console import FP32, artifact, manifest, misused, mmrr, refused


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two images, ``a.png`` and ``b.jpg``, and a file of queries that names them."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in (("a.png", "navy"), ("b.jpg", "orange")):
        image = Image.new("RGB", (190, 130), "white")
        ImageDraw.Draw(image).rectangle((20, 30, 120, 90), fill=colour)
        image.save(folder / name)
    lines = [
        {"query_id": "alone", "image": "a.png"},
        {"query_id": "a", "text": QUESTION, "image": "a.png"},
        {"query_id": "b", "text": QUESTION, "image": "b.jpg"},
        {"query_id": "text", "text": QUESTION},
    ]
    (folder / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_file_of_queries_may_have_images(
    chain: Chain, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("rerank", "--work", chain.work, "--queries", pictures / "q.jsonl", "--json")
    first = mmrr(*asked)
    assert "an image without a text is found by sight; words are left out" in first.stderr
    answers = {answer["query_id"]: answer for answer in json.loads(first.stdout)["queries"]}
    assert answers["a"]["image"].endswith("a.png")
    assert "image" not in answers["text"]
    scores = {name: {row["page_id"]: row["logit"] for row in answer["results"]} for name, answer in answers.items()}
    assert len(scores["alone"]) == 5
    for one, other in [("a", "b"), ("a", "alone"), ("a", "text")]:  # image and text both count
        assert any(abs(scores[one][page] - scores[other][page]) > 1e-3 for page in scores[one].keys() & scores[other])
    # The artifact holds the images, so the scores are checked without the files of the user.
    stored = chain.work / "retrieve" / manifest(Path(json.loads(first.stdout)["artifact"]))["inputs"]["retrieve"]
    assert read_queries(stored / "queries.jsonl", images=True) == read_queries(pictures / "q.jsonl", images=True)
    assert "largest difference" in mmrr("verify", "--work", chain.work, "--rescore", 20).stdout

    # Nothing is computed again for the same content under another name; text alone has the key that it always had.
    moved = shutil.copytree(pictures, tmp_path / "moved")
    (moved / "a.png").rename(moved / "other.png")
    (moved / "q.jsonl").write_text((moved / "q.jsonl").read_text().replace("a.png", "other.png"))

    def loaded(*_: object) -> None:
        raise AssertionError("a model was loaded for work that was done before")

    monkeypatch.setattr("mmrr.embedders.qwen3_vl.Embedder.__init__", loaded)
    monkeypatch.setattr("mmrr.scorers.minireranker.Scorer.__init__", loaded)
    again = mmrr("rerank", "--work", chain.work, "--queries", moved / "q.jsonl", "--json")
    assert json.loads(again.stdout)["artifact"] == json.loads(first.stdout)["artifact"]
    assert fingerprinted([Query("q", "x", "d")]) == [("q", "x", "d")]
    assert identity(Query("q", "x"), 64) == ("x",)


def test_one_image_on_the_command_line(made: Chain, pictures: Path) -> None:
    found = mmrr("retrieve", "--work", made.work, "--query-image", pictures / "a.png", "--json")
    (answer,) = json.loads(found.stdout)["queries"]
    assert (answer["text"], answer["image"]) == ("", str(pictures / "a.png"))
    both = mmrr("rerank", QUESTION, "--work", made.work, "--query-image", pictures / "a.png")
    assert f"a.png] {QUESTION}" in " ".join(both.stdout.split())
    assert artifact(both).parent.name == "rerank"
    model = ("--scorer-model", made.reranker, *FP32)
    ranked = mmrr("rerank", "--images", pictures, "--query-image", pictures / "a.png", *model, "--json")
    assert len(json.loads(ranked.stdout)["queries"][0]["results"]) == 2


def test_a_run_takes_its_query_as_an_image(made: Chain, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "one.trec").write_text("q7 Q0 soil.pdf/0003 1 2 x\n")
    found = mmrr(
        "rerank", "--run", tmp_path / "one.trec", "--work", made.work, "--query-image", pictures / "b.jpg", "--json"
    )
    (answer,) = json.loads(found.stdout)["queries"]
    assert (answer["query_id"], len(answer["results"])) == ("q7", 1)


def test_an_index_without_page_vectors(prepared: Prepared, pictures: Path) -> None:
    line = refused("retrieve", "--work", prepared.work, "--query-image", pictures / "a.png")
    assert "needs page vectors, and this index has none; run mmrr index with --embedder" in line
    found = mmrr("retrieve", QUESTION, "--work", prepared.work, "--query-image", pictures / "a.png")
    assert "pages are found by the text of a query, not by its image: words alone" in found.stderr


def test_what_is_no_image_is_one_line(made: Chain, pictures: Path, tmp_path: Path) -> None:
    place = ("--work", made.work)
    (tmp_path / "text.png").write_text("no image")
    large = Image.new("1", (20_000, 10_000))
    large.save(tmp_path / "large.png")
    for name, problem in [
        ("gone.png", "found no such file; expected an image"),
        ("text.png", "cannot be read as an image"),
        ("large.png", "Image size (200000000 pixels) exceeds limit"),
        (".", "found no such file; expected an image"),
    ]:
        assert problem in refused("retrieve", *place, "--query-image", tmp_path / name)
    line = refused("retrieve", *place, "--query-image", pictures / "a.png", "--first-stage", "words")
    assert "finding it needs sight, and this search uses words alone" in line
    line = refused("retrieve", *place, "--query-image", pictures / "a.png", "--queries", made.queries)
    assert "expected either one query on the command line or --queries FILE" in line
    kalm = ("rerank", *place, "--query-image", pictures / "a.png", "--scorer", "kalm", "--scorer-model", "small-kalm")
    assert "the scorer kalm takes no image as a query; these do: minireranker" in refused(*kalm)
    assert "No such option" in misused("prune", "--query-image", pictures / "a.png")


def test_a_file_of_queries_reads_images_of_its_folder_alone(made: Chain, pictures: Path, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    shutil.copy(pictures / "a.png", tmp_path / "outside.png")
    (inside / "link.png").symlink_to(tmp_path / "outside.png")
    for value, problem in [
        ("../outside.png", "expected a file in the folder of q.jsonl"),
        (str(tmp_path / "outside.png"), "expected a file in the folder of q.jsonl"),
        ("link.png", "expected a file in the folder of q.jsonl"),
        ("gone.png", "gone.png: found no such file"),
        ("q.jsonl", "q.jsonl cannot be read as an image"),
        ("https://example.org/a.png", "found no such file"),
        ("data:text/plain,x", "expected data:image/"),
        (7, "found a number under image"),
        ("a\0b", "expected a file in the folder"),
    ]:
        (inside / "q.jsonl").write_text(json.dumps({"query_id": "q", "text": "x", "image": value}))
        line = refused("retrieve", "--work", made.work, "--queries", inside / "q.jsonl")
        assert "q.jsonl, line 1: " in line
        assert problem in line


def test_a_file_that_changes_is_noticed(tmp_path: Path, pictures: Path) -> None:
    from mmrr.errors import MmrrError
    from mmrr.queries import pixels

    shutil.copy(pictures / "a.png", tmp_path / "x.png")
    image = query_image(tmp_path / "x.png")
    assert query_image((tmp_path / "x.png").read_bytes()) == image
    shutil.copy(pictures / "b.jpg", tmp_path / "x.png")
    with pytest.raises(MmrrError, match=r"x.png changed while it was used as a query; ask again"):
        pixels(image, 64)
