"""``mmrr rm`` and ``mmrr view``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image

from tests.cli.chain import QUESTION, Chain
from tests.console import (
    FP32,
    INDEX,
    THESIS,
    artifact,
    files,
    manifest,
    mmrr,
    refused,
    shards,
    write_documents,
)


def test_view_draws_the_kept_tokens(made: Chain, tmp_path: Path) -> None:
    picture = tmp_path / "kept.png"
    shown = mmrr("view", "thesis.pdf/0001", "--work", made.work, "--output", picture)
    assert shown.stdout.strip() == str(picture)
    assert Image.open(picture).size in {Image.open(page).size for page in made.work.rglob("0001.png")}


def test_view_draws_the_plain_page_where_nothing_was_pruned(tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", thesis=THESIS)
    mmrr("index", docs, "--work", tmp_path / "w", *INDEX)
    shown = mmrr("view", "thesis.pdf/0001", "--work", tmp_path / "w", "--output", tmp_path / "page.png")
    assert "no token was pruned: the plain page is drawn" in shown.stderr
    (stored,) = (tmp_path / "w").rglob("0001.png")
    assert Image.open(tmp_path / "page.png").convert("RGB").tobytes() == Image.open(stored).convert("RGB").tobytes()


def test_view_refuses_in_one_line(made: Chain, tmp_path: Path) -> None:
    view = ("view", "--work", made.work, "--output")
    message = refused(*view, tmp_path / "a.png", "soil.pdf/0099")
    assert message.endswith("no page soil.pdf/0099 in the index; soil.pdf has 3 pages: soil.pdf/0001 to soil.pdf/0003")
    assert "thesis.pdf has 2 pages: thesis.pdf/0001 to" in refused(*view, tmp_path / "a.png", "thesis.pdf")
    message = refused(*view, tmp_path / "a.png", "theses.pdf/0001")
    assert "no document 'theses.pdf' in the collection; the nearest are thesis.pdf" in message
    assert "expected a name that ends in .png" in refused(*view, tmp_path / "a.jpg", "thesis.pdf/0001")
    assert not list(tmp_path.glob("a.*"))


def test_rm_takes_what_nothing_needs_and_refuses_the_rest(chain: Chain) -> None:
    cached = chain.precache("--keep", "0.25")
    heavy = shards(chain.work, "precache")
    mmrr("rm", f"precache/{cached.name}", "--work", chain.work)
    assert not cached.exists()
    assert (
        len(shards(chain.work, "precache")) == len(heavy) - 2
    )  # one per document; the instruction's shard is still used
    old = chain.rerank("--from", f"precache/{precaches(chain)[0]}")
    assert old.exists()

    name = f"precache/{precaches(chain)[0]}"
    message = refused("rm", name, "--work", chain.work)
    assert "is needed by rerank/" in message
    assert "--cascade" in message
    assert (chain.work / name).exists()
    mmrr("rm", name, "--work", chain.work, "--cascade")
    assert precaches(chain) == []
    assert shards(chain.work, "precache") == set()
    assert list((chain.work / "rerank").glob("*/")) == []
    assert "mmrr precache" in refused("rerank", QUESTION, "--work", chain.work)


def precaches(chain: Chain) -> list[str]:
    return [path.name for path in (chain.work / "precache").glob("*/")]


def test_rm_without_names_takes_only_what_nothing_lists(chain: Chain) -> None:
    before = files(chain.work)
    mmrr("rm", "--work", chain.work)
    assert files(chain.work) == before
    stray = chain.work / "shards" / "precache" / ("0" * 24)
    stray.mkdir()
    (stray / "shard.json").write_text("{}")
    assert "removed 1 unused shard" in mmrr("rm", "--work", chain.work).stderr
    assert files(chain.work) == before


def test_rm_deletes_a_document_with_everything_that_was_made_of_it(chain: Chain, no_models: None) -> None:
    before = {stage: shards(chain.work, stage) for stage in ("pages", "embed", "prune", "precache")}
    removed = mmrr("rm", "--document", "soil.pdf", "--work", chain.work)
    assert "1 document: 1 removed, 1 unchanged; 2 pages" in removed.stderr
    assert "freed" in removed.stderr
    for stage, keys in before.items():
        left = shards(chain.work, stage)
        assert left < keys
        assert len(left) == (2 if stage == "precache" else 1)  # the cache of the instruction is one more
    for stage in ("retrieve", "rerank", "eval"):
        assert not [path for path in (chain.work / stage).glob("*/") if "pages" in manifest(path)["inputs"]]
    # No text, no image name and no listing of it is left. The cache of file hashes knows paths alone.
    for path in chain.work.rglob("*"):
        if path.is_file() and path.name != "hashes.json":
            assert not any(word in path.read_bytes() for word in (b"Rainfall", b"rainfall", b"soil.pdf")), path
    current = json.loads((chain.work / "head.json").read_text())
    assert set(current) == {"pages", "embed", "index", "prune", "precache"}
    assert (
        artifact(mmrr("precache", "--work", chain.work, "--scorer-model", chain.reranker, *FP32)).name
        == (current["precache"])
    )
    assert "all as written" in mmrr("verify", "--work", chain.work).stdout
    mmrr("rm", "--work", chain.work)
    assert {stage: len(shards(chain.work, stage)) for stage in before} == {
        "pages": 1,
        "embed": 1,
        "prune": 1,
        "precache": 2,
    }


def test_rm_keeps_what_another_document_needs_and_removes_earlier_listings(chain: Chain) -> None:
    shutil.copyfile(chain.docs / "soil.pdf", chain.docs / "copy.pdf")
    chain.index()
    earlier = {path.name for path in (chain.work / "precache").glob("*/")}
    mmrr("rm", "--document", "soil.pdf", "--work", chain.work)
    assert len(shards(chain.work, "pages")) == 2  # copy.pdf has the same pages
    assert len(shards(chain.work, "precache")) == 2  # the caches of an earlier collection, without the document
    assert {path.name for path in (chain.work / "precache").glob("*/")}.isdisjoint(earlier)
    assert b"soil.pdf" not in b"".join(path.read_bytes() for path in chain.work.glob("*/*/manifest.json"))
    mmrr("rm", "--document", "copy.pdf", "--work", chain.work)
    assert len(shards(chain.work, "pages")) == 1


def test_rm_names_the_work_of_an_interrupted_command(chain: Chain) -> None:
    interrupted = chain.work / "shards" / "precache" / ("0" * 24)
    interrupted.mkdir()
    (interrupted / "shard.json").write_text("{}")
    eval_ = next((chain.work / "eval").glob("*/"))
    kept = mmrr("rm", f"eval/{eval_.name}", "--work", chain.work).stderr
    assert "kept 1 shard (2 B) of commands that were interrupted, which continue from there" in kept
    assert interrupted.exists()
    taken = mmrr("rm", "--work", chain.work).stderr
    assert "removed 1 unused shard (1 of precache); " in taken
    assert "no artifact listed them: a command that was interrupted computes them again" in taken
    assert not interrupted.exists()
