"""The fonts of this machine that can write English, by family. Knows files and advances, not pages."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

#: Faces that print seldom uses: hairlines, small capitals, symbols, handwriting.
UNUSUAL = ("math", "symbol", "keyboard", "caps", "dunhill", "quot", "unslanted", "d050000l", "z003", "chorus")
UNUSUAL_STYLES = ("thin", "hairline", "extralight", "black", "heavy", "caps", "outline", "oblique italic", "initials")


@dataclass(frozen=True, slots=True)
class Family:
    """One family: files of its upright, bold and slanted faces ("" stands for Pillow's own font)."""

    name: str
    regular: str
    bold: str
    italic: str
    mono: bool


@lru_cache(maxsize=1)
def families() -> tuple[Family, ...]:
    """Families that fontconfig lists for English, sorted by name; Pillow's built-in font where there are none."""
    faces: dict[str, dict[str, str]] = {}
    spacing: dict[str, bool] = {}
    for line in _listing():
        file, names, styles, pitch = (*line.split("|"), "", "", "")[:4]
        name, style = names.split(",")[0], styles.split(",")[0].lower()
        odd = any(word in names.lower() for word in UNUSUAL) or any(word in styles.lower() for word in UNUSUAL_STYLES)
        if odd or Path(file).suffix.lower() not in (".ttf", ".otf"):
            continue
        slot = {"regular": "regular", "roman": "regular", "book": "regular", "normal": "regular", "bold": "bold"}.get(
            style, "italic" if style in ("italic", "oblique", "slanted") else ""
        )
        if slot:
            faces.setdefault(name, {}).setdefault(slot, file)
            spacing[name] = spacing.get(name, False) or pitch == "100" or "mono" in name.lower()
    found = []
    for name in sorted(faces):
        slots = faces[name]
        regular = slots.get("regular")
        if regular and _writes_english(regular):
            found.append(Family(name, regular, slots.get("bold", regular), slots.get("italic", regular), spacing[name]))
    return tuple(found) or (Family("Pillow", "", "", "", False),)


def _listing() -> list[str]:
    command = ["fc-list", ":lang=en", "--format", "%{file}|%{family}|%{style}|%{spacing}\n"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return sorted(done.stdout.splitlines())


def _writes_english(file: str) -> bool:
    try:
        font = ImageFont.truetype(file, 20)
    except OSError:
        return False
    blank = bytes(font.getmask("\uffff"))
    return all(bytes(font.getmask(letter)) != blank for letter in "aQz7")


class Face:
    """One face at one size, with its advances remembered: measuring text is most of the work of setting it."""

    def __init__(self, file: str, size_px: float) -> None:
        self.font = (
            ImageFont.truetype(file, size_px, layout_engine=ImageFont.Layout.BASIC)
            if file
            else ImageFont.load_default(size_px)
        )
        self.size_px = size_px
        self._advances: dict[str, float] = {}

    def advances(self, text: str) -> list[float]:
        """Width of each character in pixels, without kerning."""
        known = self._advances
        widths = []
        for character in text:
            if character not in known:
                known[character] = float(self.font.getlength(character))
            widths.append(known[character])
        return widths

    def width(self, text: str) -> float:
        return sum(self.advances(text))


@lru_cache(maxsize=512)
def face(file: str, size_px: float) -> Face:
    return Face(file, size_px)
