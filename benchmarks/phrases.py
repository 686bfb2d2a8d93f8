"""Asks real pages for their own words, to tell what reading costs a ranking from what understanding does.

``python -m benchmarks.phrases W OUT``: up to seven phrases of each document of the workspace W, three to six words of
one line of a page's text layer, all of which stand on no other page of the document; OUT gets queries.jsonl and
qrels.trec, for ``mmrr rerank --scope document`` and ``mmrr eval``.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from mmrr.training.data.cell_targets import fold
from mmrr.training.data.queries import MAX_CHARACTERS
from mmrr.workspace.pages import load, read_texts
from mmrr.workspace.store import Workspace

A_DOCUMENT, SEED = 7, 0
#: Pages with fewer different words are scans, pictures or title pages.
LEAST_WORDS = 40


def of_line(line: list[str], rng: random.Random) -> str | None:
    n = rng.randint(3, min(6, len(line)))
    at = rng.randrange(len(line) - n + 1)
    text = " ".join(line[at : at + n])
    letters = sum(c.isalpha() and c.isascii() for c in text)
    different = {fold(word) for word in line[at : at + n]} - {""}
    return text if letters >= 10 and len(different) >= 3 and len(text) <= MAX_CHARACTERS else None


def main(folder: Path, out: Path) -> None:
    rng, queries, judged = random.Random(SEED), [], []
    with Workspace.open(folder) as workspace:
        manifest = workspace.current("pages")
        if manifest is None:
            raise SystemExit(f"{folder} has no pages; run mmrr index")
        collection = load(workspace, manifest)
        texts = read_texts(workspace, collection)
    for document, rows in sorted(collection.rows.items()):
        words = {row: {fold(word) for word in texts[row].split()} - {""} for row in rows}
        turns, made = rows * 3, 0
        rng.shuffle(turns)
        for row in turns:
            lines = [line.split() for line in texts[row].splitlines() if len(line.split()) >= 3]
            if made == A_DOCUMENT or len(words[row]) < LEAST_WORDS or not lines:
                continue
            text = of_line(rng.choice(lines), rng)
            if text is None or sum({fold(word) for word in text.split()} - {""} <= words[i] for i in rows) != 1:
                continue
            name, made = f"{document}#p{made}", made + 1
            queries.append({"query_id": name, "text": text, "doc_id": document})
            judged.append(f"{name} 0 {collection.pages[row].page_id} 1")
    out.mkdir(parents=True, exist_ok=True)
    (out / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries), "utf-8")
    (out / "qrels.trec").write_text("".join(f"{line}\n" for line in judged), "utf-8")
    print(f"{len(queries)} phrases of {len({query['doc_id'] for query in queries})} documents")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
