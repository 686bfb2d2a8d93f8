"""What a command does not use is not imported: imports are most of the time of a short command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.cli.conftest import Prepared

#: What only training, other families and the preparation of pages need.
NOT_FOR_A_QUERY = {
    "transformers",
    "sentence_transformers",
    "sklearn",
    "datasets",
    "peft",
    "accelerate",
    "pandas",
    "pyarrow",
    "huggingface_hub",
    "sympy",
    "matplotlib",
    "torch._dynamo",
}
#: A command that runs no model needs none of these.
HEAVY = NOT_FOR_A_QUERY | {"torch", "scipy", "faiss", "bm25s", "safetensors", "tokenizers", "pypdfium2"}


def loaded_by(code: str) -> set[str]:
    lines = [code, "import sys", "print(*sys.modules)"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def loaded_by_command(*arguments: str) -> set[str]:
    return loaded_by(
        "import sys, contextlib, os\n"
        f"sys.argv = {['mmrr', *arguments]!r}\n"
        "from mmrr.cli.main import main\n"
        "with contextlib.redirect_stdout(open(os.devnull, 'w')), contextlib.suppress(SystemExit):\n"
        "    main()"
    )


def test_commands_without_a_model_import_no_model_library(prepared: Prepared, tmp_path: Path) -> None:
    run, qrels = tmp_path / "run.trec", tmp_path / "qrels.trec"
    run.write_text("q1 Q0 a.pdf/0001 1 2.0 x\nq1 Q0 a.pdf/0002 2 1.0 x\n")
    qrels.write_text("q1 0 a.pdf/0002 1\n")
    work = ("--work", str(prepared.work))
    for command in (
        ("eval", "--run", str(run), "--qrels", str(qrels), *work),
        ("ls", *work),
        ("ls", "--documents", *work),
        ("config",),
    ):
        loaded = loaded_by_command(*command)
        assert not loaded & HEAVY, command
        assert "mmrr.context" in loaded or command == ("config",)


def test_the_models_that_come_with_mmrr_encode_a_query_without_transformers() -> None:
    loaded = loaded_by(
        """
import torch
from mmrr.modeling import families, text_checkpoints
from mmrr.modeling.checkpoints import resolve
from mmrr.workspace.files import HashCache

cpu, hashes = torch.device("cpu"), HashCache()
scorers = families.load("scorers", "minireranker")
found = resolve("reader-reranker", None, hashes)
scorer = scorers.load(found, scorers.resolve(scorers.Prepare(), found.config()), cpu, torch.float32)
scorer.encode_query("a question")
embedders = families.load("embedders", "colqwen3")
embedder = embedders.load(resolve("reader-embedder", None, hashes), embedders.Prepare(), cpu, torch.float32)
embedder.embed_queries(["a question"], embedders.Search())
if text_checkpoints.packaged():
    texts = families.load("text_embedders", "sentence_transformers")
    found = text_checkpoints.resolve("minilm", None, hashes)
    texts.load(found, texts.Prepare(), cpu, torch.float32).embed_queries(["a question"])
"""
    )
    assert "torch" in loaded
    assert not loaded & NOT_FOR_A_QUERY
