"""The error of an adapter whose framework is not installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mmrr.errors import MmrrError


class MissingLibraryError(MmrrError, ImportError):
    """The framework of an adapter is not installed."""


@contextlib.contextmanager
def needs(extra: str, package: str) -> Iterator[None]:
    """Around the imports of ``package``: raises MissingLibraryError, which names the extra, if it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing != package:  # a library that the framework itself lacks
            raise
        raise MissingLibraryError(f"{package} is not installed; run: pip install 'mmrr[{extra}]'") from error
