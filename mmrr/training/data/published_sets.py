"""Published training sets, by Hub id or folder, as files of pairs and ranked lists. Knows files, not models.

Four forms, told apart by their columns:

* *pairs*: rows of ``query`` and ``image`` (vidore/colpali_train_set). Each query's page is relevant; random pages of
  the set are not.
* *MMDocIR*: ``annotations_top1_negative/NAME_train.jsonl`` with ``positive_passages`` and ``negative_passages``, and
  ``parquet/NAME_filter.parquet`` with the page images.
* *conversations*: RankZephyr's prompts with passages, and the order as the answer, by letters or by numbers.
* *distillation*: ZipRerank's ``candidate_page_ids``, ``openai_ranking`` and ``gt_page_ids``; the page images are those
  of MMDocIR's training set.

Images are written as they are published, once each. Only the rows of one batch are in memory, and the queries.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock

from mmrr.errors import MmrrError
from mmrr.evaluation.hub_dataset import (
    DataSet,
    columns_of,
    download,
    images,
    json_rows,
    locate,
    pictures,
    root_of,
    rows,
    stream,
)
from mmrr.workspace.files import write_atomically

#: The page images of ZipRerank's distillation set.
MMDOCIR = "MMDocIR/MMDocIR_Train_Dataset"
#: The parts of MMDocIR's training set.
PARTS = ("ArxivQA", "DUDE", "MP-DocVQA", "SciQAG", "SlideVQA", "TAT-DQA", "Wiki-ss")
PAIRS, LISTS, _IMAGES, _SOURCE = "pairs.jsonl", "lists.jsonl", "images", "source.json"

_RANKED = re.compile(r"\[(\w{1,3})\]")
_PASSAGE = re.compile(r"^\[(\w{1,3})\]\s*(.*?)(?=^\[\w{1,3}\]|^Search Query:|\Z)", re.MULTILINE | re.DOTALL)
_QUERY = re.compile(r"^.*search query:\s*(.+?)\.?\s*$", re.IGNORECASE | re.MULTILINE)

Key = tuple[str, int]  # document, page from 0
Record = dict[str, Any]  # Any: values of JSON


@dataclass(frozen=True, slots=True)
class Request:
    """What is read of a set."""

    data: str  # Hub id or folder
    split: str = ""  # "": train, or the only one; of MMDocIR, its parts, separated by commas
    limit: int = 0  # queries; 0: all
    random: int = 1  # random wrong pages a query, where the set has no wrong ones
    seed: int = 0
    pages: str = MMDOCIR  # where the page images of a distillation set are


def is_published(name: str) -> bool:
    """Whether a name is a Hub id or a folder, and not a file of pairs or lists."""
    path = Path(name).expanduser()
    if path.suffix in (".jsonl", ".json", ".ndjson", ".parquet"):
        return False
    return path.is_dir() or (not path.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None)


def file_of(name: Path, split: str, limit: int, seed: int, run: Path) -> Path:
    """The file of pairs or lists that a config names; of a published set, the one made of it in the run's folder."""
    if not is_published(str(name)):
        return name
    return prepare(Request(str(name), split, limit, seed=seed), run / "data")


def prepare(request: Request, folder: Path, tell: Callable[[str], None] = lambda _: None) -> Path:
    """Write the set to ``folder`` and return its ``pairs.jsonl`` or ``lists.jsonl``. Nothing is read a second time.

    Several processes may ask for the same folder. Raises MmrrError for a set of another form, for a row without what
    its form needs, and for a page whose image is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = json.dumps(asdict(request), sort_keys=True) + "\n"
    with FileLock(folder / ".lock"):
        done = next((folder / name for name in (PAIRS, LISTS) if (folder / name).exists()), None)
        if done and (folder / _SOURCE).exists() and (folder / _SOURCE).read_text("utf-8") == wanted:
            return done
        if done:
            raise MmrrError(f"{folder} holds {done.name} of another set or other options; choose an empty folder")
        tell(f"reading {request.data}")
        name, records = _read(request, folder)
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        if not lines:
            raise MmrrError(f"{request.data}: found no query")
        write_atomically(folder / _SOURCE, wanted)
        write_atomically(folder / name, "".join(lines))
        tell(f"{len(lines)} {name.removesuffix('.jsonl')} of {request.data}: {folder / name}")
        return folder / name


def _read(request: Request, folder: Path) -> tuple[str, Iterable[Record]]:
    """The name of the file, and its records."""
    root = root_of(request.data)
    if request.data == MMDOCIR or (Path(root) / "annotations_top1_negative").is_dir():
        return PAIRS, _mmdocir(request, root, folder)
    data = DataSet.open(request.data)
    table = data.table(("default",), request.split or "train")
    if table is None:
        raise MmrrError(f"{request.data}: found no rows, expected a training set (found: {', '.join(data.names)})")
    columns = columns_of(table)
    if "conversations" in columns:
        found = enumerate(rows(table, ("conversations",)), 1)
        return LISTS, islice((_conversation(row["conversations"], n) for n, row in found), request.limit or None)
    if {"candidate_page_ids", "openai_ranking"} <= set(columns):
        wanted = ("query", "doc_name", "candidate_page_ids", "openai_ranking", "gt_page_ids", "domain")
        listed = rows(table, [name for name in wanted if name in columns])
        return LISTS, _distillation(request, list(islice(listed, request.limit or None)), folder)
    if {"query", "image"} <= set(columns):
        both = zip(rows(table, ("query",)), pictures(table, "image"), strict=True)
        return PAIRS, _pairs(request, ((row["query"], image) for row, image in both), folder)
    raise MmrrError(
        f"{request.data}: found the columns {', '.join(columns)}, expected query and image, conversations, or "
        "candidate_page_ids and openai_ranking"
    )


def _pairs(request: Request, asked: Iterable[tuple[str | None, bytes | None]], folder: Path) -> Iterator[Record]:
    """Each query with its page, then with random pages that are not those of the query."""
    relevant: dict[str, dict[str, None]] = {}
    pages: dict[str, None] = {}
    for n, (query, image) in enumerate(asked, 1):
        if not image:
            raise MmrrError(f"{request.data}, row {n}: found no image")
        if isinstance(query, str) and query.strip():
            if request.limit and query not in relevant and len(relevant) == request.limit:
                break
            relevant.setdefault(query, {})
        page = _save(image, folder)
        pages[page] = None
        if isinstance(query, str) and query.strip():
            relevant[query][page] = None
    every = list(pages)
    for query, own in relevant.items():
        yield from ({"query": query, "image": page, "relevant": True} for page in own)
        rng = random.Random(f"{request.seed}/{query}")
        drawn = rng.sample(every, min(len(every), request.random + len(own)))
        wrong = [page for page in drawn if page not in own][: request.random]
        yield from ({"query": query, "image": page, "relevant": False} for page in wrong)


def _mmdocir(request: Request, root: str, folder: Path) -> Iterator[Record]:
    """The published positive and negative pages of each question."""
    asked: list[tuple[str, str, list[Key], list[Key]]] = []  # part, query, relevant and wrong pages
    parts = [part.strip() for part in request.split.split(",") if part.strip()] or list(PARTS)
    for part in parts:
        name = f"annotations_top1_negative/{part}_train.jsonl"
        local = Path(root) / name
        if Path(root).is_dir() and not local.exists() and not request.split:
            continue
        source = str(local) if Path(root).is_dir() else download(root, name)
        for n, row in enumerate(json_rows(source), 1):
            if request.limit and len(asked) == request.limit:
                break
            where = f"{part}_train.jsonl, row {n}"
            right, wrong = (
                [_key(one, where) for one in row.get(kind) or ()] for kind in ("positive_passages", "negative_passages")
            )
            if isinstance(row.get("query"), str) and row["query"].strip() and right:
                asked.append((part, row["query"], right, wrong))
    wanted: dict[str, set[Key]] = {}
    for part, _, right, wrong in asked:
        wanted.setdefault(part, set()).update(right, wrong)
    saved = {part: _save_pages(root, part, keys, folder) for part, keys in wanted.items()}
    for part, query, right, wrong in asked:
        for keys, relevant in ((right, True), ([key for key in wrong if key not in right], False)):
            yield from ({"query": query, "image": saved[part][key], "relevant": relevant} for key in keys)


def _distillation(request: Request, listed: list[Record], folder: Path) -> Iterator[Record]:
    """ZipRerank's lists: candidates in the first stage's order, the teacher's order, and the relevant pages."""
    root = root_of(request.pages)
    wanted: dict[str, set[Key]] = {}
    for row in listed:
        pages = {(str(row["doc_name"]), int(page)) for page in row["candidate_page_ids"]}
        wanted.setdefault(str(row.get("domain") or ""), set()).update(pages)
    saved = {part: _save_pages(root, part, keys, folder) for part, keys in wanted.items()}
    for row in listed:
        candidates = [int(page) for page in row["candidate_page_ids"]]
        files = saved[str(row.get("domain") or "")]
        order = [int(at) for at in row["openai_ranking"] or () if 0 <= int(at) < len(candidates)]
        right = {int(page) for page in row.get("gt_page_ids") or ()}
        yield {
            "query": row["query"],
            "images": [files[str(row["doc_name"]), page] for page in candidates],
            "order": list(dict.fromkeys(order)),
            "relevant": [at for at, page in enumerate(candidates) if page in right],
        }


def _conversation(turns: Any, n: int) -> Record:  # Any: a value of JSON
    """RankZephyr's conversation: the passages and the query of the prompt, and the order of the answer."""
    values = [str(turn.get("value") or "") for turn in turns or () if isinstance(turn, Mapping)]
    prompt = next((value for value in values if "search query" in value.lower()), "")
    names = _RANKED.findall(values[-1]) if len(values) > 1 else []
    queries = _QUERY.findall(prompt)
    passages = {name: text.strip() for name, text in _PASSAGE.findall(prompt)}
    order = [list(passages).index(name) for name in dict.fromkeys(names) if name in passages]
    if not queries or len(passages) < 2 or not order:
        raise MmrrError(
            f"row {n}: found {len(queries)} queries, {len(passages)} passages and {len(order)} ranks, expected a "
            "prompt with passages such as [A] ..., a search query, and an answer such as [B] > [A]"
        )
    return {"query": queries[-1], "passages": list(passages.values()), "order": order, "relevant": []}


def _save_pages(root: str, part: str, keys: set[Key], folder: Path) -> dict[Key, str]:
    """{page: its image file} of the pages ``keys`` of a part of MMDocIR's training set."""
    if not part:
        raise MmrrError("found no domain in a row, expected the part of MMDocIR's training set that has the pages")
    source = locate(root, f"parquet/{part}_filter.parquet")
    saved: dict[Key, str] = {}
    for row, image in zip(stream(source, ("file_name", "page")), images(source, "image"), strict=True):
        key = (str(row["file_name"]), int(row["page"]))
        if key in keys and key not in saved and image:
            saved[key] = _save(image, folder)
            if len(saved) == len(keys):
                break
    missing = sorted(keys - saved.keys())
    if missing:
        document, page = missing[0]
        raise MmrrError(f"{part}_filter.parquet: found no image of {len(missing)} pages, such as {page} of {document}")
    return saved


def _key(passage: Any, where: str) -> Key:  # Any: a value of JSON
    try:
        return str(passage["doc_name"]), int(passage["page_id"])
    except (TypeError, KeyError, ValueError):
        raise MmrrError(f"{where}: found a passage without doc_name and page_id") from None


def _save(image: bytes, folder: Path) -> str:
    """Write an image once, and return its path in the folder."""
    ending = "jpg" if image.startswith(b"\xff\xd8") else "png" if image.startswith(b"\x89PNG") else "img"
    name = f"{_IMAGES}/{hashlib.sha256(image).hexdigest()[:20]}.{ending}"
    target = folder / name
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        write_atomically(target, image)
    return name
