"""MkDocs hook: a link to a file outside docs/ becomes the file's name, after a check that the file exists.

Such links work where the repository is read directly. The built site has no page for them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:  # MkDocs passes its own Page, config and files
    def plain(link: re.Match[str]) -> str:
        text, target = link.groups()
        if not (ROOT / target).exists():
            raise FileNotFoundError(f"docs/{page.file.src_uri} links to ../{target}, which does not exist")
        return f"`{target}`" if text.strip("`") == target else f"{text} (`{target}`)"

    return OUTSIDE.sub(plain, markdown)
