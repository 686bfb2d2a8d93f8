"""Benchmarks in their published schemas, from the Hub's cache without a network: documents, queries and judgements."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from mmrr.errors import MmrrError
from mmrr.evaluation import benchmarks, hub_dataset
from mmrr.evaluation.benchmarks import entries, find
from mmrr.evaluation.published import Published, open_published
from tests.evaluation import published_sets as sets
from tests.evaluation.published_sets import HubCache, png


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return HubCache(tmp_path / "hub")


def opened(name: str, **options: Any) -> Published:
    return open_published(find(name), **options)


def test_vidore_v2_has_shards_languages_and_graded_judgements(cache: HubCache) -> None:
    sets.vidore_v2(cache)
    found = opened("vidore-v2/esg-reports")
    assert [(page.doc_id, page.number, page.image, page.text) for page in found.pages()] == [
        ("esg-reports", i + 1, png(9 * i), "") for i in range(4)
    ]
    assert found.qrels()["1"] == {"esg-reports/0002": 2, "esg-reports/0003": 1}
    assert (found.configs, found.measure, found.has_images) == (("english", "french"), "nDCG@5", True)
    french = opened("vidore-v2/esg-reports", config="french")
    assert [query.query_id for query in french.queries] == ["3", "4", "5"] == list(french.qrels())
    assert [query.query_id for query in opened("mmeb-visdoc/ViDoRe_esg_reports_v2").queries] == ["0", "1", "2"]
    quick = opened("vidore-v2/esg-reports", limit=1)
    assert quick.partial == "1 of 6 queries over 4 of 4 documents"
    with pytest.raises(MmrrError, match="has no part welsh, expected one of english, french"):
        opened("vidore-v2/esg-reports", config="welsh")
    with pytest.raises(MmrrError, match="vidore-v2 is a group of benchmarks: name one of vidore-v2/esg-reports, "):
        opened("vidore-v2")


def test_an_unnamed_set_is_read_like_a_named_one(cache: HubCache) -> None:
    sets.vidore_v2(cache, "someone/pages")
    found = opened("someone/pages")
    assert found.qrels()["2"] == {"pages/0004": 1}
    assert found.measure == "nDCG@5"


def test_vidore_v3_keeps_documents_and_reads_their_text(cache: HubCache) -> None:
    sets.vidore_v3(cache)
    found = opened("vidore-v3/hr")
    assert [(page.doc_id, page.number, page.text) for page in found.pages()] == [
        ("a_report", 1, "# the apple of apple"),
        ("a_report", 2, "# the bridge of bridge"),
        ("b", 1, "# the candle of candle"),
        ("b", 2, "# the dragon of dragon"),
    ]
    assert found.qrels() == {"7": {"a_report/0002": 2}, "8": {"b/0001": 2, "a_report/0001": 1}}
    assert found.config_of == {"7": "english", "8": "french"}
    assert found.documents


def test_vidore_v1_is_pairs(cache: HubCache) -> None:
    """As ViDoRe's own evaluation: images by file name, queries by text, judged by the last row of a query."""
    sets.vidore_pairs(cache)
    found = opened("vidore-v1/docvqa")
    assert [(page.number, page.image) for page in found.pages()] == [(i + 1, png(i)) for i in range(4)]
    assert [query.text for query in found.queries] == ["apple", "bridge", "candle"]
    assert found.qrels() == {"q1": {"docvqa/0003": 1}, "q2": {"docvqa/0002": 1}, "q3": {"docvqa/0001": 1}}


def test_visrag_has_ids_with_blanks(cache: HubCache) -> None:
    sets.visrag(cache)
    found = opened("visrag/chartqa")
    assert (found.split, found.measure) == ("train", "R@10")
    assert found.qrels() == {"a_b.png-0": {"chartqa/0001": 1}, "c.png-1": {"chartqa/0002": 1}}


def test_miracl_has_a_corpus_for_each_language(cache: HubCache) -> None:
    sets.mteb_parts(cache)
    with pytest.raises(MmrrError, match="has a corpus for each of sw, yo; choose one with --config"):
        opened("miracl/hard-negatives")
    found = opened("miracl/hard-negatives", config="yo")
    assert next((page.image, page.text) for page in found.pages()) == (None, "engine x")
    assert found.qrels() == {"1": {"hard-negatives/0002": 1}, "2": {"hard-negatives/0004": 1}}


def test_beir_without_a_card_in_json_lines_and_parquet(tmp_path: Path) -> None:
    folder = sets.beir_jsonl(tmp_path / "mini beir")
    found = opened(str(folder))
    assert next(found.pages()).text == "apple\nabout apple"
    assert found.qrels()["q2"] == {"mini_beir/0003": 2, "mini_beir/0006": 1}
    assert found.measure == "nDCG@10"
    (folder / "qrels" / "test.tsv").write_text("q0 0 d7 1\n")  # TREC's form
    assert opened(str(folder)).qrels() == {"q0": {"mini_beir/0008": 1}}


def test_queries_that_are_images(cache: HubCache) -> None:
    queries = sets.table(id=["q0", "q1"], image=sets.images(2))
    judged = {"query-id": ["q0", "q1"], "corpus-id": ["10", "11"], "score": [1, 1]}
    for name in ("mteb/flickr30ki2t", "someone/photos"):
        snapshot = sets.vidore_v2(cache, name)
        for table in ("queries", "qrels"):
            (snapshot / sets.shard(table, "test")).unlink()
        files = {sets.shard("queries", "test"): queries, sets.shard("qrels", "test"): sets.table(**judged)}
        cache.add(name, files)
    asked = [(query.text, query.image and query.image.source) for query in opened("someone/photos").queries]
    assert asked == [("", png(0)), ("", png(9))]
    with pytest.raises(MmrrError, match="flickr30k/i2t asks with images for texts, which no search and no scorer"):
        opened("flickr30k/i2t")


def test_images_are_streamed(cache: HubCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first page is there before the other batches of its file are read, though the file is one row group."""
    snapshot = sets.vidore_v3(cache)
    assert pq.ParquetFile(snapshot / sets.shard("corpus", "test")).num_row_groups == 1
    read: list[int] = []
    batches = pq.ParquetFile.iter_batches

    def counted(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for batch in batches(self, *args, **kwargs):
            read.extend([batch.num_rows] if batch.schema.names == ["image"] else [])
            yield batch

    monkeypatch.setattr(hub_dataset, "_BATCH_IMAGES", 1)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    pages = opened("vidore-v3/hr").pages()
    assert read == []
    assert next(pages).number == 1
    assert read == [1]


def test_files_that_are_missing_from_the_cache(cache: HubCache) -> None:
    with pytest.raises(MmrrError, match="found no vidore/esg_reports_v2 in the cache, and HF_HUB_OFFLINE is set"):
        opened("vidore-v2/esg-reports")
    snapshot = sets.vidore_v2(cache)
    (snapshot / sets.shard("corpus", "test", 1, 2)).unlink()
    with pytest.raises(MmrrError, match=r"vidore/esg_reports_v2: found 1 of 2 files of corpus; download the others"):
        opened("vidore-v2/esg-reports")


def test_a_set_of_another_shape(tmp_path: Path) -> None:
    with pytest.raises(MmrrError, match="found no benchmark, folder or file nothing, expected"):
        opened("nothing")
    sets.write_lines(tmp_path / "pairs.jsonl", [{"query": "a", "label": 1}])
    with pytest.raises(MmrrError, match="found no column image in default"):
        opened(str(tmp_path / "pairs.jsonl"))
    sets.write_lines(tmp_path / "pairs.jsonl", [{"query": "a", "image": "../secret.png"}])
    with pytest.raises(MmrrError, match=r"pairs.jsonl, row 1: found no image '../secret.png' inside"):
        list(opened(str(tmp_path / "pairs.jsonl")).pages())


def test_the_list_is_complete() -> None:
    known = entries()
    assert {"mmdocir", "vidore-v1/arxivqa", "vidore-v2/esg-reports", "vidore-v3/physics", "visrag/plotqa"} <= set(known)
    assert {"flickr30k/t2i", "flickr30k/i2t", "coco/t2i", "beir/scifact", "miracl/hard-negatives"} <= set(known)
    assert sum(name.startswith("mmeb-visdoc/") for name in known) == 27
    for entry in known.values():
        assert entry.hub.count("/") == 1, entry
        assert entry.measure, entry
        assert entry.licence, entry
        assert entry.about, entry


def test_a_new_benchmark_is_a_short_file(tmp_path: Path) -> None:
    sets.beir_jsonl(tmp_path / "data")
    own = tmp_path / "own.toml"
    own.write_text('[mine]\nhub = "data"\nmeasure = "R@1"\ninstruction = "Find it."\n')
    found = opened(str(own))
    assert (found.entry.name, found.measure, found.entry.instruction) == ("mine", "R@1", "Find it.")
    assert found.qrels()["q0"] == {"mine/0001": 1}
    own.write_text('[mine]\nhub = "data"\nmesure = "R@1"\n')
    with pytest.raises(MmrrError, match=r"own.toml: mine has the key mesure, expected one of hub, form"):
        benchmarks.find(str(own))


def test_a_mistyped_name_of_a_group_is_no_hub_id() -> None:
    with pytest.raises(MmrrError, match="close: vidore-v2/esg-reports"):
        find("vidore-v2/esg-report")
