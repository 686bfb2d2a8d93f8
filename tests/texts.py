"""Invented texts to draw, in the format of docs/training.md: all block types, and answers that occur only once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PLACES = ("Skarrow", "Hesk", "Lunna", "Vatsay", "Orrin", "Muckle", "Fetlar", "Brae")
THINGS = ("ferry", "library", "school", "quarry", "lighthouse", "bakery", "museum", "archive")


def _document(number: int) -> dict[str, Any]:
    place, thing = PLACES[number % 8], THINGS[(number * 3 + number // 8) % 8]
    name = f"{thing} of {place} {number}"
    blocks: list[dict[str, Any]] = [
        {"type": "heading", "text": f"The {name}", "level": 1},
        {"type": "text", "text": f"The {name} was opened by warden Q{number}X in the wet spring of {1900 + number}."},
        {"type": "list", "text": f"key {number}a hangs by the door\nkey {number}b hangs in the cellar"},
        {"type": "code", "text": f"def open_{number}():\n    return {number * 31}\n"},
        {
            "type": "table",
            "rows": [["Month", "Visitors"]] + [[f"month {m} of {number}", f"{number}{m}77"] for m in range(1, 6)],
        },
    ]
    for part in range(4):
        words = " ".join(f"{THINGS[(number + i * part) % 8]}{number * 40 + part * 10 + i}" for i in range(10))
        blocks.append({"type": "text", "text": f"Part {part} of the {name} lists these for the council: {words}. " * 3})
    questions = [
        {"q": f"Who opened the {name}?", "a": f"Q{number}X", "block": 1},
        {"q": f"How many visitors came to the {name} in its third month?", "a": f"{number}377", "block": 4},
        {"q": f"What was listed first in part 2 of the {name}?", "a": f"{THINGS[number % 8]}{number * 40 + 20}"},
    ]
    return {"id": f"made-up-{number}", "source": "made-up", "title": f"On the {name}", "blocks": blocks} | {
        "questions": questions
    }


RECORDS = [_document(number) for number in range(24)]


def write_texts(path: Path, records: list[dict[str, Any]] = RECORDS) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path
