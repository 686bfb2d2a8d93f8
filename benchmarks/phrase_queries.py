"""Writes queries that are phrases of the pages' own text: they tell the cost of reading from that of understanding.

``W`` is a workspace with pages. For each document, the script takes up to seven phrases of three to six words from one
line of a page's text layer, whose words occur together on no other page of the document. It writes ``queries.jsonl``
and ``qrels.trec`` to ``OUT``, for ``mmrr rerank --scope document`` and ``mmrr eval``.

    python -m benchmarks.phrase_queries W OUT

Used in the lab log (docs/lab-log.md); no section of BENCHMARKS.md reports it now.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from mmrr.training.data.cell_targets import fold
from mmrr.training.data.queries import MAX_CHARACTERS
from mmrr.workspace.pages import load, read_texts
from mmrr.workspace.store import Workspace

PHRASES_PER_DOCUMENT, SEED = 7, 0
#: A page with fewer different words is a scan, a picture or a title page.
MIN_WORDS = 40


def phrase(line: list[str], rng: random.Random) -> str | None:
    """Three to six consecutive words of a line; None if they have too few letters or too few different words."""
    n = rng.randint(3, min(6, len(line)))
    start = rng.randrange(len(line) - n + 1)
    text = " ".join(line[start : start + n])
    letters = sum(c.isalpha() and c.isascii() for c in text)
    return text if letters >= 10 and len(word_set(text)) >= 3 and len(text) <= MAX_CHARACTERS else None


def word_set(text: str) -> set[str]:
    """The different words of a text, folded."""
    return {fold(word) for word in text.split()} - {""}


def document_phrases(texts: dict[int, str], rng: random.Random) -> Iterator[tuple[int, str]]:
    """(row of the page, phrase) for one document; ``texts``: its pages' texts by row."""
    rows = list(texts)
    words = {row: word_set(text) for row, text in texts.items()}
    turns, made = rows * 3, 0
    rng.shuffle(turns)
    for row in turns:
        lines = [line.split() for line in texts[row].splitlines() if len(line.split()) >= 3]
        if made == PHRASES_PER_DOCUMENT or len(words[row]) < MIN_WORDS or not lines:
            continue
        text = phrase(rng.choice(lines), rng)
        if text is not None and sum(word_set(text) <= words[other] for other in rows) == 1:
            made += 1
            yield row, text


def main(folder: Path, out: Path) -> None:
    rng, queries, qrels = random.Random(SEED), [], []
    with Workspace.open(folder) as workspace:
        manifest = workspace.current("pages")
        if manifest is None:
            raise SystemExit(f"{folder} has no pages; run mmrr index")
        collection = load(workspace, manifest)
        texts = read_texts(workspace, collection)
    for document, rows in sorted(collection.rows.items()):
        for n, (row, text) in enumerate(document_phrases({row: texts[row] for row in rows}, rng)):
            query_id = f"{document}#p{n}"
            queries.append({"query_id": query_id, "text": text, "doc_id": document})
            qrels.append(f"{query_id} 0 {collection.pages[row].page_id} 1")
    out.mkdir(parents=True, exist_ok=True)
    (out / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries), "utf-8")
    (out / "qrels.trec").write_text("".join(f"{line}\n" for line in qrels), "utf-8")
    print(f"{len(queries)} phrases of {len({query['doc_id'] for query in queries})} documents")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
