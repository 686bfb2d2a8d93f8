"""Measures how well a trained reader reads real PDF pages: F1 of the set of characters in each visual token.

The truth comes from the text layers of the PDFs. ``RUN`` is the folder of a reader training, ``FOLDER`` has PDFs, and
``PAGES`` is the maximum number of pages.

    python -m benchmarks.reader_accuracy RUN FOLDER PAGES

Feeds the section "How well the reader reads" of BENCHMARKS.md.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pypdfium2 as pdfium
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Qwen3VLForConditionalGeneration

from benchmarks.pdf_pages import MIN_CHARACTERS, characters, image, size_px
from mmrr.documents.page_grid import CELL_PX
from mmrr.training.data.cell_targets import CellTargets
from mmrr.training.from_scratch.reader import Reader, patchify


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of (token, character) pairs: predicted and true, predicted, true."""

    hits: float
    predicted: float
    true: float

    @property
    def f1(self) -> float:
        return 2 * self.hits / max(1.0, self.predicted + self.true)


def load_reader(run: Path) -> Reader:
    """The reader of a training folder."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(run / "checkpoint", dtype=torch.float32)
    reader = Reader(model.model.visual, model.config.text_config.hidden_size)
    reader.load_state_dict(load_file(run / "heads.safetensors"), strict=False)
    return reader.eval()


def measure(reader: Reader, folder: Path, n_pages: int) -> list[Counts]:
    """The counts of each page. Each PDF contributes an equal number of random pages."""
    rng = random.Random(0)
    files = sorted(folder.rglob("*.pdf"))
    found: list[Counts] = []
    for file in files:
        document = pdfium.PdfDocument(file)
        share = min(len(document), -(-n_pages // len(files)))
        for number in rng.sample(range(len(document)), share):
            page = document[number]
            if page.get_rotation():
                continue
            words = characters(page, *size_px(page))
            if len(words) >= MIN_CHARACTERS and len(found) < n_pages:
                found.append(_count(reader, page, words))
    return found


def _count(reader: Reader, page: pdfium.PdfPage, words: list) -> Counts:
    width_px, height_px = size_px(page)
    resized = image(page).resize((width_px, height_px), Image.Resampling.BICUBIC)
    columns, rows = width_px // CELL_PX, height_px // CELL_PX
    true = CellTargets(words).crop(0, 0, columns, rows, CELL_PX)[0]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = reader(patchify(np.asarray(resized)[None]), torch.tensor([[1, rows * 2, columns * 2]]))[0]
    predicted = (logits > 0).numpy()
    return Counts(float((predicted & true).sum()), float(predicted.sum()), float(true.sum()))


def main(run: Path, folder: Path, n_pages: int) -> None:
    torch.set_num_threads(2)
    found = measure(load_reader(run), folder, n_pages)
    total = Counts(*(sum(getattr(one, name) for one in found) for name in ("hits", "predicted", "true")))
    precision, recall = total.hits / total.predicted, total.hits / total.true
    quartiles = ", ".join(f"{value:.2f}" for value in np.percentile([one.f1 for one in found], [25, 50, 75]))
    print(f"{len(found)} pages: F1 {total.f1:.3f}, precision {precision:.3f}, recall {recall:.3f}")
    print(f"F1 per page, quartiles: {quartiles}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
