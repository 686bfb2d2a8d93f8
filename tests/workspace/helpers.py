"""A Spec, a shard and a list of files, for tests of the workspace."""

from __future__ import annotations

from mmrr.workspace.store import Spec

SPEC = Spec(
    "embed",
    1,
    {"family": "qwen3_vl", "options": {"dim": 0}},
    {"pages": "0123456789ab"},
    {"id": "Qwen/Qwen3-VL-Embedding-2B", "revision": "a" * 40, "dtype": "float32"},
)
KEY = "0" * 24


def put_shard(workspace, key=KEY, data=b"data", **record):
    folder = workspace.scratch()
    (folder / "file.bin").write_bytes(data)
    workspace.commit_shard("embed", key, folder, record)
    return workspace.shard("embed", key)


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
