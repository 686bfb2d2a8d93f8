"""Adds up what two rankings say of a page: words and sight err in different places."""

from __future__ import annotations

import math

from mmrr.errors import MmrrError
from mmrr.types import Hit, Run, rank


def blend(first: Run, second: Run, weight: float) -> Run:
    """Per query, a page's score in ``first`` plus ``weight`` times that in ``second``, both standardised.

    Standardised: less the mean of the query's scores in that run, by their standard deviation. A page that one run
    lacks counts as its lowest there. Raises MmrrError for a negative weight.
    """
    if not 0 <= weight < math.inf:
        raise MmrrError(f"weight {weight}: expected 0 or more")
    blended: Run = {}
    for query_id in {**first, **second}:
        one, other = (_standard(run.get(query_id, [])) for run in (first, second))
        lowest, other_lowest = min(one.values(), default=0.0), min(other.values(), default=0.0)
        blended[query_id] = rank(
            {page: one.get(page, lowest) + weight * other.get(page, other_lowest) for page in {**one, **other}}
        )
    return blended


def _standard(hits: list[Hit]) -> dict[str, float]:
    if not hits:
        return {}
    mean = math.fsum(hit.score for hit in hits) / len(hits)
    deviation = math.sqrt(math.fsum((hit.score - mean) ** 2 for hit in hits) / len(hits))
    return {hit.page_id: (hit.score - mean) / deviation if deviation else 0.0 for hit in hits}
