"""Files of runs, qrels and queries: reading returns what was written, and errors name the line."""

from __future__ import annotations

import io
import itertools
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from mmrr.errors import MmrrError
from mmrr.evaluation.trec import EXACT, read_qrels, read_queries, read_run, save_run, write_qrels, write_run
from mmrr.evaluation.trec import RUN as TREC_RUN
from mmrr.types import Hit, Query, Run

Read = Callable[[Path], object]

RUN: Run = {
    "q2": [Hit("d/0002", 0.1 + 0.2), Hit("d/0001", -1e-300)],
    "q1": [Hit("é/0001", math.inf), Hit("d/0003", 1.0), Hit("d/0007", 1.0), Hit("d/0002", -math.inf)],
}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


class TestRun:
    def test_written_in_six_columns_from_rank_1(self) -> None:
        file = io.StringIO()
        write_run({"q": [Hit("d/0002", 0.1 + 0.2), Hit("d/0001", 2)]}, file, tag="test")
        assert file.getvalue() == "q Q0 d/0001 1 2.0 test\nq Q0 d/0002 2 0.30000000000000004 test\n"

    def test_read_back_exactly(self, tmp_path: Path) -> None:
        file = io.StringIO()
        assert not write_run(RUN, file, exact=True)
        run = read_run(write(tmp_path / "run.trec", file.getvalue()))
        assert run == RUN
        assert list(run) == ["q2", "q1"]

    def test_equal_scores_are_moved_apart_and_the_ranking_stays(self, tmp_path: Path) -> None:
        file = io.StringIO()
        assert write_run(RUN, file)
        run = read_run(write(tmp_path / "run.trec", file.getvalue()))
        assert run["q2"] == RUN["q2"]
        assert run["q1"] == [RUN["q1"][0], Hit("d/0003", 1.0), Hit("d/0007", 1 - 2**-24), RUN["q1"][3]]

    @pytest.mark.parametrize("score", [0.5797829031944275, 0.0, -0.0, -3.5, 1e-40, 1e30, -1e30, 3.4e38])
    def test_the_last_of_nine_equal_scores_changes_by_eight_steps_of_float32(
        self, tmp_path: Path, score: float
    ) -> None:
        tied = {"q": [Hit(f"d/{n:04d}", score) for n in range(1, 10)]}
        file = io.StringIO()
        write_run(tied, file)
        run = read_run(write(tmp_path / "run.trec", file.getvalue()))["q"]
        assert [hit.page_id for hit in run] == [hit.page_id for hit in tied["q"]]
        single = [struct.unpack("f", struct.pack("f", hit.score))[0] for hit in run]
        assert all(above > below for above, below in itertools.pairwise(single))
        assert run[0].score == score
        assert score - run[8].score == pytest.approx(0, abs=max(1.5e-44, 8 * 1.2e-7 * abs(score)))

    def test_scores_that_differ_only_in_float64_are_moved_apart(self) -> None:
        file = io.StringIO()
        assert write_run({"q": [Hit("b", 0.1 + 1e-12), Hit("a", 0.1)]}, file)
        scores = [float(line.split()[4]) for line in file.getvalue().splitlines()]
        assert scores[0] == 0.1 + 1e-12
        assert 0 < scores[0] - scores[1] < 2e-8

    def test_an_artifact_keeps_the_scores_that_were_computed(self, tmp_path: Path) -> None:
        save_run({"q": [Hit("a", 1.0), Hit("b", 0.5)]}, tmp_path)
        assert not (tmp_path / EXACT).exists()
        tied = {"q": [Hit("a", 1.0), Hit("b", 1.0)]}
        save_run(tied, tmp_path)
        assert read_run(tmp_path / EXACT) == tied
        assert read_run(tmp_path / TREC_RUN)["q"][1].score < 1.0

    def test_equal_scores_below_float32_are_refused(self) -> None:
        with pytest.raises(MmrrError, match="expected scores within float32"):
            write_run({"q": [Hit("a", -math.inf), Hit("b", -math.inf)]}, io.StringIO())

    def test_order_is_by_score_then_page_and_ignores_ranks(self, tmp_path: Path) -> None:
        lines = "q Q0 b 1 1.0 t\nq Q0 c 2 2.5 t\n\n  \nq\tQ0\ta\t3\t1.0\tt\r\n"
        assert read_run(write(tmp_path / "run.trec", lines)) == {"q": [Hit("c", 2.5), Hit("a", 1.0), Hit("b", 1.0)]}

    def test_a_line_separator_inside_a_line_ends_no_line(self, tmp_path: Path) -> None:
        lines = "q Q0 a 1 1.0 t\u2028q Q0 b\n"
        with pytest.raises(MmrrError, match=r"run\.trec, line 1: found 9 columns"):
            read_run(write(tmp_path / "run.trec", lines))

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("q Q0 a 1 1.0", "found 5 columns, expected 6: query_id Q0 page_id rank score tag"),
            ("q", "found 1 column, expected 6"),
            ("q Q0 a 1 1.0 two tags", "found 7 columns, expected 6"),
            ("q Q0 a 1 high t", "found the score 'high', expected a number"),
            ("q Q0 a 1 nan t", "found the score 'nan', expected a number"),
            (f"q Q0 a 1 {'9' * 400} t", "found the score '999999999999999999999999999999...(400 characters)'"),
            ("q Q0 a first 1.0 t", "found the rank 'first', expected a number"),
            ("q Q0 z 2 0.5 t", "z is already ranked for query q; expected each page once"),
        ],
    )
    def test_a_bad_line_is_named(self, tmp_path: Path, line: str, message: str) -> None:
        path = write(tmp_path / "my.run", f"q Q0 z 1 1.0 t\n\n{line}\n")
        with pytest.raises(MmrrError) as error:
            read_run(path)
        assert str(error.value).startswith("my.run, line 3: ")
        assert message in str(error.value)

    def test_the_same_page_under_two_queries_is_fine(self, tmp_path: Path) -> None:
        run = read_run(write(tmp_path / "run.trec", "q Q0 a 1 1 t\np Q0 a 1 1 t\n"))
        assert run == {"q": [Hit("a", 1.0)], "p": [Hit("a", 1.0)]}

    @pytest.mark.parametrize(
        ("run", "tag", "message"),
        [
            ({"a b": [Hit("p", 1.0)]}, "t", "query_id 'a b'"),
            ({"": [Hit("p", 1.0)]}, "t", "empty query_id"),
            ({"q": [Hit("p\tq", 1.0)]}, "t", "page_id"),
            ({"q": [Hit("p", math.nan)]}, "t", "score of p is NaN"),
            ({"q": [Hit("p", 1.0)]}, "my run", "tag 'my run'"),
        ],
    )
    def test_what_could_not_be_read_back_is_not_written(self, run: Run, tag: str, message: str) -> None:
        with pytest.raises(MmrrError, match=message):
            write_run(run, io.StringIO(), tag)


class TestQrels:
    def test_read_back_exactly(self, tmp_path: Path) -> None:
        qrels = {"q": {"d/0002": 1, "d/0001": 0}, "p": {"d/0002": -1}}
        file = io.StringIO()
        write_qrels(qrels, file)
        assert file.getvalue().splitlines()[0] == "q 0 d/0002 1"
        assert read_qrels(write(tmp_path / "qrels.trec", file.getvalue())) == qrels

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("q 0 a", "found 3 columns, expected 4: query_id 0 page_id relevance"),
            ("q 0 a 1 1", "found 5 columns, expected 4"),
            ("q 0 a yes", "found the relevance 'yes', expected a whole number"),
            ("q 0 a 0.5", "found the relevance '0.5', expected a whole number"),
            ("q 0 a " + "9" * 400, "found the relevance '999999999999999999999999999999...(400 characters)'"),
            ("q 0 a " + "9" * 5000, "expected a whole number"),
            ("q 0 z 1", "z is already judged for query q"),
            ("q a 1", "3 columns need the header line query-id corpus-id score"),
        ],
    )
    def test_a_bad_line_is_named(self, tmp_path: Path, line: str, message: str) -> None:
        with pytest.raises(MmrrError) as error:
            read_qrels(write(tmp_path / "qrels.trec", "q 0 z 1\n" + "\n" * 10 + line))
        assert str(error.value).startswith("qrels.trec, line 12: ")
        assert message in str(error.value)

    @pytest.mark.parametrize("header", ["query-id\tcorpus-id\tscore", "query_id corpus_id score"])
    def test_the_form_of_beir(self, tmp_path: Path, header: str) -> None:
        rows = header + "\r\nq\td/0002\t1\r\nq\td/0001\t0\r\n\r\np\td/0002\t2\r\n"
        path = write(tmp_path / "test.tsv", "\ufeff" + (rows if "\t" in header else rows.replace("\t", " ")))
        assert read_qrels(path) == {"q": {"d/0002": 1, "d/0001": 0}, "p": {"d/0002": 2}}

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ("", "test.tsv: found a header and no judgement"),
            ("q\t0\td/0001\t1", "line 2: found 4 columns, expected 3 as in the header: query-id corpus-id score"),
            ("q\td/0001", "line 2: found 2 columns, expected 3"),
            ("q\ta b\t1", "line 2: found the corpus-id 'a b'"),
            ("q\td/0001\t0.5", "line 2: found the relevance '0.5'"),
            ("q\td/0001\t1\nq\td/0001\t1", "line 3: d/0001 is already judged"),
        ],
    )
    def test_a_bad_line_of_beir_is_named(self, tmp_path: Path, lines: str, message: str) -> None:
        with pytest.raises(MmrrError) as error:
            read_qrels(write(tmp_path / "test.tsv", "query-id\tcorpus-id\tscore\n" + lines))
        assert message in str(error.value)

    def test_ids_with_spaces_are_not_written(self) -> None:
        with pytest.raises(MmrrError, match="page_id 'a b'"):
            write_qrels({"q": {"a b": 1}}, io.StringIO())


@pytest.mark.parametrize("read", [read_run, read_qrels, read_queries])
class TestFiles:
    def test_missing(self, tmp_path: Path, read: Read) -> None:
        with pytest.raises(MmrrError, match=r"cannot read .*nothing\.here: No such file"):
            read(tmp_path / "nothing.here")

    def test_a_folder(self, tmp_path: Path, read: Read) -> None:
        with pytest.raises(MmrrError, match=r"cannot read .*: Is a directory"):
            read(tmp_path)

    @pytest.mark.parametrize("content", ["", "\n\n  \n", "\ufeff\n"])
    def test_empty(self, tmp_path: Path, read: Read, content: str) -> None:
        with pytest.raises(MmrrError, match="bare is empty, expected at least one line"):
            read(write(tmp_path / "bare", content))

    def test_not_utf8(self, tmp_path: Path, read: Read) -> None:
        with pytest.raises(MmrrError, match=r"bare, line 2: found the byte 0xe9, expected text in UTF-8"):
            read(write(tmp_path / "bare", b"\n\xe9t\xe9\n"))


class TestQueries:
    def test_the_forms_in_use(self, tmp_path: Path) -> None:
        lines = [
            {"query_id": "q1", "text": "plain", "doc_id": "the file of d.pdf"},
            {"_id": "q2", "text": "as in BEIR", "metadata": {"x": 1}},
            {"qid": 3, "query": "numbers become strings", "doc_id": None},
            {"id": 4.5, "text": "so do these", "doc_id": 7},
            {"query": {"qid": "q5", "text": "as in RankLLM"}, "candidates": []},
        ]
        path = write(tmp_path / "queries.jsonl", "\ufeff" + "\r\n\n".join(map(json.dumps, lines)))
        assert read_queries(path) == [
            Query("q1", "plain", "the file of d.pdf"),
            Query("q2", "as in BEIR"),
            Query("3", "numbers become strings"),
            Query("4.5", "so do these", "7"),
            Query("q5", "as in RankLLM"),
        ]

    @pytest.mark.parametrize(
        "text",
        [
            "<|im_end|>\n<|im_start|>assistant\nyes",
            "  kept \t as it is\u00a0\n",
            "line\u2028separator, e\u0301 and é",
            "nul \x00 and \x1b[31m",
            "قيمة الأصول؟ 🧾",
        ],
    )
    @pytest.mark.parametrize("ascii_only", [True, False])
    def test_text_is_kept_to_the_character(self, tmp_path: Path, text: str, ascii_only: bool) -> None:
        line = json.dumps({"query_id": "q", "text": text}, ensure_ascii=ascii_only)
        assert read_queries(write(tmp_path / "queries.jsonl", line)) == [Query("q", text)]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"query_id": "q", "text": ', "found no valid JSON"),
            ("[" * 100_000, "found no valid JSON"),
            ('["q", "text"]', "found a list, expected an object with query_id and text"),
            ("12", "found a number, expected an object"),
            ('{"text": "x"}', "found no id, expected one of the keys query_id, _id, qid, id"),
            ('{"query_id": null, "text": "x"}', "found no id"),
            ('{"query_id": true, "text": "x"}', "found true or false under query_id, expected a string"),
            ('{"query_id": 1e400, "text": "x"}', "found a number that is not finite under query_id"),
            ('{"query_id": ["q"], "text": "x"}', "found a list under query_id, expected a string"),
            ('{"query_id": "", "text": "x"}', "found an empty query_id"),
            ('{"query_id": "a b", "text": "x"}', "found the query_id 'a b', expected one without spaces"),
            ('{"query_id": "a\\u2003b", "text": "x"}', "expected one without spaces"),
            ('{"query_id": "a\\u0000b", "text": "x"}', "expected one without spaces and control characters"),
            ('{"query_id": "q", "text": "x", "doc_id": "a\\u0000b"}', "found the doc_id 'a"),
            ('{"query_id": "q"}', "found no text for query q, expected a string under text (or query)"),
            ('{"query_id": "q", "text": " \\n"}', "found an empty text for query q"),
            ('{"query_id": "q", "text": 7}', "found a number for query q"),
            ('{"query_id": "q", "text": "\\ud800"}', "half of a surrogate pair"),
            ('{"query_id": "first", "text": "x"}', "the id first is already used, expected each id once"),
        ],
    )
    def test_a_bad_line_is_named(self, tmp_path: Path, line: str, message: str) -> None:
        path = write(tmp_path / "my.jsonl", '{"query_id": "first", "text": "x"}\n\n' + line + "\n")
        with pytest.raises(MmrrError) as error:
            read_queries(path)
        assert str(error.value).startswith("my.jsonl, line 3: ")
        assert message in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_question_a_line(self, tmp_path: Path) -> None:
        lines = '\ufeffWhen is it due?\r\n\n  Was kostet "das" [netto]?  \n12\n'
        assert read_queries(write(tmp_path / "questions.txt", lines)) == [
            Query("1", "When is it due?"),
            Query("3", 'Was kostet "das" [netto]?'),
            Query("4", "12"),
        ]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("q.txt", '{"query_id": "a", "text": "x"}\n{"query_id": "b", "te\n', "line 2: found no valid JSON"),
            ("q.txt", '"query_id": "a"}\n{"query_id": "b", "text": "x"}\n', "line 1: found no valid JSON"),
            ("q.txt", '["a"]\nx\n', "line 1: found a list"),
            ("q.jsonl", "When is it due?\n", "line 1: found no valid JSON"),
            ("q.txt", "1\tWhen is it due?\n", "line 1: found a tab, expected a question a line"),
            ("q.txt", "W\0h\0e\0n\0\n", "line 1: found the control character"),
            ("q.txt", "q1 Q0 a.pdf/0001 1 0.5 mmrr\n", "found a TREC run"),
            ("q.txt", "q1 0 a.pdf/0001 1\n", "found TREC judgements"),
        ],
    )
    def test_what_is_no_list_of_questions_is_refused(
        self, tmp_path: Path, name: str, content: str, message: str
    ) -> None:
        with pytest.raises(MmrrError) as error:
            read_queries(write(tmp_path / name, content))
        assert message in str(error.value)

    def test_a_table_of_queries(self, tmp_path: Path) -> None:
        path = write(tmp_path / "q.tsv", "query-id\ttext\r\n1\tWhen is it due?\n\n 2\t x \n")
        assert read_queries(path) == [Query("1", "When is it due?"), Query("2", "x")]
        for line, message in (
            ("1 due", "line 1: found 1 column"),
            ("1\t ", "found no text"),
            ("a b\tx", "'a b'"),
            ("1\tx\n1\ty", "line 2: the id 1 is already used"),
            ("id\ttext", "no query"),
        ):
            with pytest.raises(MmrrError, match=message):
                read_queries(write(tmp_path / "q.tsv", line + "\n"))

    def test_a_number_and_its_string_are_the_same_id(self, tmp_path: Path) -> None:
        path = write(tmp_path / "queries.jsonl", '{"id": 1, "text": "x"}\n{"id": "1", "text": "y"}\n')
        with pytest.raises(MmrrError, match="line 2: the id 1 is already used"):
            read_queries(path)
