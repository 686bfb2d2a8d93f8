"""Score fusion of two rankings. Text search and visual search make different errors, so their sum is often better."""

from __future__ import annotations

import math

from mmrr.errors import MmrrError
from mmrr.types import Hit, Run, rank


def fuse(first: Run, second: Run, weight: float) -> Run:
    """Per query and page: the score in ``first`` plus ``weight`` times the score in ``second``, both standardised.

    A score is standardised by subtracting the mean and dividing by the standard deviation of the query's scores in the
    same run. A page that is missing in one run gets the lowest score there. Raises MmrrError for a negative weight.
    """
    if not 0 <= weight < math.inf:
        raise MmrrError(f"weight {weight}: expected 0 or more")
    fused: Run = {}
    for query_id in {**first, **second}:
        one, other = (_standardised(run.get(query_id, [])) for run in (first, second))
        lowest, other_lowest = min(one.values(), default=0.0), min(other.values(), default=0.0)
        fused[query_id] = rank(
            {page: one.get(page, lowest) + weight * other.get(page, other_lowest) for page in {**one, **other}}
        )
    return fused


def _standardised(hits: list[Hit]) -> dict[str, float]:
    if not hits:
        return {}
    mean = math.fsum(hit.score for hit in hits) / len(hits)
    deviation = math.sqrt(math.fsum((hit.score - mean) ** 2 for hit in hits) / len(hits))
    return {hit.page_id: (hit.score - mean) / deviation if deviation else 0.0 for hit in hits}
