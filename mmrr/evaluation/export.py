"""Writes queries and judgements as files that other tools read: BEIR's queries and qrels, and TREC's qrels."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmrr.errors import MmrrError
from mmrr.evaluation.trec import write_qrels
from mmrr.types import Qrels, Query
from mmrr.workspace.files import write_atomically

#: The files of an export.
QUERIES, TREC_QRELS, BEIR_QRELS = "queries.jsonl", "qrels.trec", "qrels.tsv"


def write_benchmark(
    folder: Path, queries: Sequence[Query], qrels: Qrels, fields: Mapping[str, Mapping[str, str]] | None = None
) -> list[Path]:
    """Write ``queries.jsonl``, ``qrels.trec`` and ``qrels.tsv`` (BEIR's form) into ``folder``; makes the folder.

    ``fields``: {field: {query_id: value}}, such as the domain of each query. ``read_queries`` and ``read_qrels`` read
    all three files. Existing files of these names are replaced. Raises MmrrError for a judged query without a text, for
    an id with whitespace, and for a folder that cannot be made.
    """
    texts = {query.query_id for query in queries}
    missing = [query_id for query_id in qrels if query_id not in texts]
    if missing:
        raise MmrrError(
            f"{len(missing)} of {len(qrels)} judged queries have no text, such as {missing[0]}; "
            "expected each judged query in the file of queries"
        )
    trec = io.StringIO()
    write_qrels(qrels, trec)
    records = []
    for query in queries:
        extra = {field: values[query.query_id] for field, values in (fields or {}).items() if query.query_id in values}
        document = {} if query.doc_id is None else {"doc_id": query.doc_id}
        records.append({"_id": query.query_id, "text": query.text, **document, **extra})
    beir = [f"{query_id}\t{page_id}\t{grade}" for query_id, pages in qrels.items() for page_id, grade in pages.items()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MmrrError(f"--export {folder}: cannot make this folder ({error.strerror})") from error
    contents = {
        QUERIES: "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records),
        TREC_QRELS: trec.getvalue(),
        BEIR_QRELS: "\n".join(["query-id\tcorpus-id\tscore", *beir]) + "\n",
    }
    for name, text in contents.items():
        write_atomically(folder / name, text)
    return [folder / name for name in contents]
