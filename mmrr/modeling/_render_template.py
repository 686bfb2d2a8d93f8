"""Renders one chat template as a program of its own, which the caller can stop. It imports jinja2 and nothing of mmrr.

Standard input: JSON with ``template``, ``values``, ``seconds`` and ``bytes``. Standard output: JSON with ``text``, or
with ``error``. The environment is the one in which transformers renders chat templates.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from typing import Any, NoReturn

import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

#: Longest text that a template may render, in characters.
MOST_CHARACTERS = 1_000_000


class Generation(jinja2.ext.Extension):
    """The tag ``generation``, which marks the model's own answers in training. Rendering ignores it."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 reads it from the class)

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Any) -> Any:
        return caller()


class Namespace(jinja2.utils.Namespace):
    """A namespace without attributes that begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot have the attribute {name!r}")
        super().__setitem__(name, value)


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The environment of chat templates: a sandbox with loop controls and four additions of transformers."""
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    made.globals["namespace"] = Namespace
    return made


def _limit(seconds: int, most_bytes: int) -> None:
    """Limit processor time and memory of this process, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))


def main() -> None:
    """Answer the request on standard input."""
    request = json.loads(sys.stdin.buffer.read())
    _limit(request["seconds"], request["bytes"])
    try:
        text = environment().from_string(request["template"]).render(**request["values"])
        if len(text) > MOST_CHARACTERS:
            raise ValueError(f"it rendered {len(text):,} characters; expected at most {MOST_CHARACTERS:,}")
        answer = {"text": text}
    except MemoryError:
        answer = {"error": "it needs more memory than a template may"}
    except Exception as error:  # a template can raise anything
        line = next(iter(str(error).splitlines()), "")
        answer = {"error": f"{type(error).__name__}: {line[:200]}"}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
