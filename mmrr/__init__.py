"""mmrr: find the right page in thousands of PDF pages by looking at the pages.

The public names are imported when they are used, so that ``import mmrr`` loads no model library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmrr.api import Evidence as Evidence
    from mmrr.api import Hit as Hit
    from mmrr.api import Hits as Hits
    from mmrr.api import Search as Search
    from mmrr.api import Workspace as Workspace
    from mmrr.api import open as open
    from mmrr.errors import MmrrError as MmrrError
    from mmrr.queries import query_image as query_image
    from mmrr.reranker import Reranker as Reranker
    from mmrr.types import Query as Query

__version__ = "0.2.0"

#: {public name: its module}
_PUBLIC = {
    "Evidence": "mmrr.api",
    "Hit": "mmrr.api",
    "Hits": "mmrr.api",
    "MmrrError": "mmrr.errors",
    "Query": "mmrr.types",
    "Reranker": "mmrr.reranker",
    "Search": "mmrr.search_options",
    "Workspace": "mmrr.api",
    "open": "mmrr.api",
    "query_image": "mmrr.queries",
}
__all__ = [
    "Evidence",
    "Hit",
    "Hits",
    "MmrrError",
    "Query",
    "Reranker",
    "Search",
    "Workspace",
    "__version__",
    "open",
    "query_image",
]


def __getattr__(name: str) -> Any:  # Any: the type of a public name
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mmrr' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
