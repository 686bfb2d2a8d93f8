"""Query ids that begin with a byte order mark: a file that begins with one is read without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrr.errors import MmrrError
from mmrr.evaluation.trec import read_qrels, read_run, write_qrels, write_run
from mmrr.types import Hit
from tests.console import INDEX, THESIS, mmrr, refused, write_documents, write_queries


def test_a_query_id_that_begins_with_a_byte_order_mark_is_refused(tmp_path: Path) -> None:
    write_documents(tmp_path / "docs", a=THESIS)
    mmrr("index", tmp_path / "docs", "--work", tmp_path / "w", *INDEX)
    queries = write_queries(tmp_path / "q.jsonl", ("q0", "cover"), ("\ufeffq1", "thesis"))
    message = refused("retrieve", "--queries", queries, "--work", tmp_path / "w")
    assert "q.jsonl, line 2: found the query_id '\\ufeffq1', expected one without a byte order mark" in message


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "q.run"
    path.write_bytes(b"\xef\xbb\xbfq1 Q0 a/0001 1 2.0 x\nq1 Q0 a/0002 2 1.0 x\n")
    assert read_run(path) == {"q1": [Hit("a/0001", 2.0), Hit("a/0002", 1.0)]}
    path.write_bytes(path.read_bytes() * 2)  # two files joined: the second mark is in the middle
    with pytest.raises(MmrrError, match=r"line 3: found the query_id '\\ufeffq1', expected one without a byte order"):
        read_run(path)
    path.write_text("q0 0 a/0001 1\n\ufeffq1 0 a/0001 1\n")
    with pytest.raises(MmrrError, match="line 2: found the query_id"):
        read_qrels(path)


def test_no_file_is_written_that_would_be_read_otherwise(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        with pytest.raises(MmrrError, match="byte order mark"):
            write_run({"\ufeffq1": [Hit("a/0001", 1.0)]}, file)
        with pytest.raises(MmrrError, match="byte order mark"):
            write_qrels({"\ufeffq1": {"a/0001": 1}}, file)
        write_run({"q1": [Hit("\ufeffa/0001", 1.0)]}, file)  # a page id is never first in a file
    assert read_run(tmp_path / "out") == {"q1": [Hit("\ufeffa/0001", 1.0)]}
