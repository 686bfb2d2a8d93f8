"""How well a reader reads real PDF pages: F1 of characters per cell, truth from the PDFs' own text layers.

``python -m benchmarks.reading RUN FOLDER PAGES`` measures the reader of a run on so many pages of the PDFs in a folder.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pypdfium2 as pdfium
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Qwen3VLForConditionalGeneration

from mmrr.documents.page_grid import CELL_PX, snap
from mmrr.training.data.cell_targets import CellTargets
from mmrr.training.from_scratch.reader import Reader, patchify
from mmrr.training.synthetic.canvas import Word

#: Pages with fewer characters in their text layer are scans or pictures: there is no truth to compare with.
LEAST_CHARACTERS = 100


def load(run: Path) -> Reader:
    model = Qwen3VLForConditionalGeneration.from_pretrained(run / "checkpoint", dtype=torch.float32)
    reader = Reader(model.model.visual, model.config.text_config.hidden_size)
    reader.load_state_dict(load_file(run / "heads.safetensors"), strict=False)
    return reader.eval()


def truth(page: pdfium.PdfPage, width_px: int, height_px: int) -> list[Word]:
    """The page's characters, each as a word of its own, where their boxes have their middles.

    Boxes are in the PDF's coordinates, of which a page may show a part only. Pages that are turned are not for this.
    """
    width, height = page.get_size()
    x_shown, y_shown, _, _ = page.get_bbox()
    layer = page.get_textpage()
    words = []
    for at in range(layer.count_chars()):
        character = layer.get_text_range(at, 1)[:1]
        left, bottom, right, top = layer.get_charbox(at)
        x, y = (left + right) / 2 - x_shown, (bottom + top) / 2 - y_shown
        middle = (x / width * width_px, (1 - y / height) * height_px)
        words.append(Word(character, np.array([middle], dtype=np.float32), 0))
    return [word for word in words if word.text]


def measure(reader: Reader, folder: Path, pages: int) -> tuple[int, np.ndarray, list[float]]:
    """Pages measured; hits, found and true characters over all of them; F1 of each."""
    rng = random.Random(0)
    files = sorted(folder.rglob("*.pdf"))
    counts, scores = np.zeros(3), []
    for file in files:
        document = pdfium.PdfDocument(file)
        share = min(len(document), -(-pages // len(files)))
        for number in rng.sample(range(len(document)), share):
            page = document[number]
            if page.get_rotation():
                continue
            width, height = (side * 150 / 72 for side in page.get_size())
            width_px, height_px = snap(width, height, CELL_PX, 1280)
            words = truth(page, width_px, height_px)
            if len(words) < LEAST_CHARACTERS or len(scores) >= pages:
                continue
            image = page.render(scale=150 / 72).to_pil().convert("RGB")
            image = image.resize((width_px, height_px), Image.Resampling.BICUBIC)
            columns, rows = width_px // CELL_PX, height_px // CELL_PX
            wanted = CellTargets(words).crop(0, 0, columns, rows, CELL_PX)[0]
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                logits = reader(patchify(np.asarray(image)[None]), torch.tensor([[1, rows * 2, columns * 2]]))[0]
            said = (logits > 0).numpy()
            found = np.array([(said & wanted).sum(), said.sum(), wanted.sum()], dtype=float)
            counts += found
            scores.append(2 * found[0] / max(1.0, found[1] + found[2]))
    return len(scores), counts, scores


if __name__ == "__main__":
    torch.set_num_threads(2)
    n, (hits, said, true), scores = measure(load(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3]))
    quartiles = ", ".join(f"{value:.2f}" for value in np.percentile(scores, [25, 50, 75]))
    print(f"{n} pages: F1 {2 * hits / (said + true):.3f}, precision {hits / said:.3f}, recall {hits / true:.3f}")
    print(f"F1 by page, quartiles: {quartiles}")
