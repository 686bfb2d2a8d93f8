"""The layers of the architecture: which module may import what, read from the source. docs/design.md has the table."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = {path.stem for path in (ROOT / "mmrr" / "stages").glob("*.py")} - {"__init__"}
HEAVY = {"torch", "transformers", "faiss", "bm25s", "safetensors", "datasets", "peft", "numpy"}

#: Third-party libraries and parts of mmrr: the modules that may import them, at whatever depth of the code.
#: The command line may import all of them, inside its commands.
ONLY_IN = {
    "faiss": {"mmrr.search.indexes"},
    "bm25s": {"mmrr.search.indexes", "mmrr.search.languages"},
    "Stemmer": {"mmrr.search.languages"},
    "py3langid": {"mmrr.search.languages"},
    "icu4py": {"mmrr.search.words"},
    "sentence_transformers": {"mmrr.modeling.sentence_models"},
    "transformers": {"mmrr.backbones", "mmrr.modeling.sentence_models", "mmrr.random_checkpoint", "mmrr.training"},
    "peft": {"mmrr.backbones", "mmrr.training"},
    "jinja2": {"mmrr.modeling._render_template", "mmrr.reporting.page"},
    "tokenizers": {
        "mmrr.modeling.chat",
        "mmrr.modeling.minilm",
        "mmrr.modeling.plain_tokenizer",
        "mmrr.random_checkpoint",
        "mmrr.training",
    },
    "accelerate": {"mmrr.training.distributed"},
    "matplotlib": {"mmrr.plots"},
    "pypdfium2": {"mmrr.documents"},
    "datasets": {"mmrr.evaluation.hub_dataset"},
    "ir_measures": {"mmrr.evaluation.metrics"},
    "huggingface_hub": {"mmrr.modeling.checkpoints", "mmrr.evaluation.hub_dataset"},
    "filelock": {"mmrr.workspace.current", "mmrr.workspace.scratch", "mmrr.training"},
    "rapidocr": {"mmrr.documents.ocr"},
    "cv2": {"mmrr.documents.ocr"},
    "fastapi": {"mmrr.serve"},
    "starlette": {"mmrr.serve"},
    "pydantic": {"mmrr.integrations", "mmrr.serve"},
    "uvicorn": {"mmrr.serve"},
    "prometheus_client": {"mmrr.serve"},
    "langchain_core": {"mmrr.integrations.langchain"},
    "llama_index": {"mmrr.integrations.llamaindex"},
    "haystack": {"mmrr.integrations.haystack"},
    "mteb": {"mmrr.integrations.mteb"},
    "pyterrier": {"mmrr.integrations.pyterrier"},
    "mcp": {"mmrr.integrations.mcp"},
    "pandas": {"mmrr.integrations.pyterrier"},
    "mmrr.integrations": {"mmrr.integrations"},
    "typer": set(),
    "rich": set(),
    "click": set(),
    "mmrr.cli": set(),
    "mmrr.stages": {
        "mmrr.pipeline",
        "mmrr.candidates",
        "mmrr.indexing",
        "mmrr.answering",
        "mmrr.evidence",
        "mmrr.experiments",
        "mmrr.tuning",
        "mmrr.benchmarks",
        "mmrr.removal",
        "mmrr.reranker",
    },
    "mmrr.pipeline": {
        "mmrr.candidates",
        "mmrr.experiments",
        "mmrr.tuning",
        "mmrr.benchmarks",
        "mmrr.adding",
        "mmrr.removal",
        "mmrr.api",
    },
    "mmrr.api": {"mmrr.integrations", "mmrr.serve"},
    "mmrr.serve": {"mmrr.serve"},
    "mmrr.experiments": set(),
    "mmrr.benchmarks": set(),
    "mmrr.removal": {"mmrr.api"},
    "mmrr.training": {"mmrr.training"},
}
#: Every module and package directly below mmrr, and the model families' packages.
PARTS = {f"mmrr.{path.stem}" for path in (ROOT / "mmrr").iterdir() if not path.name.startswith("_")}
FAMILIES = {"mmrr.backbones", "mmrr.embedders", "mmrr.scorers", "mmrr.text_embedders"}


def all_parts_but(*allowed: str) -> set[str]:
    return PARTS - {f"mmrr.{name}" for name in allowed}


#: What these must not import, at whatever depth. docs/design.md has the same table in words.
NEVER = {
    "mmrr.types": HEAVY | {"mmrr"},
    "mmrr.config": HEAVY | {"mmrr"},
    "mmrr.errors": HEAVY | {"mmrr"},
    "mmrr.contracts": HEAVY | all_parts_but("config", "types"),
    "mmrr.workers": (HEAVY - {"torch"}) | all_parts_but("errors"),
    "mmrr.documents": HEAVY | all_parts_but("documents", "errors"),
    "mmrr.search": all_parts_but("search", "errors", "types"),
    "mmrr.search.indexes": {"torch"},
    "mmrr.modeling": FAMILIES | all_parts_but("modeling", "contracts", "errors", "types", "workspace"),
    "mmrr.modeling.families": HEAVY | {"mmrr.workspace"},
    "mmrr.modeling.chat": {"torch", "mmrr.workspace"},
    "mmrr.workspace": FAMILIES | all_parts_but("workspace", "config", "errors", "types"),
    "mmrr.evaluation.metrics": {"torch", "mmrr.workspace"},
    "mmrr.evaluation.trec": HEAVY | {"mmrr.workspace"},
    # A backbone, an embedder or a scorer is given a Checkpoint and tensors; it knows no workspace.
    "mmrr.backbones": {"mmrr.workspace", "mmrr.search", "mmrr.evaluation", "mmrr.embedders", "mmrr.scorers"},
    "mmrr.embedders": {"mmrr.workspace", "mmrr.search", "mmrr.evaluation", "mmrr.backbones", "mmrr.scorers"},
    "mmrr.scorers": {"mmrr.workspace", "mmrr.search", "mmrr.evaluation", "mmrr.backbones", "mmrr.embedders"},
    "mmrr.text_embedders": {"mmrr.workspace", "mmrr.search", "mmrr.evaluation", "mmrr.backbones", "mmrr.scorers"},
    "mmrr.stages": FAMILIES,
    "mmrr.reporting": FAMILIES
    | HEAVY
    | all_parts_but("reporting", "context", "errors", "evaluation", "types", "workspace"),
    "mmrr.integrations": FAMILIES | {"transformers", "mmrr.stages", "mmrr.pipeline"},
    "mmrr.training.synthetic": (HEAVY - {"numpy"}) | all_parts_but("errors", "training"),
}


def imports(path: Path, module: str) -> list[tuple[str, bool]]:
    """(name, whether the import runs when the module is imported) of every import, without those for type checking."""
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, early: bool) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, early) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.rsplit(".", node.level)[0] + "." if node.level else ""
            source = (package + (node.module or "")).rstrip(".")
            found.extend((f"{source}.{alias.name}", early) for alias in node.names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, early and not inside)

    visit(ast.parse(path.read_text("utf-8")), True)
    return found


def modules() -> dict[str, Path]:
    library = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.glob("mmrr/**/*.py")}
    return library | {f"mmrr.cli.{path.stem}": path for path in ROOT.glob("cli/*.py")}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


LIBRARY = {name: path for name, path in modules().items() if not within(name, "mmrr.cli")}
CLI = {name: path for name, path in modules().items() if within(name, "mmrr.cli")}


@pytest.mark.parametrize("module", LIBRARY)
def test_a_module_imports_only_what_it_may(module):
    for name, _ in imports(LIBRARY[module], module):
        for library, homes in ONLY_IN.items():
            own_helper = within(module, "mmrr.stages") and name.startswith("mmrr.stages._")
            if within(name, library) and not own_helper and not any(within(module, home) for home in homes):
                pytest.fail(f"{module} imports {name}; only {sorted(homes) or 'the command line'} may")
        for package, forbidden in NEVER.items():
            if within(module, package) and any(within(name, one) for one in forbidden):
                pytest.fail(f"{module} imports {name}, which {package} must not")


def test_families_use_only_the_type_of_a_checkpoint():
    used = {
        name
        for module, path in LIBRARY.items()
        if within(module, "mmrr.embedders") or within(module, "mmrr.scorers")
        for name, _ in imports(path, module)
        if within(name, "mmrr.modeling.checkpoints")
    }
    assert used == {"mmrr.modeling.checkpoints.Checkpoint"}


@pytest.mark.parametrize("module", CLI)
def test_the_command_line_imports_nothing_heavy_before_a_command_runs(module):
    allowed = {"mmrr.cli", "mmrr.config", "mmrr.errors", "mmrr.__version__"}
    for name, early in imports(CLI[module], module):
        if early:
            assert not any(within(name, one) for one in HEAVY), f"{module} imports {name}"
            assert not within(name, "mmrr") or any(within(name, one) for one in allowed), f"{module} imports {name}"


def test_the_rules_read_real_imports():
    """``imports`` sees imports at any depth, knows which run early, and resolves relative names."""
    assert ("faiss", True) in imports(LIBRARY["mmrr.search.indexes"], "mmrr.search.indexes")
    assert ("huggingface_hub.snapshot_download", False) in imports(
        LIBRARY["mmrr.modeling.checkpoints"], "mmrr.modeling.checkpoints"
    )
    assert ("mmrr.cli.options", True) in imports(CLI["mmrr.cli.everyday"], "mmrr.cli.everyday")
    assert "torch" not in dict(imports(LIBRARY["mmrr.types"], "mmrr.types"))  # under TYPE_CHECKING
    assert set(NEVER) <= {module for name in LIBRARY for module in (name, name.rsplit(".", 1)[0])}
    assert {"render", "embed", "retrieve", "prune", "precache", "rerank"} <= STAGES


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_command_line_loads_no_model_library():
    """Otherwise ``mmrr --help`` takes seconds."""
    loaded = loaded_by("import mmrr.cli.main")
    assert "typer" in loaded
    assert not loaded & (HEAVY | {"PIL", "huggingface_hub", "pyarrow", "pypdfium2"})


def test_importing_the_library_loads_no_terminal_library():
    loaded = loaded_by("import mmrr.pipeline, mmrr.answering, mmrr.workspace.gc")
    assert "torch" in loaded
    assert not loaded & {"transformers", "peft", "datasets", "typer"}


def test_opening_a_workspace_loads_no_model_library():
    """Otherwise ``mmrr ls`` takes seconds."""
    loaded = loaded_by("import mmrr.context, mmrr.cli.report_workspace, mmrr.workspace.gc")
    assert not loaded & {"torch", "transformers", "faiss", "scipy", "safetensors"}


def test_processes_that_render_pages_load_no_model_library():
    loaded = loaded_by("import mmrr.workers, mmrr.documents.rendering")
    assert "pypdfium2" in loaded
    assert not loaded & {"torch", "transformers", "faiss"}


def test_the_libraries_of_the_extra_train_are_imported_late():
    """matplotlib and accelerate are optional: only plots and training on several devices need them."""
    for module in ("mmrr.training.distributed", "mmrr.plots"):
        names = {name.partition(".")[0]: early for name, early in imports(LIBRARY[module], module)}
        assert not names.get("matplotlib")
        assert not names.get("accelerate")
