"""A stand-in for the OCR package: its engine knows each page by its grey."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

WORDS = ["lighthouse keeper", "", "barley harvest", "glacier tongue"]  # the text of pages of the greys 0, 64, 128, 192
FAKE = """
    import io, os
    from pathlib import Path
    from types import SimpleNamespace
    import numpy as np
    from PIL import Image
    class OCRVersion: PPOCRV6 = 6
    class ModelType: SMALL = 1
    class RapidOCR:
        def __init__(self, params):
            assert params["EngineConfig.onnxruntime.intra_op_num_threads"] == 1
            (Path(__file__).parent / "model").write_text(str(params.get("Rec.model_path")))
        def __call__(self, content):
            if not isinstance(content, bytes):
                return  # the test image of mmrr
            folder = Path(__file__).parent
            image = Image.open(io.BytesIO(content)).convert("L")
            grey = image.getpixel((image.width // 2, image.height // 2))
            with (folder / "read").open("a") as log:
                log.write(f"{grey}\\n")
            if (folder / "die").exists():
                os._exit(1)
            if (folder / "fail").exists():
                raise ValueError("no such\\npage")
            words = WORDS[round(grey / 64)].split()
            boxes = [[[x, 4], [x + 30, 4], [x + 30, 16], [x, 16]] for x in range(40 * len(words), 0, -40)]
            return SimpleNamespace(boxes=np.array(boxes) if words else None, txts=words[::-1] or None)
"""


@dataclass(frozen=True)
class Engine:
    """Fake packages with the names that OCR needs. Their engine knows each page by its grey."""

    folder: Path

    def greys_read(self) -> list[int]:
        """The greys of the pages that the engine has read since the last call."""
        log = self.folder / "rapidocr" / "read"
        greys = [int(line) for line in log.read_text().split()] if log.exists() else []
        log.unlink(missing_ok=True)
        return greys

    def model(self) -> str:
        """The path of the recognition model that the engine was given, or None."""
        return (self.folder / "rapidocr" / "model").read_text()

    def do(self, what: str) -> None:
        (self.folder / "rapidocr" / what).touch()
