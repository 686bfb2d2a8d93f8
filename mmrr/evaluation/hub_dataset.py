"""Files of a data set, in a folder or on the Hugging Face Hub: find them, stream their rows and images.

This module does not know what the rows mean. A *table* is one split of one sub-dataset (what ``datasets`` calls a
configuration): the files that hold it, and their format.

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
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmrr.errors import MmrrError

_BATCH_ROWS = 1000  # rows of text columns per record batch
_BATCH_IMAGES = 16
_BUFFER_BYTES = 8 << 20  # read buffer, and the size of one request when images stream from the Hub
_HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*"
#: Endings of files of a table -> the reader of ``datasets``. Both also read .gz.
_FORMATS: dict[str, Literal["parquet", "json"]] = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\b")


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
        raise MmrrError(f"found no {name} of {data} in the cache, and HF_HUB_OFFLINE is set; {_remedy(data)}")
    return f"hf://datasets/{data}/{name}"


def _remedy(data: str) -> str:
    return f"run `hf download {data} --repo-type dataset` where there is a network, or name a local folder"


def download(data: str, name: str) -> str:
    """The path of a file of a Hub dataset, downloaded unless it is cached. Raises MmrrError if that fails."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return hf_hub_download(data, name, repo_type="dataset")
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        problem = f"found no folder {data}, and cannot get {name} of the Hub dataset {data}: {reason(error)}"
        raise MmrrError(f"{problem}; {_remedy(data)}") from error


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


def images(source: str, column: str = "image_binary") -> Iterator[bytes | None]:
    """The image of each row of a parquet file; None if the row has none. Raises MmrrError as ``stream`` does.

    A data page and a buffer are in memory, not a row group.
    """
    import pyarrow.parquet  # type: ignore[import-untyped]
    from huggingface_hub import HfFileSystem

    name = _name(source)
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


# Tables


def root_of(data: str) -> str:
    """The path of a folder or file; of a Hub id its cached snapshot if ``HF_HUB_OFFLINE`` is set, else the id itself.

    Raises MmrrError if there is none.
    """
    path = Path(data).expanduser()
    if path.exists():
        return str(path)
    if not re.fullmatch(_HUB_ID, data):
        raise MmrrError(f"found no folder or file {data}, expected one, or a Hub id such as owner/name")
    from huggingface_hub import constants, snapshot_download

    if not constants.is_offline_mode():
        return data
    try:
        return str(snapshot_download(data, repo_type="dataset", local_files_only=True))
    except Exception as error:  # the cache can be damaged in many ways
        raise MmrrError(f"found no {data} in the cache, and HF_HUB_OFFLINE is set; {_remedy(data)}") from error


@dataclass(frozen=True, slots=True)
class Table:
    """One split of one sub-dataset."""

    name: str  # of the sub-dataset
    split: str
    files: tuple[str, ...]  # local paths or hf:// addresses, in the order of the rows
    format: Literal["parquet", "json", "trec"]  # trec: a file of judgements


class DataSet:
    """A data set in a folder or on the Hub, with the tables that it has.

    The sub-datasets are those that the set's card declares (``configs`` in README.md). Where it declares none, a
    sub-dataset is a file or a folder of its name: ``corpus.jsonl``, ``corpus/test-00000-of-00001.parquet``,
    ``qrels/test.tsv``.
    """

    def __init__(self, data: str, root: str, names: Sequence[str]) -> None:
        self.data = data  # as the user named it
        self.root = root  # the folder, or the Hub id where files are streamed
        self.names = tuple(names)  # declared sub-datasets

    @classmethod
    def open(cls, data: str) -> DataSet:
        """A folder, a file, or a Hub id: its cached snapshot if ``HF_HUB_OFFLINE`` is set, else the Hub's newest.

        Raises MmrrError if there is none.
        """
        root = root_of(data)
        return cls(data, root, () if Path(root).is_file() else _declared(root))

    def table(self, names: Sequence[str], split: str | None) -> Table | None:
        """The split of the first of these sub-datasets that exists; None: there is none of them.

        A sub-dataset with one split alone has it under any name. Raises MmrrError if it has several and not this one,
        if files of it are missing, and for a format other than parquet and JSON Lines.
        """
        splits: dict[str, list[str]] = {}
        name = next((one for one in names if one in self.names), None)
        if name is not None:
            splits = _files_of(self.root, name)
        elif Path(self.root).exists():
            name, splits = self._by_convention(names)
        if name is None or not splits:
            return None
        if split not in splits and len(splits) > 1:
            found = ", ".join(sorted(splits))
            if split is None:
                raise MmrrError(f"{self.data}: {name} has the splits {found}; name one with --split")
            raise MmrrError(f"{self.data}: {name} has no split {split}, expected one of {found}")
        chosen = split if split in splits else next(iter(splits))
        files = [_cached(self.root, file) for file in splits[chosen]]
        _check_whole(self.data, name, files)
        return Table(name, str(chosen), tuple(files), _format(files[0]))

    def _by_convention(self, names: Sequence[str]) -> tuple[str | None, dict[str, list[str]]]:
        """The files of the first of ``names`` in a folder without a card, by split."""
        root = Path(self.root)
        if root.is_file():
            return ("default", {"all": [str(root)]}) if "default" in names else (None, {})
        for name in names:
            splits: dict[str, list[str]] = {}
            places = [root / "data", root] if name == "default" else [root / name]
            for folder in places:
                for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                    if path.is_file() and _ending(path.name):
                        splits.setdefault(re.split(r"-\d|\.", path.name, maxsplit=1)[0], []).append(str(path))
                if splits:
                    return name, splits
            own = sorted(path for path in root.glob(f"{glob.escape(name)}.*") if _ending(path.name))
            if own:
                return name, {"all": [str(own[0])]}
        return None, {}


def rows(table: Table, columns: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of a table, streamed by ``datasets``: of parquet files the columns ``columns``, of others all.

    Raises MmrrError if a file cannot be read or lacks a column.
    """
    for file in table.files:
        if table.format == "parquet":
            yield from stream(file, columns)
        else:
            yield from json_rows(file)


def columns_of(table: Table) -> dict[str, bool]:
    """{column: whether it holds images or other bytes} of a table, from its first file.

    Raises MmrrError if the file cannot be read.
    """
    if table.format != "parquet":
        first = next(rows(table), {})
        return dict.fromkeys(first, False)
    import pyarrow.parquet
    from huggingface_hub import HfFileSystem

    source = table.files[0]
    try:
        with HfFileSystem().open(source, "rb") if "://" in source else open(source, "rb") as file:
            schema = pyarrow.parquet.read_schema(file)
    except Exception as error:  # as in ``stream``
        raise MmrrError(f"cannot read {_name(source)}: {reason(error)}") from error
    return {field.name: "binary" in str(field.type) for field in schema}


def pictures(table: Table, column: str) -> Iterator[bytes | None]:
    """The image of each row of a table; None if the row has none.

    In JSON Lines an image is the path of a file inside the folder of the JSON file. Raises MmrrError as ``rows`` does,
    and for a path outside of that folder.
    """
    for source in table.files:
        if table.format == "parquet":
            yield from images(source, column)
            continue
        root = Path(source).resolve().parent
        for n, row in enumerate(json_rows(source), 1):
            value = row.get(column)
            if value is None:
                yield None
                continue
            path = (root / str(value)).resolve()
            if not path.is_relative_to(root) or not path.is_file():
                raise MmrrError(f"{_name(source)}, row {n}: found no image {str(value)[:80]!r} inside {root}")
            yield path.read_bytes()


def table_id(table: Table, sha256: Callable[[Path], str]) -> str:
    """The hash of the content of a table's files; of files that are streamed, their addresses, which name a commit."""
    return "+".join(file if "://" in file else sha256(Path(file)) for file in table.files)


def json_rows(source: str) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON Lines, streamed by ``datasets``. Raises MmrrError if it cannot be read."""
    import datasets

    name = _name(source)
    datasets.logging.set_verbosity(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="mmrr-datasets-") as scratch:
        try:
            yield from datasets.load_dataset(
                "json", data_files=glob.escape(source), split="train", streaming=True, cache_dir=scratch
            )
        except MmrrError:
            raise
        except Exception as error:  # as in ``stream``
            raise MmrrError(f"cannot read {name}: {reason(error)}") from error


def _declared(root: str) -> list[str]:
    """The sub-datasets that the card of a set declares."""
    import datasets

    datasets.logging.set_verbosity(logging.CRITICAL)
    if Path(root).is_dir() and not _has_configs(Path(root) / "README.md"):
        return []
    try:
        return list(datasets.get_dataset_config_names(root))
    except Exception as error:  # as in ``stream``
        raise MmrrError(f"cannot read the card of {root}: {reason(error)}; {_remedy(root)}") from error


def _has_configs(card: Path) -> bool:
    try:
        return re.search(r"^configs:", card.read_text("utf-8"), re.MULTILINE) is not None
    except (OSError, UnicodeDecodeError):
        return False


def _files_of(root: str, name: str) -> dict[str, list[str]]:
    """The files of a declared sub-dataset by split."""
    import datasets

    try:
        found = datasets.load_dataset_builder(root, name).config.data_files or {}
    except Exception as error:  # as in ``stream``
        raise MmrrError(f"found no files of {name} in {root}: {reason(error)}") from error
    return {str(split): [str(file) for file in files] for split, files in found.items()}


def _cached(root: str, file: str) -> str:
    """The local copy of an hf:// address, if the cache has it in the same revision; otherwise ``file``."""
    from huggingface_hub import try_to_load_from_cache

    match = re.fullmatch(rf"hf://datasets/({_HUB_ID})@([0-9a-f]{{40}})/(.+)", file)
    if match is None:
        return file
    found = try_to_load_from_cache(match[1], match[3], revision=match[2], repo_type="dataset")
    return found if isinstance(found, str) else file


def _check_whole(data: str, name: str, files: Sequence[str]) -> None:
    """Raise MmrrError if a table of numbered files lacks some, as after an interrupted download."""
    numbers = [(int(match[1]), int(match[2])) for file in files if (match := _SHARD.search(_name(file)))]
    expected = max((count for _, count in numbers), default=0)
    if numbers and len(numbers) < expected:
        raise MmrrError(f"{data}: found {len(numbers)} of {expected} files of {name}; download the others first")


def _ending(name: str) -> str | None:
    """The reader of a file by its name: parquet, json or trec; None if there is none."""
    suffix = Path(name.removesuffix(".gz")).suffix.lower()
    return "trec" if suffix in (".tsv", ".trec", ".qrels") else _FORMATS.get(suffix)


def _format(file: str) -> Literal["parquet", "json", "trec"]:
    found = _ending(file)
    if found not in ("parquet", "json", "trec"):
        raise MmrrError(f"{_name(file)}: found a format that is not read, expected parquet or JSON Lines")
    return found  # type: ignore[return-value]
