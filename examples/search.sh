#!/usr/bin/env bash
# Find pages by their words (BM25). No model and no GPU: only the text layer of the PDFs is read.
#
#   examples/search.sh FOLDER "QUESTION"
#
# The second call on the same folder reads no PDF again.
set -euo pipefail
folder=$1
question=$2
work=${MMRR_WORK:-mmrr-work}

mmrr index "$folder" --first-stage bm25 --work "$work"
mmrr retrieve "$question" --first-stage bm25 --work "$work" --top-k 5
