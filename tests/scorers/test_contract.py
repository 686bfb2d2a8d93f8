"""A family that does not meet its contract is refused in one line, which names the file, the member and the page."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from mmrr import embedders, scorers, text_embedders
from mmrr.contracts import SupportsDense, SupportsUncached
from mmrr.embedders import colqwen3
from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.scorers import crossencoder, edje, kalm, minireranker, ziprerank
from tests.console import mmrr

DOCS = Path(__file__).parents[2] / "docs" / "writing-a-scorer.md"
#: A complete embedder family, as short as possible.
EMBEDDER = '''
"""Nothing."""
from dataclasses import dataclass

from mmrr.contracts import EmbedderSpec

SPEC = EmbedderSpec(checkpoints=(), multi_vector=False)


@dataclass(frozen=True)
class Prepare:
    """No options."""


@dataclass(frozen=True)
class Search:
    """No options."""


class Embedder:
    def embed_pages(self, pages): ...
    def embed_queries(self, texts, options): ...
    def temperature(self, options): ...


def check(checkpoint, options): ...
def pixel_limits(checkpoint, options): ...
def load(checkpoint, options, device, dtype) -> Embedder: ...
'''
#: Makes a family of a kind from source text and loads it by name.
Load = Callable[[str, str], object]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    def write_and_load(kind: families.Described, source: str) -> object:
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "buckets.py").write_text(source, encoding="utf-8")
        package = {"scorers": scorers, "embedders": embedders, "text_embedders": text_embedders}[kind]
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        return families.load(kind, "buckets")

    yield write_and_load
    for kind in ("scorers", "embedders", "text_embedders"):
        sys.modules.pop(f"mmrr.{kind}.buckets", None)


def example() -> str:
    """The complete family of the documentation."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    return str(code)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("SPEC = ", "SPECS = ", "no member 'SPEC' (its 'SPECS' has the nearest name)"),
        ("SPEC = ScorerSpec(", "SPEC = dict(", "SPEC is a dict; expected ScorerSpec(...)"),
        ("class Score:", "class Scoring:", "no member 'Score' (its 'Scorer' has the nearest name)"),
        ("def resolve(", "def resolv(", "no member 'resolve' (its 'resolv' has the nearest name)"),
        ("def page_input(", "def _input(", "no member 'page_input'"),
        ("def prompt(", "def prompts(", "no member 'prompt' (its 'prompts' has the nearest name)"),
        ("def grid(", "def _grid(", "no member 'grid'"),
        ("def pruning_grid(", "def prune(", "no member 'pruning_grid'"),
        ("def cache_bytes(", "def cached_bytes(", "no member 'cache_bytes' (its 'cached_bytes' has the nearest name)"),
        ("def load(", "def loads(", "no member 'load' (its 'loads' has the nearest name)"),
        (
            "def prompt(options: Prepare)",
            "def prompt()",
            "prompt is prompt(); expected prompt(options)",
        ),
        (
            "height_px: int) -> Grid",
            "height: int) -> Grid",
            "grid is grid(options, config, width_px, height); expected grid(options, config, width_px, height_px)",
        ),
        (
            "def encode_query(",
            "def encode_qury(",
            "class Scorer has no member 'encode_query' (its 'encode_qury' has the nearest name)",
        ),
        (
            "def prepare(self, pages",
            "def prepare(self, texts",
            "Scorer.prepare is prepare(texts, kept); expected prepare(pages, kept)",
        ),
        (
            "def score_uncached(self, query: str, page: str",
            "def score_uncached(self, query: str, text: str",
            "Scorer.score_uncached is score_uncached(query, text, kept, options); "
            "expected score_uncached(query, page, kept, options)",
        ),
        (
            "def score_uncached(",
            "def score_uncache(",
            "Scorer.score_uncache is no member of a family; its name is close to the optional "
            "score_uncached(query, page, kept, options)",
        ),
        (
            "dtype: torch.dtype) -> Scorer:",
            "dtype: torch.dtype):",
            "load has no class as its return annotation; expected -> the class of the scorer",
        ),
        (
            "dtype: torch.dtype) -> Scorer:",
            "dtype: torch.dtype) -> Reranker:",
            "the annotations of load cannot be read (name 'Reranker' is not defined)",
        ),
        (
            ', metadata={"help": "Convert words to lower case."}',
            "",
            'option Prepare.lower has no help; expected metadata={"help": "..."}',
        ),
        (
            "default=1.0, ",
            "",
            "option Score.power has no default; expected field(default=..., metadata=...)",
        ),
        (
            "power: float",
            "power: list[float]",
            "option Score.power is of type list[float]; expected int, float, str, bool or a Literal of strings",
        ),
        (
            "@dataclass(frozen=True, slots=True)\nclass Prepare",
            "@dataclass\nclass Prepare",
            "Prepare is not a frozen dataclass; expected @dataclass(frozen=True)",
        ),
    ],
)
def test_a_scorer_that_breaks_the_contract_is_refused_in_one_line(
    load: Load, old: str, new: str, expected: str
) -> None:
    assert old in example()
    with pytest.raises(MmrrError) as error:
        load("scorers", example().replace(old, new))
    assert str(error.value) == f"mmrr/scorers/buckets.py: {expected}; see docs/writing-a-scorer.md"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("SPEC = EmbedderSpec", "SPECS = EmbedderSpec", "no member 'SPEC' (its 'SPECS' has the nearest name)"),
        ("class Search", "class Searching", "no member 'Search' (its 'Searching' has the nearest name)"),
        (
            "def embed_pages(",
            "def embed_page(",
            "class Embedder has no member 'embed_pages' (its 'embed_page' has the nearest name)",
        ),
        (
            "def temperature(self, options)",
            "def temperature(self)",
            "Embedder.temperature is temperature(); expected temperature(options)",
        ),
        (
            ") -> Embedder",
            ")",
            "load has no class as its return annotation; expected -> the class of the embedder",
        ),
    ],
)
def test_an_embedder_that_breaks_the_contract_is_refused_in_one_line(
    load: Load, old: str, new: str, expected: str
) -> None:
    assert old in EMBEDDER
    with pytest.raises(MmrrError) as error:
        load("embedders", EMBEDDER.replace(old, new))
    assert str(error.value) == f"mmrr/embedders/buckets.py: {expected}; see docs/writing-a-scorer.md"


def test_complete_families_load(load: Load) -> None:
    load("scorers", example())
    load("embedders", EMBEDDER)


@pytest.mark.parametrize("name", families.names("scorers"))
def test_every_shipped_scorer_meets_the_contract(name: str) -> None:
    family = families.load("scorers", name)
    assert family.SPEC.checkpoints
    assert family.Prepare()
    assert family.Score()


@pytest.mark.parametrize("name", families.names("embedders"))
def test_every_shipped_embedder_meets_the_contract(name: str) -> None:
    family = families.load("embedders", name)
    assert family.SPEC.checkpoints
    assert family.Prepare()
    assert family.Search()


@pytest.mark.parametrize("name", families.names("text_embedders"))
def test_every_shipped_text_embedder_meets_the_contract(name: str) -> None:
    family = families.load("text_embedders", name)
    assert family.SPEC.checkpoints
    assert family.Prepare()


def test_a_text_embedder_is_one_file(load: Load) -> None:
    """It takes the checkpoints of the model types that it names; the others go to the family of any type."""
    source = Path(families.load("text_embedders", "sentence_transformers").__file__ or "").read_text("utf-8")
    with pytest.raises(MmrrError, match=r"mmrr/text_embedders/buckets\.py"):
        load("text_embedders", "x = 1\n")
    load_again = source.replace('model_types=("*",)', 'model_types=("own",)')
    (Path(text_embedders.__path__[-1]) / "buckets.py").write_text(load_again, encoding="utf-8")
    sys.modules.pop("mmrr.text_embedders.buckets", None)
    assert families.text_embedder("own") == "buckets"
    assert families.text_embedder("bert") == "sentence_transformers"


def test_optional_abilities_are_protocols() -> None:
    able = {
        module.__name__.rpartition(".")[2]: (
            issubclass(module.Scorer, SupportsUncached),
            issubclass(module.Scorer, SupportsDense),
        )
        for module in (crossencoder, edje, kalm, minireranker, ziprerank)
    }
    assert able == {
        "crossencoder": (True, False),
        "edje": (True, False),
        "kalm": (True, False),
        "minireranker": (True, True),
        "ziprerank": (False, False),
    }


def test_a_module_with_a_leading_underscore_is_no_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = families.names("scorers")
    (tmp_path / "_helper.py").write_text("")
    (tmp_path / "other.py").write_text("")
    monkeypatch.setattr(scorers, "__path__", [*scorers.__path__, str(tmp_path)])
    assert families.names("scorers") == sorted([*known, "other"])
    with pytest.raises(MmrrError, match="no scorer family '_helper'; expected one of: "):
        families.load("scorers", "_helper")


# Options


@dataclass(frozen=True)
class Some:
    """One option of each type."""

    count: int = field(default=1, metadata={"help": "Number."})
    share: float = field(default=0.5, metadata={"help": "Share."})
    quick: bool = field(default=False, metadata={"help": "Switch."})
    codec: Literal["none", "int8"] = field(default="none", metadata={"help": "Choice."})
    new_name: str = field(default="", metadata={"help": "Text.", "formerly": "old_name"})


def test_options_are_parsed_by_their_types() -> None:
    pairs = {"count": "3", "share": "0.25", "quick": "True", "codec": "int8", "new_name": "x=y"}
    assert families.parse_options(Some, pairs) == Some(3, 0.25, True, "int8", "x=y")


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (("count", "many"), "option count=many: expected int"),
        (("share", "half"), "option share=half: expected float"),
        (("quick", "yes"), "option quick=yes: expected true|false"),
        (("codec", "int4"), "option codec=int4: expected none|int8"),
        (("colour", "red"), "unknown option colour; valid options: codec, count, new_name, quick, share"),
    ],
)
def test_an_option_that_cannot_be_parsed_is_refused(pair: tuple[str, str], expected: str) -> None:
    with pytest.raises(MmrrError) as error:
        families.parse_options(Some, dict([pair]))
    assert str(error.value) == expected


def test_a_renamed_option_is_accepted_with_a_notice_and_stored_as_before(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        options = families.parse_options(Some, {"old_name": "x"})
    assert options == Some(new_name="x")
    assert caplog.messages == ["option old_name is now called new_name"]
    stored = families.stored_options(options)
    assert stored == {"count": 1, "share": 0.5, "quick": False, "codec": "none", "old_name": "x"}
    assert families.make_options(Some, stored) == options


def test_the_soft_idf_option_keeps_its_stored_name() -> None:
    """Old workspaces store ``rarity``: another name would change the hash of every run."""
    assert families.stored_options(colqwen3.Search()) == {"prefix": "", "rarity": True}
    assert families.parse_options(colqwen3.Search, {"rarity": "false"}) == colqwen3.Search(soft_idf=False)


def test_models_prints_every_option_with_its_meaning() -> None:
    listed = mmrr("models").stdout
    described, errors = families.describe()
    assert errors == []
    assert {(family.kind, family.name) for family in described} == {
        *(("embedder", name) for name in families.names("embedders")),
        *(("text embedder", name) for name in families.names("text_embedders")),
        *(("scorer", name) for name in families.names("scorers")),
    }
    for family in described:
        assert family.name in listed
        for option in family.options:
            assert option.name in listed
            assert option.stage in ("index", "retrieve", "precache", "rerank")
            assert " ".join(option.help.split()) in " ".join(listed.split())


def test_a_description_has_the_type_the_default_and_the_stage_of_an_option() -> None:
    (found,) = (family for family in families.describe()[0] if family.name == "minireranker")
    codec, exit_layer = (
        next(option for option in found.options if option.name == name) for name in ("codec", "exit_layer")
    )
    assert (codec.type, codec.default, codec.stage) == ("none|bf16|int8|int4", "none", "precache")
    assert (exit_layer.type, exit_layer.default, exit_layer.stage) == ("int", 0, "rerank")
    fields = {field.name for cls in (minireranker.Prepare, minireranker.Score) for field in dataclasses.fields(cls)}
    assert {option.name for option in found.options} == fields


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\ndef broken(:\n", "mmrr/scorers/buckets.py, line 2: SyntaxError: invalid syntax"),
        ("x = 1\n\nimport no_such_module\n", "line 3: ModuleNotFoundError: No module named 'no_such_module'"),
        ("from mmrr.types import NoSuchName\n", "line 1: ImportError: cannot import name 'NoSuchName'"),
        ("x = unknown_name\n", "line 1: NameError: name 'unknown_name' is not defined"),
    ],
)
def test_a_family_that_cannot_be_imported_is_one_line(load: Load, source: str, expected: str) -> None:
    with pytest.raises(MmrrError) as refused:
        load("scorers", source)
    message = str(refused.value)
    assert expected in message
    assert message.startswith("mmrr/scorers/buckets.py, line ")
    assert message.endswith("; see docs/writing-a-scorer.md")
    assert "\n" not in message


def test_a_broken_family_does_not_hide_the_others(load: Load) -> None:
    with pytest.raises(MmrrError):
        load("scorers", "def broken(:\n")
    found = mmrr("models")
    assert "scorer minireranker" in found.stdout
    assert "error: mmrr/scorers/buckets.py, line 1: SyntaxError" in found.stderr
    document = json.loads(mmrr("models", "--json").stdout)
    kinds = ("scorers", "embedders", "text_embedders")
    assert len(document["families"]) == sum(len(families.names(kind)) for kind in kinds) - 1
    (error,) = document["errors"]
    assert "buckets.py, line 1" in error
