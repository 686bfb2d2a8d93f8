"""Reading MMDocIR (arXiv 2501.08828): questions about long documents, with evidence pages and evidence boxes.

This module reads two forms of the data. *Published*: a folder, or a dataset id on the Hugging Face Hub, with
``MMDocIR_pages.parquet``, ``MMDocIR_layouts.parquet`` and ``MMDocIR_annotations.jsonl``. *PDFs*: a folder with the
original PDFs (in it or in ``documents/``) and the annotations (also as ``annotations.jsonl``). A folder with the
parquet file of the pages always has the published form.

This module knows no rendering, stages or workspace. Images are streamed: only a few are in memory. Page numbers start
at 1 in page ids and ``BenchmarkPage``, and at 0 (as published) in ``Question.page_id``, ``Box`` and ``Layout``.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from mmrr.errors import MmrrError
from mmrr.evaluation import hub_dataset
from mmrr.types import Qrels, Query

PAGES = "MMDocIR_pages.parquet"
LAYOUTS = "MMDocIR_layouts.parquet"
ANNOTATIONS = ("MMDocIR_annotations.jsonl", "annotations.jsonl")

#: The published text of an image: from OCR, or a description by a vision-language model.
Text = Literal["ocr_text", "vlm_text"]
BBox = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """An evidence box, in PDF points from the page's top left corner."""

    page: int  # from 0
    bbox: BBox  # x0, y0, x1, y1
    page_size: tuple[float, float]  # width, height


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one document. Evidence pages outside the document are possible; they are never found."""

    query_id: str  # "<doc_id>#<index>": does not depend on other documents
    doc_id: str
    index: int  # position among the document's questions, from 0
    text: str
    page_id: tuple[int, ...]  # evidence pages as published, from 0
    domain: str
    boxes: tuple[Box, ...]

    @property
    def pages(self) -> frozenset[str]:
        """The evidence pages by mmrr's page ids, ``<doc_id>/<number from 1, four digits>``."""
        return frozenset(f"{self.doc_id}/{page + 1:04d}" for page in self.page_id)


@dataclass(frozen=True, slots=True)
class Document:
    """A document of the benchmark. ``doc_id`` is the published name with ``_`` for each run of spaces and the like."""

    doc_id: str
    name: str  # as published
    domain: str
    n_pages: int | None  # from page_indices in the annotations; None if they have none
    pdf: Path | None  # None in the published form


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Questions, documents and the place of the pages."""

    form: Literal["published", "pdfs"]
    documents: tuple[Document, ...]
    questions: tuple[Question, ...]
    source: str  # the folder or dataset id that the user gave
    rows: tuple[tuple[str, int] | None, ...] = field(default=(), repr=False)
    """Published form: (doc_id, page number from 1) of each row of the pages file; None for other documents' rows."""

    def queries(self) -> list[Query]:
        """The questions as queries that search only their own document."""
        return [Query(question.query_id, question.text, question.doc_id) for question in self.questions]

    def qrels(self) -> Qrels:
        """The evidence pages as judgements. A question without evidence has no judgements."""
        return {
            question.query_id: dict.fromkeys(sorted(question.pages), 1)
            for question in self.questions
            if question.page_id
        }


@dataclass(frozen=True, slots=True)
class BenchmarkPage:
    """A page of the published form."""

    doc_id: str
    number: int  # from 1
    image: bytes = field(repr=False)  # JPEG
    text: str

    @property
    def page_id(self) -> str:
        return f"{self.doc_id}/{self.number:04d}"


@dataclass(frozen=True, slots=True)
class Layout:
    """A paragraph, figure, table, title or equation of a page, in PDF points from the page's top left corner."""

    layout_id: str  # "<doc_id>/L00012": position among the document's layouts, from 0
    doc_id: str
    page: int  # from 0
    type: str
    bbox: BBox
    page_size: tuple[float, float]
    image: bytes | None = field(repr=False)  # JPEG crop; None if not requested or not published
    text: str


def open_benchmark(data: str) -> Benchmark:
    """Read the annotations of a folder or Hub dataset and find each document's pages.

    For a Hub dataset, files in the local cache are used. Otherwise the annotations are downloaded and the pages are
    streamed. With ``HF_HUB_OFFLINE`` set, only the cache is used.

    Raises MmrrError if the folder or dataset does not exist, for a malformed annotation (with file and line), for
    documents without a PDF or without rows, and if the pages file contradicts the annotations about a document's pages.
    """
    folder = Path(data)
    if folder.is_dir():
        annotations = next((folder / name for name in ANNOTATIONS if (folder / name).is_file()), None)
        if annotations is None:
            raise MmrrError(f"found no annotations in {data}, expected {' or '.join(ANNOTATIONS)}")
        if not (folder / PAGES).is_file():
            documents, questions = _read_annotations(annotations)
            return Benchmark("pdfs", _with_pdfs(folder, documents), questions, data)
    elif re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", data):
        annotations = Path(hub_dataset.download(data, ANNOTATIONS[0]))
    else:
        raise MmrrError(f"found no folder {data}, expected a folder or a dataset id such as owner/name")
    documents, questions = _read_annotations(annotations)
    return Benchmark("published", documents, questions, data, _number_rows(hub_dataset.locate(data, PAGES), documents))


def content_id(benchmark: Benchmark, name: str, sha256: Callable[[Path], str]) -> str:
    """The hash of a published file's content, or the dataset's commit if the file is streamed.

    Raises MmrrError if the Hub does not answer.
    """
    source = hub_dataset.locate(benchmark.source, name)
    if "://" not in source:
        return sha256(Path(source))
    return hub_dataset.commit(benchmark.source)


def iter_pages(benchmark: Benchmark, text: Text) -> Iterator[BenchmarkPage]:
    """The published pages in the order of the file, streamed. Rows of documents without annotations are left out.

    Raises MmrrError if the file cannot be read and for a row without an image.
    """
    _expect_published(benchmark, "iter_pages")
    source = hub_dataset.locate(benchmark.source, PAGES)
    for place, row, image in zip(
        benchmark.rows, hub_dataset.stream(source, (text,)), hub_dataset.images(source), strict=True
    ):
        if place is not None:
            doc_id, number = place
            if image is None:
                raise MmrrError(f"{PAGES}: found no image for page {number} of {doc_id}, expected JPEG bytes")
            yield BenchmarkPage(doc_id, number, image, row[text] or "")


def iter_layouts(benchmark: Benchmark, text: Text, images: bool = True) -> Iterator[Layout]:
    """The published layouts in the order of the file, streamed. Documents without annotations are left out.

    The text of figures and tables is the OCR text or the model's description, as chosen by ``text``. Other layouts
    have their own text. Without ``images`` only the text columns are read.

    Raises MmrrError if the file cannot be read and for a row without page, bbox or page size.
    """
    _expect_published(benchmark, "iter_layouts")
    source = hub_dataset.locate(benchmark.source, LAYOUTS)
    rows = hub_dataset.stream(source, ("doc_name", "type", "page_id", "text", text, "bbox", "page_size"))
    crops = hub_dataset.images(source) if images else itertools.repeat(None)
    doc_ids = {_key(document.name): document.doc_id for document in benchmark.documents}
    count: Counter[str] = Counter()
    for n, (row, image) in enumerate(zip(rows, crops, strict=False)):
        doc_id = doc_ids.get(_key(row["doc_name"]))
        if doc_id is None:
            continue
        layout_id = f"{doc_id}/L{count[doc_id]:05d}"
        count[doc_id] += 1
        own, read = row["text"], row[text]
        yield Layout(
            layout_id=layout_id,
            doc_id=doc_id,
            page=_whole(row["page_id"], f"{LAYOUTS}, row {n}: page_id"),
            type=row["type"] or "",
            bbox=_bbox(row["bbox"], f"{LAYOUTS}, row {n}: bbox"),
            page_size=_size(row["page_size"], f"{LAYOUTS}, row {n}: page_size"),
            image=image,
            text=((read or own) if row["type"] in ("table", "image", "figure") else (own or read)) or "",
        )


# Annotations


def _read_annotations(path: Path) -> tuple[tuple[Document, ...], tuple[Question, ...]]:
    documents: dict[str, Document] = {}
    questions: list[Question] = []
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MmrrError(f"cannot read {path}: {error.strerror or error}") from error
    for n, raw in enumerate(content.split(b"\n"), 1):
        where = f"{path.name}, line {n}"
        try:
            line = raw.decode("utf-8-sig" if n == 1 else "utf-8")
            if not line.strip():
                continue
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MmrrError(f"{where}: found no valid JSON ({error}), expected the annotation of a document") from error
        document, of_document = _read_document(record, where)
        if document.doc_id in documents:
            _fail(where, f"found the document {document.name!r} (as {document.doc_id}) again, expected it once")
        documents[document.doc_id] = document
        questions += of_document
    if not documents:
        raise MmrrError(f"{path.name} is empty, expected the annotation of a document on each line")
    return tuple(documents.values()), tuple(questions)


def _read_document(record: Any, where: str) -> tuple[Document, list[Question]]:
    name = _text(_get(record, "doc_name", where), f"{where}: doc_name")
    # A slash would split the name into two levels in page ids and on disk.
    doc_id = re.sub(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff/\\]+", "_", unicodedata.normalize("NFC", name))
    if doc_id in (".", ".."):
        _fail(where, f"found the doc_name {name!r}, expected the name of a document")
    domain = _text(_get(record, "domain", where), f"{where}: domain")
    n_pages = None
    if record.get("page_indices") is not None:
        first, last = (
            _whole(row, f"{where}: page_indices") for row in _list(record["page_indices"], 2, f"{where}: page_indices")
        )
        if last < first:
            _fail(where, f"found the page_indices {record['page_indices']}, expected [first row, last row]")
        n_pages = last - first + 1
    questions = []
    for index, question in enumerate(_list(_get(record, "questions", where), None, f"{where}: questions")):
        here = f"{where}, question {index}"
        mapping = _list(_get(question, "layout_mapping", here), None, f"{here}: layout_mapping")
        questions.append(
            Question(
                query_id=f"{doc_id}#{index}",
                doc_id=doc_id,
                index=index,
                text=_text(_get(question, "Q", here), f"{here}: Q"),
                page_id=tuple(
                    _whole(page, f"{here}: page_id")
                    for page in _list(_get(question, "page_id", here), None, f"{here}: page_id")
                ),
                domain=domain,
                boxes=tuple(
                    Box(
                        page=_whole(_get(box, "page", here), f"{here}: page"),
                        bbox=_bbox(_get(box, "bbox", here), f"{here}: bbox"),
                        page_size=_size(_get(box, "page_size", here), f"{here}: page_size"),
                    )
                    for box in mapping
                ),
            )
        )
    return Document(doc_id, name, domain, n_pages, None), questions


# Any: values of parsed JSON. The functions below check their types.
def _get(record: Any, key: str, where: str) -> Any:
    if not isinstance(record, dict):
        _fail(where, f"found something other than an object, expected an object with {key}")
    if key not in record:
        _fail(where, f"found no {key}, expected the keys as published")
    return record[key]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        _fail(where, f"found {_short(value)}, expected text")
    return value


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        _fail(where, f"found {_short(value)}, expected a whole number from 0")
    return value


def _list(value: Any, length: int | None, where: str) -> Sequence[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        _fail(where, f"found {_short(value)}, expected a list" + (f" of {length}" if length else ""))
    return value


def _bbox(value: Any, where: str) -> BBox:
    x0, y0, x1, y1 = (_real(number, where) for number in _list(value, 4, where))
    return x0, y0, x1, y1


def _size(value: Any, where: str) -> tuple[float, float]:
    width, height = (_real(number, where) for number in _list(value, 2, where))
    return width, height


def _real(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _fail(where, f"found {_short(value)}, expected numbers")
    return float(value)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:40] + "..."


def _fail(where: str, problem: str) -> NoReturn:
    raise MmrrError(f"{where}: {problem}")


# Documents


def _key(name: str | None) -> str:
    """The key by which documents are matched: the published name without the suffix .pdf."""
    return re.sub(r"\.pdf$", "", unicodedata.normalize("NFC", name or ""), flags=re.IGNORECASE)


def _with_pdfs(folder: Path, documents: Sequence[Document]) -> tuple[Document, ...]:
    found: dict[str, Path] = {}
    for place in (folder / "documents", folder):
        if place.is_dir():
            for path in sorted(place.iterdir()):
                if path.suffix.lower() == ".pdf":
                    found.setdefault(_key(path.name), path)
    _check_none_missing(
        [document.name for document in documents if _key(document.name) not in found], f"PDF in {folder}"
    )
    return tuple(
        Document(document.doc_id, document.name, document.domain, document.n_pages, found[_key(document.name)])
        for document in documents
    )


def _check_none_missing(missing: Sequence[str], thing: str) -> None:
    if missing:
        some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise MmrrError(
            f"{len(missing)} of the annotated documents have no {thing}: {some}; "
            "add them, or remove their lines from the annotations"
        )


def _number_rows(pages: str, documents: Sequence[Document]) -> tuple[tuple[str, int] | None, ...]:
    """Document and page number of each row of the pages file, checked against the annotations.

    For the official scorer, evidence page i is the i-th row of the document. A ``passage_id`` that counts from 0 says
    the same, and only it can number the rows of a document that is not complete in the file.
    """
    by_key = {_key(document.name): document for document in documents}
    rows: dict[str, list[tuple[int, str]]] = {document.doc_id: [] for document in documents}
    n = 0
    for row in hub_dataset.stream(pages, ("doc_name", "passage_id")):
        document = by_key.get(_key(row["doc_name"]))
        if document is not None:
            rows[document.doc_id].append((n, str(row["passage_id"])))
        n += 1
    _check_none_missing([document.name for document in documents if not rows[document.doc_id]], f"row in {PAGES}")
    numbered: list[tuple[str, int] | None] = [None] * n
    for document in documents:
        found = rows[document.doc_id]
        expected = document.n_pages if document.n_pages is not None else len(found)
        if len(found) > expected:
            _fail(PAGES, f"found {len(found)} rows of {document.name}, expected {expected} by its page_indices")
        ids = [int(name) if re.fullmatch(r"[0-9]{1,6}", name) else -1 for _, name in found]
        usable = len(set(ids)) == len(ids) and all(0 <= page < expected for page in ids)
        if not usable and len(found) < expected:
            _fail(
                PAGES,
                f"found {len(found)} of the {expected} rows of {document.name}, and passage_ids that do not number "
                f"its pages from 0 to {expected - 1}",
            )
        for place, (row_number, _) in enumerate(found):
            numbered[row_number] = (document.doc_id, (ids[place] if usable else place) + 1)
    return tuple(numbered)


def _expect_published(benchmark: Benchmark, name: str) -> None:
    if benchmark.form != "published":
        raise ValueError(f"{name} reads the published form; render the PDFs of {benchmark.source} instead")
