"""The contract of the architecture: which module may import what, read from the source; see docs/design.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = {path.stem for path in (ROOT / "mmrr" / "stages").glob("*.py")} - {"__init__"}
HEAVY = {"torch", "transformers", "faiss", "bm25s", "safetensors", "datasets", "peft", "numpy"}
SCREEN = {"typer", "rich", "click"}

#: Third-party libraries and mmrr's own modules that only these may import, at whatever depth of the code.
ONLY_IN = {
    "faiss": {"mmrr.search.indexes"},
    "bm25s": {"mmrr.search.indexes"},
    "Stemmer": {"mmrr.search.indexes"},
    "transformers": {"mmrr.backbones", "mmrr.random_checkpoint", "mmrr.training"},
    "peft": {"mmrr.backbones", "mmrr.training"},
    "tokenizers": {"mmrr.modeling.chat", "mmrr.random_checkpoint", "mmrr.training"},
    "accelerate": {"mmrr.training.distributed"},
    "matplotlib": {"mmrr.plots"},
    "pdf2image": {"mmrr.documents.rendering"},
    "pypdfium2": {"mmrr.documents.discovery", "mmrr.documents.rendering"},
    "datasets": set(),
    "ir_measures": {"mmrr.evaluation.metrics"},
    "huggingface_hub": {"mmrr.modeling.checkpoints", "mmrr.evaluation.hub_dataset"},
    "filelock": {"mmrr.workspace.store", "mmrr.training"},
    "rapidocr": {"mmrr.documents.ocr"},
    "cv2": {"mmrr.documents.ocr"},
    "typer": set(),
    "rich": set(),
    "click": set(),
    "mmrr.cli": set(),
    "mmrr.stages": {"mmrr.pipeline", "mmrr.experiments"},
    "mmrr.experiments": set(),
    "mmrr.pipeline": {"mmrr.experiments"},
    "mmrr.training": {"mmrr.training"},
}
#: Every module and package right below mmrr.
MODULES = {f"mmrr.{path.stem}" for path in (ROOT / "mmrr").iterdir() if not path.name.startswith("_")}
OWN_SHELF = {
    "mmrr.workspace.store",
    "mmrr.workspace.pages",
    "mmrr.workspace.tensors",
    "mmrr.workspace.gc",
    "mmrr.search.indexes",
    "mmrr.evaluation.mmdocir",
}
#: What these must not import, at whatever depth.
NEVER = {
    "mmrr.types": HEAVY | {"mmrr"},
    "mmrr.config": HEAVY | {"mmrr"},
    "mmrr.errors": HEAVY | {"mmrr"},
    "mmrr.documents.page_grid": HEAVY | {"mmrr"},
    "mmrr.modeling.saliency": OWN_SHELF
    | {"mmrr.backbones", "mmrr.embedders", "mmrr.scorers", "mmrr.modeling.families"},
    "mmrr.modeling.families": HEAVY | OWN_SHELF | {"mmrr.backbones", "mmrr.embedders", "mmrr.scorers"},
    "mmrr.workspace.store": {
        "mmrr.backbones",
        "mmrr.embedders",
        "mmrr.scorers",
        "mmrr.modeling.families",
        "mmrr.search.indexes",
    },
    # Of mmrr it knows its own modules and mmrr.errors.
    "mmrr.training.synthetic": (HEAVY - {"numpy"}) | (MODULES - {"mmrr.errors", "mmrr.training"}),
    "mmrr.search.indexes": {"torch", "mmrr.workspace.store"},
    "mmrr.search.late_interaction": MODULES - {"mmrr.errors", "mmrr.search.late_interaction"},
    "mmrr.evaluation.metrics": {"torch", "mmrr.workspace.store"},
    "mmrr.workers": (HEAVY - {"torch"}) | (MODULES - {"mmrr.errors"}),
    "mmrr.documents.ocr": HEAVY | (MODULES - {"mmrr.errors"}),
    "mmrr.modeling.chat": {"torch", "mmrr"},
    "mmrr.evaluation.trec": HEAVY | {"mmrr.workspace.store"},
    # mmrr.modeling.checkpoints is allowed: a scorer is given a Checkpoint.
    "mmrr.backbones": OWN_SHELF
    | {"mmrr.modeling.checkpoints", "mmrr.embedders", "mmrr.scorers", "mmrr.modeling.families"},
    "mmrr.embedders": OWN_SHELF | {"mmrr.backbones", "mmrr.scorers"},
    "mmrr.scorers": OWN_SHELF | {"mmrr.backbones", "mmrr.embedders"},
    "mmrr.stages": {"mmrr.backbones", "mmrr.embedders", "mmrr.scorers"},
}


def imports(path: Path, module: str) -> list[tuple[str, bool]]:
    """(name, whether it is imported when the module is) for every import; names of types alone are left out."""
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, at_once: bool) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.rsplit(".", node.level)[0] + "." if node.level else ""
            source = (package + (node.module or "")).rstrip(".")
            found.extend((f"{source}.{alias.name}", at_once) for alias in node.names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, at_once and not inside)

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
def test_a_module_imports_what_it_may(module):
    for name, _ in imports(LIBRARY[module], module):
        for library, homes in ONLY_IN.items():
            if within(name, library) and not any(within(module, home) for home in homes):
                pytest.fail(f"{module} imports {name}; only {sorted(homes) or 'the command line'} may")
        for package, forbidden in NEVER.items():
            if within(module, package) and any(within(name, one) for one in forbidden):
                pytest.fail(f"{module} imports {name}, which {package} must not")


def test_of_checkpoints_the_models_use_the_type_alone():
    used = {
        name
        for module, path in LIBRARY.items()
        if within(module, "mmrr.embedders") or within(module, "mmrr.scorers")
        for name, _ in imports(path, module)
        if within(name, "mmrr.modeling.checkpoints")
    }
    assert used == {"mmrr.modeling.checkpoints.Checkpoint"}


@pytest.mark.parametrize("module", CLI)
def test_the_command_line_loads_nothing_heavy_before_a_command_runs(module):
    allowed = {"mmrr.cli", "mmrr.config", "mmrr.errors", "mmrr.__version__"}
    for name, at_once in imports(CLI[module], module):
        if at_once:
            assert not any(within(name, one) for one in HEAVY), f"{module} imports {name}"
            assert not within(name, "mmrr") or any(within(name, one) for one in allowed), f"{module} imports {name}"


def test_the_rules_read_real_imports():
    """The reader itself: it sees imports at any depth, tells early from late ones, and resolves relative names."""
    assert ("faiss", True) in imports(LIBRARY["mmrr.search.indexes"], "mmrr.search.indexes")
    assert ("huggingface_hub.snapshot_download", False) in imports(
        LIBRARY["mmrr.modeling.checkpoints"], "mmrr.modeling.checkpoints"
    )
    assert ("mmrr.cli.options", True) in imports(CLI["mmrr.cli.main"], "mmrr.cli.main")
    assert "torch" not in dict(imports(LIBRARY["mmrr.types"], "mmrr.types"))  # under TYPE_CHECKING
    assert set(NEVER) <= {module for name in LIBRARY for module in (name, name.rsplit(".", 1)[0])}
    assert {"render", "embed", "retrieve", "prune", "precache", "rerank"} <= STAGES


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_command_line_loads_no_model_library():
    """``mmrr --help`` would take seconds."""
    loaded = loaded_by("import mmrr.cli.main")
    assert "typer" in loaded
    assert not loaded & (HEAVY | {"PIL", "huggingface_hub", "pyarrow", "pdf2image"})


def test_importing_the_library_loads_no_screen():
    loaded = loaded_by("import mmrr.pipeline, mmrr.workspace.gc")
    assert "torch" in loaded
    assert not loaded & {"transformers", "peft", "datasets", "typer"}


def test_processes_that_draw_pages_load_no_model_library():
    loaded = loaded_by("import mmrr.workers, mmrr.documents.rendering")
    assert "pypdfium2" in loaded
    assert not loaded & {"torch", "transformers", "faiss"}


def test_training_draws_and_joins_others_only_where_it_is_asked_to():
    """matplotlib and accelerate are extras: everything but the picture and several processes goes without them."""
    for module in ("mmrr.training.distributed", "mmrr.plots"):
        names = {name.partition(".")[0]: at_once for name, at_once in imports(LIBRARY[module], module)}
        assert not names.get("matplotlib")
        assert not names.get("accelerate")
