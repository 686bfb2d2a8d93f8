#!/usr/bin/env bash
# Find pages by their images: an embedder finds candidates, a reranker reorders them from page caches.
#
#   MMRR_EMBEDDER=Qwen/Qwen3-VL-Embedding-2B MMRR_SCORER_MODEL=Qwen/Qwen3-VL-Reranker-2B \
#       examples/rerank.sh FOLDER QUERIES OUTPUT
#
# Both variables take a Hub id, a local folder or the name of a model that comes with mmrr.
# QUERIES: one JSON object a line, {"query_id": "q1", "text": "..."}. OUTPUT: a TREC run.
set -euo pipefail
folder=$1
queries=$2
output=$3
work=${MMRR_WORK:-mmrr-work}
: "${MMRR_EMBEDDER:?name an embedder}" "${MMRR_SCORER_MODEL:?name a reranker}"

mmrr index "$folder" --work "$work"
mmrr precache --work "$work"
mmrr rerank --queries "$queries" --work "$work" --output "$output"
