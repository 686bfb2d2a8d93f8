#!/usr/bin/env bash
# Smoke test of the wheel. It builds the wheel, installs it with its dependencies in an empty virtual environment
# outside the checkout, and runs the sample collection with it (BM25, small-kalm, reader-embedder; no OCR).
#
#   PYTHON          the interpreter (default: python3)
#   WHEEL_PACKAGES  a site-packages folder that has the dependencies already; pip then installs the wheel alone
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

# The build works on a copy: setuptools would take stale files from build/ of the checkout.
mkdir "$place/source" "$place/elsewhere"
cp -R "$checkout"/{pyproject.toml,README.md,LICENSE,mmrr,cli} "$place/source"
"$python" -m venv "$place/venv"
bin=$place/venv/bin
"$bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$place" "$place/source"
if [ -n "${WHEEL_PACKAGES:-}" ]; then
    "$bin/python" -m pip install --quiet --no-deps "$place"/mmrr-*.whl
    # A path file adds the folder behind the environment's own packages. It runs no .pth file of that folder,
    # so an editable mmrr there is not found.
    echo "$WHEEL_PACKAGES" > "$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/wheel_test.pth"
else
    "$bin/python" -m pip install --quiet --constraint "$checkout/constraints.txt" "$place"/mmrr-*.whl
fi

cp "$checkout"/data/sample/* "$place/elsewhere"
cd "$place/elsewhere"
"$bin/python" - "$place/venv" <<'EOF'
import importlib.util
import sys
from importlib.metadata import files
from pathlib import Path

import mmrr
import mmrr.cli.main

for module in (mmrr, mmrr.cli.main):
    assert Path(sys.argv[1]) in Path(module.__file__).parents, f"imported from {module.__file__}, not from the wheel"
names = {path.parts[0] for path in files("mmrr") if not path.parts[0].startswith(("mmrr", ".."))}
assert not names, f"the wheel installs more than mmrr: {names}"
assert importlib.util.find_spec("cli") is None, "the wheel installs a top-level package called cli"
EOF
export HF_HUB_OFFLINE=1
"$bin/mmrr" --version
"$bin/mmrr" models > models.txt
grep -q minireranker models.txt
# Small pages: seconds instead of minutes. The models cannot read them well; this test looks at files, not at ranks.
"$bin/mmrr" index ./*.pdf --work work --embedder reader-embedder --max-tokens 320
"$bin/mmrr" precache --work work --scorer kalm --scorer-model small-kalm
"$bin/mmrr" rerank --queries queries.jsonl --work work --first-stage bm25 --candidates 20 --fuse 0.3 --output run.trec > /dev/null
"$bin/mmrr" eval --work work --qrels qrels.trec --measure Success@1 --measure Success@3
test -s run.trec
"$bin/mmrr" precache --work work --scorer-model reader-reranker
"$bin/mmrr" rerank "When is the thesis due?" --work work --top-k 5
"$bin/mmrr" view graduate-handbook.pdf/0008 --work work --output page.png
test -s page.png
echo "The wheel works outside the checkout."
