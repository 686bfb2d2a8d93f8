"""The recognition models of RapidOCR by language. Nothing is downloaded: a model is on this disk, or an error names it.

The package contains one model, for Latin script, Chinese and Japanese. Other scripts have a model each, of 8 to 16 MB.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from mmrr.errors import MmrrError

#: Language -> the name of its model. Languages of the package's own model have none.
MODELS: dict[str, str] = {
    **dict.fromkeys(("ko",), "korean"),
    **dict.fromkeys(("ru", "uk", "be"), "eslav"),
    **dict.fromkeys(("bg", "sr", "mk", "kk", "mn"), "cyrillic"),
    **dict.fromkeys(("el",), "el"),
    **dict.fromkeys(("ar", "fa", "ur"), "arabic"),
    **dict.fromkeys(("hi", "mr", "ne", "sa"), "devanagari"),
    **dict.fromkeys(("ta",), "ta"),
    **dict.fromkeys(("te",), "te"),
    **dict.fromkeys(("th",), "th"),
    **dict.fromkeys(("en", "de", "fr", "es", "it", "pt", "nl", "pl", "sv", "cs", "tr", "vi", "zh", "ja"), ""),
}
_FILE = "{}_PP-OCRv5_rec_mobile.onnx"
_PLACE = "https://www.modelscope.cn/models/RapidAI/RapidOCR/resolve/v3.10.0/onnx/PP-OCRv5/rec"


@dataclass(frozen=True, slots=True)
class Recognition:
    """The model that recognises the text of lines."""

    path: Path | None = None  # None: the package's own
    is_rtl: bool = False  # the script runs from right to left

    @property
    def name(self) -> str:
        """Its file name and the beginning of its hash, for the record of the pages; "" for the package's own."""
        if self.path is None:
            return ""
        return f"{self.path.name} {hashlib.sha256(self.path.read_bytes()).hexdigest()[:8]}"


def find(language: str) -> Recognition:
    """The model for a language code, or for the path of a model; the package's own for "".

    Raises MmrrError for an unknown language, and if the model is not on this disk: with what to download.
    """
    path = Path(language).expanduser()
    if language.endswith(".onnx"):
        if not path.is_file():
            raise MmrrError(
                f"--ocr-language {language}: there is no such file; expected a recognition model of RapidOCR"
            )
        return Recognition(path.absolute(), "arabic" in path.name)
    if not language:
        return Recognition()
    if language not in MODELS:
        known = ", ".join(sorted(MODELS))
        raise MmrrError(f"--ocr-language '{language}' is not known; expected one of {known}, or the path of a model")
    if not MODELS[language]:
        return Recognition()
    name = _FILE.format(MODELS[language])
    folder = _folder()
    if not (folder / name).is_file():
        raise MmrrError(
            f"--ocr-language {language} needs the model {name}, which is not in {folder}; download {_PLACE}/{name} "
            "into that folder, or give its path: --ocr-language PATH"
        )
    return Recognition(folder / name, MODELS[language] == "arabic")


def _folder() -> Path:
    """Where RapidOCR keeps its models. Imports nothing."""
    spec = importlib.util.find_spec("rapidocr")
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) / "models" if places else Path("rapidocr/models")
