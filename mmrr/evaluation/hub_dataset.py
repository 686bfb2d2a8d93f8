"""Parquet files of a data set, in a folder or on the Hugging Face Hub: find them, stream their rows and images.

This module does not know what the rows mean.

``datasets`` reads the text columns, from a local file, the Hub's cache or the network. pyarrow reads the image column.
A measurement decided this: ``datasets`` decodes a whole row group before it returns the first row. With 100 rows
of 2 MB images in one row group of 200 MB, peak memory rose after all imports by 515 MB with ``datasets`` 5.2 (395 MB
with a buffered, not pre-buffered ``fragment_scan_options``), and by 130 MB with pyarrow 26 as used here. The difference
grows with the row group. pandas writes a file as one row group, which for all MMDocIR pages is many GB.
pyarrow reads in the calling thread here. A thread of Arrow that still holds a Python file when the interpreter exits
can abort the process (apache/arrow#45214). ``datasets`` 5.2 with pyarrow 26 did not abort in 30 exits after three rows.
"""

from __future__ import annotations

import glob
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmrr.errors import MmrrError

_BATCH_ROWS = 1000  # rows of text columns per record batch
_BATCH_IMAGES = 16
_BUFFER_BYTES = 8 << 20  # read buffer, and the size of one request when images stream from the Hub


def locate(data: str, name: str) -> str:
    """The local path of a file of a data set, or an ``hf://`` address to stream it from.

    Raises MmrrError if the file is missing and cannot be streamed.
    """
    if Path(data).is_dir():
        path = Path(data) / name
        if not path.is_file():
            raise MmrrError(f"found no {name} in {data}, expected it in the folder of the annotations")
        return str(path)
    from huggingface_hub import constants, try_to_load_from_cache

    cached = try_to_load_from_cache(data, name, repo_type="dataset")
    if isinstance(cached, str):
        return cached
    if constants.is_offline_mode():
        raise MmrrError(f"found no {name} of {data} in the cache, and HF_HUB_OFFLINE is set; download it first")
    return f"hf://datasets/{data}/{name}"


def download(data: str, name: str) -> str:
    """The path of a file of a Hub dataset, downloaded unless it is cached. Raises MmrrError if that fails."""
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
    except Exception as error:  # the network can fail in many ways
        raise MmrrError(f"cannot ask the Hub for the revision of {data}: {reason(error)}") from error


def stream(source: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file as dicts of the text columns ``columns``, read by ``datasets``.

    Raises MmrrError if the file cannot be read or lacks one of the columns.
    """
    import datasets  # type: ignore[import-untyped]

    name = _name(source)
    datasets.logging.set_verbosity(logging.CRITICAL)  # errors are raised; datasets would also print them
    with tempfile.TemporaryDirectory(prefix="mmrr-datasets-") as scratch:  # for lock files only: rows are not cached
        try:
            rows = datasets.load_dataset(
                "parquet",
                data_files=glob.escape(source),
                split="train",
                streaming=True,
                columns=list(columns),
                batch_size=_BATCH_ROWS,
                cache_dir=scratch,
            )
            _check_columns(name, columns, rows.features)
            yield from rows
        except MmrrError:
            raise
        except Exception as error:  # the network, the file system or the format can fail in many ways
            raise MmrrError(f"cannot read {name}: {reason(error)}") from error


def images(source: str) -> Iterator[bytes | None]:
    """The image of each row of a parquet file; None if the row has none. Raises MmrrError as ``stream`` does.

    A data page and a buffer are in memory, not a row group.
    """
    import pyarrow.parquet  # type: ignore[import-untyped]
    from huggingface_hub import HfFileSystem

    name, column = _name(source), "image_binary"
    try:
        with (
            HfFileSystem().open(source, "rb") if "://" in source else open(source, "rb") as file,
            pyarrow.parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False) as rows,
        ):
            _check_columns(name, (column,), rows.schema_arrow.names)
            for batch in rows.iter_batches(_BATCH_IMAGES, columns=[column], use_threads=False):
                yield from map(_image_bytes, batch.column(0))
    except MmrrError:
        raise
    except Exception as error:  # as above
        raise MmrrError(f"cannot read {name}: {reason(error)}") from error


# Any: pyarrow has no types.
def _image_bytes(value: Any) -> bytes | None:
    image = value.as_py()
    # The Image type of datasets is a struct of bytes and path.
    return (image.get("bytes") if isinstance(image, dict) else image) or None


def _check_columns(name: str, columns: Sequence[str], found: Sequence[str]) -> None:
    missing = [column for column in columns if column not in found]
    if missing:
        raise MmrrError(f"{name}: found no column {', '.join(missing)}, expected the columns as published")


def _name(source: str) -> str:
    return source.rsplit("/", 1)[-1]


def reason(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__
