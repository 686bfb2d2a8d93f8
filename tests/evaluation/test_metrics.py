"""Measures against values computed by hand; MMDocIR's recall against a literal copy of its definition."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from mmrr.errors import MmrrError
from mmrr.evaluation.metrics import (
    MEASURES,
    Evaluation,
    bootstrap,
    compare,
    evaluate,
    kendall_tau,
    layout_recall,
    page_recall,
)
from mmrr.evaluation.mmdocir import BBox, Box, Layout, Question
from mmrr.types import Hit, Run, rank

QRELS = {"q1": {"d/0001": 1, "d/0004": 1}, "q2": {"d/0002": 1, "d/0003": 0}}
RUN = {
    "q1": [Hit("d/0002", 9.0), Hit("d/0001", 8.0), Hit("d/0003", 7.0), Hit("d/0004", 6.0)],
    "q2": [Hit("d/0003", 0.5), Hit("d/0001", 0.25), Hit("d/0002", 0.125)],
}


def question(
    query_id: str, pages: list[int], domain: str = "News", doc_id: str = "d", boxes: tuple[Box, ...] = ()
) -> Question:
    return Question(query_id, doc_id, 0, "what?", tuple(pages), domain, boxes)


def box(page: int, *bbox: float) -> Box:
    x0, y0, x1, y1 = bbox
    return Box(page, (x0, y0, x1, y1), (100.0, 100.0))


def layout(layout_id: str, page: int, bbox: BBox, doc_id: str = "d", page_size: float = 100.0) -> Layout:
    return Layout(layout_id, doc_id, page, "text", bbox, (page_size, page_size), None, "")


class TestEvaluate:
    def test_values_worked_out_by_hand(self) -> None:
        # q1 finds its two pages at ranks 2 and 4, q2 its one page at rank 3.
        gain_q1 = (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3))
        expected = {
            "nDCG@5": {"q1": gain_q1, "q2": 0.5},
            "nDCG@10": {"q1": gain_q1, "q2": 0.5},
            "R@1": {"q1": 0.0, "q2": 0.0},
            "R@3": {"q1": 0.5, "q2": 1.0},
            "R@5": {"q1": 1.0, "q2": 1.0},
            "RR": {"q1": 1 / 2, "q2": 1 / 3},
        }
        result = evaluate(RUN, QRELS)
        assert tuple(result.mean) == MEASURES
        assert list(result.per_query) == ["q1", "q2"]
        for measure, values in expected.items():
            assert {q: result.per_query[q][measure] for q in values} == pytest.approx(values, abs=1e-12)
            assert result.mean[measure] == pytest.approx(sum(values.values()) / 2, abs=1e-12)
        assert result.mean["nDCG@5"] == pytest.approx(0.5754605, abs=1e-7)

    def test_a_judged_query_absent_from_the_run_scores_0_and_one_not_judged_is_ignored(self) -> None:
        run = {"q2": RUN["q2"], "other": [Hit("d/0001", 1.0)], "q1": []}
        result = evaluate(run, QRELS, ["RR", "R@5"])
        assert result.per_query == {"q1": {"RR": 0.0, "R@5": 0.0}, "q2": {"RR": pytest.approx(1 / 3), "R@5": 1.0}}
        assert result.mean == {"RR": pytest.approx(1 / 6), "R@5": 0.5}
        assert evaluate({}, QRELS, ["RR"]).mean == {"RR": 0.0}
        # These are not from trec_eval and may report other queries.
        result = evaluate(run, QRELS, ["Judged@1", "RR@2", "Compat"])
        assert {query_id: values["Judged@1"] for query_id, values in result.per_query.items()} == {"q1": 0.0, "q2": 1.0}
        assert result.mean["RR@2"] == 0.0
        assert 0 < result.mean["Compat"] < 0.5

    @pytest.mark.parametrize(("relevant", "expected"), [("d/0001", 1.0), ("d/0002", 0.5), ("d/0003", 1 / 3)])
    def test_equal_scores_rank_by_ascending_page_id(self, relevant: str, expected: float) -> None:
        """trec_eval ranks equal scores by descending id; its values would be 1/3, 1/2 and 1."""
        run = {"q": [Hit("d/0003", 1.0), Hit("d/0001", 1.0), Hit("d/0002", 1.0)]}
        assert evaluate(run, {"q": {relevant: 1}}, ["RR"]).mean["RR"] == pytest.approx(expected)

    def test_scores_that_float32_cannot_tell_apart_still_order(self) -> None:
        """trec_eval rounds to float32: both scores would be 1.0, and d/0002 would be first."""
        run = {"q": [Hit("d/0002", 1.0), Hit("d/0001", 1.0 + 1e-12)]}
        assert evaluate(run, {"q": {"d/0001": 1}}, ["RR"]).mean["RR"] == 1.0

    def test_the_order_of_the_list_does_not_matter(self) -> None:
        assert evaluate({q: hits[::-1] for q, hits in RUN.items()}, QRELS) == evaluate(RUN, QRELS)

    def test_infinite_scores_rank_at_the_ends(self) -> None:
        run = {"q": [Hit("a", -math.inf), Hit("b", 0.0), Hit("c", math.inf)]}
        assert evaluate(run, {"q": {"a": 1}}, ["RR"]).mean["RR"] == pytest.approx(1 / 3)
        assert evaluate(run, {"q": {"c": 1}}, ["RR"]).mean["RR"] == 1.0

    def test_bad_measures_are_all_named(self) -> None:
        # trec_eval aborts the process for R@0 and nDCG@0; ERR@5 needs perl.
        bad = ["R@0", "nope", "nDCG@0", "R", "P@x", "", "ERR@5", "nDCG@True"]
        with pytest.raises(MmrrError) as error:
            evaluate(RUN, QRELS, ["RR", *bad])
        message = str(error.value)
        assert all(repr(name) in message for name in bad)
        assert "'RR'" not in message
        assert "nDCG@10" in message

    def test_no_measure_no_query_and_a_score_without_rank_are_errors(self) -> None:
        with pytest.raises(MmrrError, match="none given"):
            evaluate(RUN, QRELS, [])
        with pytest.raises(MmrrError, match="no judged query"):
            evaluate(RUN, {})
        with pytest.raises(MmrrError, match=r"query q1: the score of d/0009 is NaN"):
            evaluate({"q1": [Hit("d/0009", math.nan)]}, QRELS)


class TestCompare:
    def test_base_new_and_difference(self) -> None:
        base = Evaluation({"RR": 0.25, "R@1": 0.5}, {"q": {}})
        new = Evaluation({"RR": 0.75, "R@1": 0.25}, {"q": {}})
        assert compare(base, new) == {"RR": (0.25, 0.75, 0.5), "R@1": (0.5, 0.25, -0.25)}

    def test_different_measures_or_queries_do_not_compare(self) -> None:
        base = Evaluation({"RR": 0.25}, {"q": {}})
        with pytest.raises(MmrrError, match="different measures"):
            compare(base, Evaluation({"AP": 0.25}, {"q": {}}))
        with pytest.raises(MmrrError, match="different queries: 2 are in only one, such as p"):
            compare(base, Evaluation({"RR": 0.25}, {"p": {}}))


class TestPageRecall:
    def test_values_worked_out_by_hand(self) -> None:
        # With two domains of unequal size, macro and micro differ. At depth 3: News 1/2 and 1, Laws 0.
        questions = {
            "q1": question("q1", [0, 3]),
            "q2": question("q2", [1]),
            "q3": question("q3", [6], domain="Laws"),
        }
        result = page_recall(RUN, questions)
        assert list(result) == ["recall@1", "recall@3", "recall@5"]
        assert result["recall@1"] == {"macro": 0.0, "micro": 0.0, "domains": {"Laws": 0.0, "News": 0.0}}
        assert result["recall@3"] == {"macro": 37.5, "micro": 50.0, "domains": {"Laws": 0.0, "News": 75.0}}
        assert result["recall@5"]["macro"] == 50.0
        assert result["recall@5"]["micro"] == pytest.approx(200 / 3)

    def test_ties_go_to_the_lower_page(self) -> None:
        run = {"q": [Hit("d/0002", 1.0), Hit("d/0001", 1.0)]}
        assert page_recall(run, {"q": question("q", [0])}, [1])["recall@1"]["micro"] == 100.0
        assert page_recall(run, {"q": question("q", [1])}, [1])["recall@1"]["micro"] == 0.0

    def test_a_page_of_another_document_takes_a_place_and_counts_for_nothing(self) -> None:
        run = {"q": [Hit("e/0001", 2.0), Hit("d/0001", 1.0)]}
        result = page_recall(run, {"q": question("q", [0])}, [1, 2])
        assert (result["recall@1"]["micro"], result["recall@2"]["micro"]) == (0.0, 100.0)

    def test_a_question_without_evidence_scores_0_as_officially(self) -> None:
        run = {"q": [Hit("d/0001", 1.0)], "p": [Hit("d/0001", 1.0)]}
        questions = {"q": question("q", [0]), "p": question("p", [])}
        assert page_recall(run, questions, [1])["recall@1"]["micro"] == 50.0

    def test_against_the_definition_on_random_data(self) -> None:
        rng = random.Random(0)
        for _ in range(50):
            questions, run = {}, {}
            for i in range(rng.randint(1, 12)):
                n = rng.randint(1, 12)
                evidence = rng.sample(range(n), rng.randint(1, n))
                questions[f"q{i}"] = question(f"q{i}", evidence, domain=rng.choice("ABC"))
                if rng.random() < 0.9:
                    run[f"q{i}"] = [Hit(f"d/{p + 1:04d}", rng.choice([0.0, 1.0, 2.0])) for p in range(n)]
            for k in (1, 3, 5):
                per_domain: dict[str, list[float]] = {}
                for query_id, one in questions.items():
                    scores = [hit.score for hit in run.get(query_id, [])]  # in the order of the pages
                    best = sorted(range(len(scores)), key=lambda i: scores[i], reverse=True)[:k]
                    share = len(set(best) & set(one.page_id)) / len(one.page_id)
                    per_domain.setdefault(one.domain, []).append(share)
                everything = [share for shares in per_domain.values() for share in shares]
                means = [sum(shares) / len(shares) for shares in per_domain.values()]
                result = page_recall(run, questions, [k])[f"recall@{k}"]
                assert result["micro"] == pytest.approx(100 * sum(everything) / len(everything), abs=1e-9)
                assert result["macro"] == pytest.approx(100 * sum(means) / len(means), abs=1e-9)

    def test_bad_input(self) -> None:
        with pytest.raises(MmrrError, match="no question to score"):
            page_recall(RUN, {})
        with pytest.raises(MmrrError, match="found recall at 0, expected a depth of 1 or more"):
            page_recall(RUN, {"q1": question("q1", [0])}, [1, 0])
        with pytest.raises(MmrrError, match="is NaN, expected a number"):
            page_recall({"q1": [Hit("d/0001", math.nan)]}, {"q1": question("q1", [0])})


class TestLayoutRecall:
    #: 200 square points of evidence on page 0, 100 on page 2
    QUESTION = question("q", [0, 2], boxes=(box(0, 10, 10, 30, 20), box(2, 0, 0, 10, 10)))

    def recall(self, layouts: list[Layout], k: int, cap: bool = False) -> float:
        run: Run = {"q": [Hit(item.layout_id, float(-i)) for i, item in enumerate(layouts)]}
        by_id = {item.layout_id: item for item in layouts}
        return layout_recall(run, {"q": self.QUESTION}, by_id, [k], cap)[f"recall@{k}"]["micro"]

    def test_values_worked_out_by_hand(self) -> None:
        layouts = [
            layout("a", 0, (0.0, 0.0, 20.0, 15.0)),  # covers 10 x 5 of the first box
            layout("b", 1, (10.0, 10.0, 30.0, 20.0)),  # the right place on the wrong page
            layout("c", 2, (5.0, 5.0, 50.0, 50.0)),  # covers 5 x 5 of the second box
            layout("e", 2, (10.0, 0.0, 20.0, 10.0)),  # touches the box, without area
            layout("f", 2, (50.0, 50.0, 60.0, 60.0)),  # disjoint in both directions
        ]
        assert self.recall(layouts, 1) == pytest.approx(100 * 50 / 300)
        assert self.recall(layouts, 2) == pytest.approx(100 * 50 / 300)
        assert self.recall(layouts, 3) == pytest.approx(100 * 75 / 300)
        assert self.recall(layouts, 5) == pytest.approx(100 * 75 / 300)

    def test_ground_covered_twice_counts_twice_as_officially_unless_capped(self) -> None:
        whole = [layout(name, page, (0.0, 0.0, 100.0, 100.0)) for name, page in [("a", 0), ("b", 0), ("c", 2)]]
        assert self.recall(whole, 2) == pytest.approx(100 * 400 / 300)
        assert self.recall(whole, 3) == pytest.approx(100 * 500 / 300)
        assert self.recall(whole, 3, cap=True) == 100.0
        assert self.recall(whole, 1, cap=True) == pytest.approx(100 * 200 / 300)

    def test_evidence_that_overlaps_weighs_twice(self) -> None:
        one = question("q", [0], boxes=(box(0, 0, 0, 10, 10), box(0, 0, 0, 10, 5)))
        layouts = {"a": layout("a", 0, (0.0, 0.0, 10.0, 5.0))}
        result = layout_recall({"q": [Hit("a", 1.0)]}, {"q": one}, layouts, [1])
        assert result["recall@1"]["micro"] == pytest.approx(100 * 100 / 150)

    def test_against_counted_cells_on_random_data(self) -> None:
        """With integer coordinates an area is a number of unit cells: count them for each pair of boxes."""
        rng = random.Random(0)

        def sides() -> tuple[int, int, int, int]:
            x0, x1 = sorted(rng.sample(range(9), 2))
            y0, y1 = sorted(rng.sample(range(9), 2))
            return x0, y0, x1, y1

        def cells(bbox: BBox) -> set[tuple[int, int]]:
            x0, y0, x1, y1 = (int(side) for side in bbox)
            return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}

        for _ in range(100):
            evidence = tuple(box(rng.randrange(2), *sides()) for _ in range(rng.randint(1, 3)))
            found = [layout(f"l{i}", rng.randrange(2), sides()) for i in range(4)]
            hit = sum(len(cells(a.bbox) & cells(b.bbox)) for a in found for b in evidence if a.page == b.page)
            run: Run = {"q": [Hit(item.layout_id, 1.0) for item in found]}
            one = {"q": question("q", [0], boxes=evidence)}
            result = layout_recall(run, one, {item.layout_id: item for item in found}, [4])
            assert result["recall@4"]["micro"] == pytest.approx(100 * hit / sum(len(cells(b.bbox)) for b in evidence))

    def test_page_sizes_play_no_part(self) -> None:
        assert self.recall([layout("a", 0, (10.0, 10.0, 30.0, 20.0), page_size=200.0)], 1) == pytest.approx(200 / 3)

    def test_another_document_does_not_count(self) -> None:
        assert self.recall([layout("a", 0, (10.0, 10.0, 30.0, 20.0), doc_id="e")], 1) == 0.0

    def test_a_question_without_area_or_run_scores_0(self) -> None:
        questions = {
            "flat": question("flat", [0], boxes=(box(0, 5, 5, 5, 9),)),
            "none": question("none", [0]),
            "absent": self.QUESTION,
            "found": self.QUESTION,
        }
        layouts = {"a": layout("a", 0, (0.0, 0.0, 100.0, 100.0)), "c": layout("c", 2, (0.0, 0.0, 100.0, 100.0))}
        hits = [Hit("a", 2.0), Hit("c", 1.0)]
        result = layout_recall({"flat": hits, "none": hits, "found": hits}, questions, layouts)
        assert list(result) == ["recall@1", "recall@5", "recall@10"]
        assert result["recall@5"]["micro"] == 25.0

    def test_macro_and_domains(self) -> None:
        laws = question("p", [0], domain="Laws", boxes=self.QUESTION.boxes)
        layouts = {"a": layout("a", 2, (0.0, 0.0, 10.0, 10.0))}
        run = {"q": [Hit("a", 1.0)]}
        result = layout_recall(run, {"p": laws, "q": self.QUESTION, "r": self.QUESTION}, layouts, [1])["recall@1"]
        assert result["domains"] == pytest.approx({"Laws": 0.0, "News": 50 / 3})
        assert result["macro"] == pytest.approx(25 / 3)
        assert result["micro"] == pytest.approx(100 / 9)

    def test_an_unknown_layout_is_an_error(self) -> None:
        with pytest.raises(MmrrError, match="query q: the run has the layout zzz"):
            layout_recall({"q": [Hit("zzz", 1.0)]}, {"q": self.QUESTION}, {}, [1])


class TestBootstrap:
    def evaluation(self, values: dict[str, float]) -> Evaluation:
        per_query = {query_id: {"m": value} for query_id, value in values.items()}
        return Evaluation({"m": sum(values.values()) / len(values)}, per_query)

    def test_against_every_draw_of_two_documents(self) -> None:
        """Document a has two queries, b has one. Four samples are equally likely; aa and bb give the interval ends."""
        base = self.evaluation({"q1": 1.0, "q2": 0.5, "q3": 0.5})
        new = self.evaluation({"q1": 0.5, "q2": 0.5, "q3": 1.0})
        change = bootstrap(base, new, {"q1": "a", "q2": "a", "q3": "b"})["m"]
        assert change.difference == pytest.approx(0.0)
        assert change.difference_interval == pytest.approx((-0.25, 0.5))
        assert change.kept == pytest.approx(1.0)
        assert change.kept_interval == pytest.approx((1.0 / 1.5, 2.0))

    def test_one_document_leaves_no_room_and_nothing_found_has_no_ratio(self) -> None:
        base, new = self.evaluation({"q1": 0.0, "q2": 0.0}), self.evaluation({"q1": 1.0, "q2": 0.0})
        change = bootstrap(base, new, {"q1": "a", "q2": "a"})["m"]
        assert change.difference_interval == (0.5, 0.5)
        assert math.isnan(change.kept)
        assert all(map(math.isnan, change.kept_interval))

    def test_more_documents_narrow_the_interval(self) -> None:
        rng = random.Random(0)
        widths = []
        for n in (20, 500):
            base = self.evaluation({str(i): rng.random() for i in range(n)})
            new = self.evaluation({str(i): rng.random() for i in range(n)})
            low, high = bootstrap(base, new, {str(i): str(i) for i in range(n)})["m"].difference_interval
            widths.append(high - low)
        assert widths[1] < widths[0] / 3


def test_kendall_tau_counts_pairs_of_what_both_runs_hold():
    rng = random.Random(0)
    names = [f"d/{i:04d}" for i in range(12)]
    base, new = ({name: rng.random() for name in names} for _ in range(2))
    agree = [
        1 if (base[one] > base[other]) == (new[one] > new[other]) else -1
        for one, other in itertools.combinations(names, 2)
    ]
    runs = {"q": rank(base | {"only/0001": 0.5})}, {"q": rank(new | {"only/0002": 0.5}), "other": rank(new)}
    assert kendall_tau(*runs) == pytest.approx(sum(agree) / len(agree))
    assert kendall_tau(runs[0], runs[0]) == 1
    assert kendall_tau({"q": rank({name: -score for name, score in base.items()})}, {"q": rank(base)}) == -1
    assert math.isnan(kendall_tau({"q": rank({"a": 1.0})}, {"q": rank({"a": 1.0})}))
