"""A data set's files in a folder or on the Hugging Face Hub: find them, stream their rows and their images.

Knows nothing of what the rows mean. Images stream: a few are in memory at a time, never the collection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmrr.errors import MmrrError

_BATCH_ROWS = 1000  # of small columns
_BATCH_IMAGES = 16
_BUFFER_BYTES = 8 << 20  # also the size of a request where the images stream from the Hub


def locate(data: str, name: str) -> str:
    """A local path, or an ``hf://`` address to stream from."""
    if Path(data).is_dir():
        path = Path(data) / name
        if not path.is_file():
            raise MmrrError(f"found no {name} in {data}, expected it beside the annotations")
        return str(path)
    from huggingface_hub import constants, try_to_load_from_cache

    cached = try_to_load_from_cache(data, name, repo_type="dataset")
    if isinstance(cached, str):
        return cached
    if constants.is_offline_mode():
        raise MmrrError(f"found no {name} of {data} in the cache, and HF_HUB_OFFLINE is set; download it first")
    return f"hf://datasets/{data}/{name}"


def download(data: str, name: str) -> str:
    """The path of a file of a Hub dataset, fetched unless it is cached. Raises MmrrError if it cannot be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return hf_hub_download(data, name, repo_type="dataset")
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        problem = f"found no folder {data}, and cannot get {name} of the Hub dataset {data}: {reason(error)}"
        raise MmrrError(problem) from error


def commit(data: str) -> str:
    """The newest commit of a Hub dataset. Raises MmrrError if the Hub does not answer."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(data).sha)
    except Exception as error:  # whatever way the network failed
        raise MmrrError(f"cannot ask the Hub for the revision of {data}: {reason(error)}") from error


def stream(source: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file as dicts of the small columns asked for: everything but images.

    Raises MmrrError for a file that cannot be read or lacks one of them.
    """
    for batch in _batches(source, columns, _BATCH_ROWS):
        yield from batch.to_pylist()


def images(source: str) -> Iterator[bytes | None]:
    """The image of each row of a parquet file; None: it has none. Raises MmrrError as ``stream`` does."""
    for batch in _batches(source, ("image_binary",), _BATCH_IMAGES):
        for value in batch.column(0):
            image = value.as_py()
            # The Hub's own image type is a struct of bytes and path.
            yield (image.get("bytes") if isinstance(image, dict) else image) or None


def _batches(source: str, columns: Sequence[str], n_rows: int) -> Iterator[Any]:
    """Record batches of some columns.

    Not through ``datasets``. Its reader decodes a row group before it gives its first row: where a file is one row
    group, as pandas writes it, that is every image at once; here a data page and a buffer are in memory. And it hands
    Arrow's threads a Python file: one that still holds it when the interpreter ends aborts the process
    (apache/arrow#45214). Here the thread that asks is the thread that reads.
    """
    import pyarrow.parquet  # type: ignore[import-untyped]
    from huggingface_hub import HfFileSystem

    name = source.rsplit("/", 1)[-1]
    try:
        with (
            HfFileSystem().open(source, "rb") if "://" in source else open(source, "rb") as file,
            pyarrow.parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False) as rows,
        ):
            missing = [column for column in columns if column not in rows.schema_arrow.names]
            if missing:
                raise MmrrError(f"{name}: found no column {', '.join(missing)}, expected the columns as published")
            yield from rows.iter_batches(n_rows, columns=list(columns), use_threads=False)
    except MmrrError:
        raise
    except Exception as error:  # the network, the file system, the format: whatever it was, the file is unreadable
        raise MmrrError(f"cannot read {name}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__
