"""Limits on sizes: 450 lines a file, 60 lines a function, 6 parameters a function unless a reason is given.

A reason is a docstring that speaks of the parameters, or the comment ``# One parameter per option.`` above a command.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("mmrr", "cli", "tests", "benchmarks", "examples", "data", "docs")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 450, 60, 6
COMMAND = "# One parameter per option."


def functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def lines_above(lines: list[str], node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return lines[first - 2]


@pytest.mark.parametrize("path", FILES, ids=[path.relative_to(ROOT).as_posix() for path in FILES])
def test_files_and_functions_are_small(path: Path) -> None:
    source = path.read_text("utf-8")
    lines = source.splitlines()
    found = [f"{len(lines)} lines"] * (len(lines) > MOST_LINES)
    for node in functions(source):
        command = lines_above(lines, node) == COMMAND
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        # The options of a command are its signature: only its body is counted.
        length -= (node.body[0].lineno - node.lineno) if command else 0
        if length > MOST_FUNCTION_LINES:
            found.append(f"{node.name} has {length} lines")
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = len([one for one in arguments if one.arg not in ("self", "cls")])
        if count > MOST_PARAMETERS and not command and "parameters" not in (ast.get_docstring(node) or ""):
            found.append(f"{node.name} has {count} parameters and gives no reason")
    assert not found
