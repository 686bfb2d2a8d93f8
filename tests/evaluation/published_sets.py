"""Small data sets in the published schemas of benchmarks and training sets, in the Hub's cache layout.

Columns and types are those of the data set cards. A page is a picture of one shade, and its text has one rare word.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from PIL import Image

COMMIT = "0123456789abcdef" * 2 + "01234567"
#: The Image type of ``datasets`` in parquet.
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
WORDS = ("apple", "bridge", "candle", "dragon", "engine", "forest", "garden", "hammer")


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (shade, 255 - shade, 7)).save(file, "PNG")
    return file.getvalue()


def images(n: int) -> pa.Array:
    return pa.array([{"bytes": png(9 * i), "path": f"{i}.png"} for i in range(n)], IMAGE)


def table(**columns: Any) -> pa.Table:
    return pa.table(columns)


def card(tables: Mapping[str, str]) -> str:
    """A README.md that declares sub-datasets. ``tables``: {sub-dataset: split}."""
    lines = [
        f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {name}/{split}-*\n"
        for name, split in tables.items()
    ]
    return "---\nconfigs:\n" + "".join(lines) + "---\n"


class HubCache:
    """A folder in the layout of the Hub's cache: blobs, snapshots of links to them, and refs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, name: str, files: Mapping[str, bytes | str | pa.Table]) -> Path:
        """Add a data set, and return its snapshot."""
        folder = self.root / f"datasets--{name.replace('/', '--')}"
        snapshot = folder / "snapshots" / COMMIT
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(COMMIT)
        for path, content in files.items():
            if isinstance(content, pa.Table):
                file = io.BytesIO()
                pq.write_table(content, file)
                content = file.getvalue()
            data = content.encode() if isinstance(content, str) else content
            blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
            blob.write_bytes(data)
            target = snapshot / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(blob)
        return snapshot


def shard(name: str, split: str, n: int = 0, of: int = 1) -> str:
    return f"{name}/{split}-{n:05d}-of-{of:05d}.parquet"


def vidore_v2(cache: HubCache, name: str = "vidore/esg_reports_v2") -> Path:
    """Four pages in two shards; three English and three French queries; graded judgements as numbers with a point."""
    queries = table(
        **{
            "query-id": [0, 1, 2, 3, 4, 5],
            "query": [f"the {WORDS[i % 3]}?" for i in range(6)],
            "language": ["english"] * 3 + ["french"] * 3,
        }
    )
    qrels = table(
        **{
            "query-id": pa.array([0, 1, 1, 2, 3, 4, 5], pa.int64()),
            "corpus-id": pa.array([10, 11, 12, 13, 10, 11, 13], pa.int64()),
            "score": pa.array([1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0], pa.float64()),
        }
    )
    corpus = table(**{"corpus-id": pa.array([10, 11, 12, 13], pa.int64()), "image": images(4)})
    return cache.add(
        name,
        {
            "README.md": card({"corpus": "test", "queries": "test", "qrels": "test"}),
            shard("corpus", "test", 0, 2): corpus.slice(0, 3),
            shard("corpus", "test", 1, 2): corpus.slice(3),
            shard("queries", "test"): queries,
            shard("qrels", "test"): qrels,
        },
    )


def vidore_v3(cache: HubCache, name: str = "vidore/vidore_v3_hr") -> Path:
    """Underscores in the names, the document and the markdown of each page, and boxes in the judgements."""
    corpus = table(
        corpus_id=pa.array([1, 2, 3, 4], pa.int64()),
        image=images(4),
        doc_id=["a report", "a report", "b", "b"],
        markdown=[f"# the {word} of {word}" for word in WORDS[:4]],
        page_number_in_doc=[1, 2, 1, 2],
    )
    queries = table(
        query_id=[7, 8],
        query=[WORDS[1], WORDS[2]],
        language=["english", "french"],
        query_types=[["open"], ["open", "compare"]],
    )
    box = [{"annotator": 1, "x1": 0, "x2": 5, "y1": 0, "y2": 5}]
    qrels = table(query_id=[7, 8, 8], corpus_id=[2, 3, 1], score=[2, 2, 1], bounding_boxes=[box, box, box])
    return cache.add(
        name,
        {
            "README.md": card({"corpus": "test", "queries": "test", "qrels": "test"}),
            shard("corpus", "test"): corpus,
            shard("queries", "test"): queries,
            shard("qrels", "test"): qrels,
        },
    )


def vidore_pairs(cache: HubCache, name: str = "vidore/docvqa_test_subsampled") -> Path:
    """ViDoRe v1: an image twice, a query that comes again on another page, and a row without a query."""
    files = ["p/0.png", "p/1.png", "p/0.png", "p/2.png", "p/3.png"]
    rows = table(
        query=[WORDS[0], WORDS[1], WORDS[2], WORDS[0], None],
        image=pa.array([{"bytes": png(int(one[2])), "path": one} for one in files], IMAGE),
        image_filename=files,
        answer=["x"] * 5,
    )
    readme = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: data/test-*\n---\n"
    return cache.add(name, {"README.md": readme, "data/test-00000-of-00001.parquet": rows})


def visrag(cache: HubCache, name: str = "openbmb/VisRAG-Ret-Test-ChartQA") -> Path:
    """Ids that are file names with blanks; the split is called train."""
    corpus = table(**{"corpus-id": ["a b.png", "c.png"], "image": images(2)})
    queries = table(**{"query-id": ["a b.png-0", "c.png-1"], "query": ["one", "two"], "answer": ["1", "2"]})
    qrels = table(**{"query-id": ["a b.png-0", "c.png-1"], "corpus-id": ["a b.png", "c.png"], "score": [1, 1]})
    return cache.add(
        name,
        {
            "README.md": card({"corpus": "train", "queries": "train", "qrels": "train"}),
            shard("corpus", "train"): corpus,
            shard("queries", "train"): queries,
            shard("qrels", "train"): qrels,
        },
    )


def mteb_parts(cache: HubCache, name: str = "mteb/MIRACLRetrievalHardNegatives") -> Path:
    """A corpus of text for each language, in mteb's names."""
    files: dict[str, bytes | str | pa.Table] = {}
    tables = {}
    for language, words in (("sw", WORDS[:4]), ("yo", WORDS[4:])):
        texts = {
            "_id": [f"{language}#{i}" for i in range(4)],
            "title": [""] * 4,
            "text": [f"{word} x" for word in words],
        }
        files[shard(f"{language}-corpus", "dev")] = table(**texts)
        files[shard(f"{language}-queries", "dev")] = table(_id=["1", "2"], text=[words[1], words[2]])
        judged = {"query-id": ["1", "2"], "corpus-id": [f"{language}#1", f"{language}#3"], "score": [1, 1]}
        files[shard(f"{language}-qrels", "dev")] = table(**judged)
        tables |= {f"{language}-{kind}": "dev" for kind in ("corpus", "queries", "qrels")}
    return cache.add(name, {"README.md": card(tables), **files})


def beir_jsonl(folder: Path) -> Path:
    """BEIR as its archives hold it: JSON Lines and a table of judgements, without a card."""
    (folder / "qrels").mkdir(parents=True)
    documents = [
        {"_id": f"d{i}", "title": word, "text": f"about {word}", "metadata": {}} for i, word in enumerate(WORDS)
    ]
    documents[3]["metadata"] = {"url": "x"}
    write_lines(folder / "corpus.jsonl", documents)
    write_lines(folder / "queries.jsonl", [{"_id": f"q{i}", "text": WORDS[i]} for i in range(4)])
    judged = [("q0", "d0", 1), ("q1", "d2", 1), ("q2", "d2", 2), ("q2", "d5", 1)]
    rows = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in judged)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(rows) + "\n")
    return folder


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
