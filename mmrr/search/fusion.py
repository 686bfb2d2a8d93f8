"""Score fusion of rankings. Searches by words, by meaning and by sight make different errors: their sum is better."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmrr.errors import MmrrError
from mmrr.types import Hit, Run, rank

#: How far below equal scores a missing page is: the distance of the two scores of a run of two pages.
_BELOW_EQUAL = 2.0


def fuse(first: Run, second: Run, weight: float) -> Run:
    """Per query and page: the score in ``first`` plus ``weight`` times the score in ``second``, both standardised.

    As ``fuse_all``. Raises MmrrError for a negative weight.
    """
    return fuse_all([(first, 1.0), (second, weight)])


def fuse_all(runs: Sequence[tuple[Run, float]]) -> Run:
    """Per query and page: the sum of the page's standardised scores in the runs, each times the weight of its run.

    A score is standardised by subtracting the mean and dividing by the standard deviation of the query's scores in the
    same run. A page that is missing in one run gets the lowest score there; if all scores of the run are equal, it gets
    a score two standard deviations lower. Raises MmrrError for a negative weight.
    """
    for _, weight in runs:
        if not 0 <= weight < math.inf:
            raise MmrrError(f"weight {weight}: expected 0 or more")
    fused: Run = {}
    for query_id in {query_id: None for run, _ in runs for query_id in run}:
        scores = [(_standardised(run.get(query_id, [])), weight) for run, weight in runs]
        sums = {page: 0.0 for of_run, _ in scores for page in of_run}
        for of_run, weight in scores:
            lowest = min(of_run.values(), default=0.0)
            if of_run and lowest == max(of_run.values()):
                lowest -= _BELOW_EQUAL  # otherwise a page that alone was found would gain nothing
            for page in sums:
                sums[page] += weight * of_run.get(page, lowest)
        fused[query_id] = rank(sums)
    return fused


def _standardised(hits: list[Hit]) -> dict[str, float]:
    if not hits:
        return {}
    mean = math.fsum(hit.score for hit in hits) / len(hits)
    deviation = math.sqrt(math.fsum((hit.score - mean) ** 2 for hit in hits) / len(hits))
    return {hit.page_id: (hit.score - mean) / deviation if deviation else 0.0 for hit in hits}
