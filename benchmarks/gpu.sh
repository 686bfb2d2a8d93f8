#!/bin/bash
# Measures mmrr on one GPU in at most eight minutes: the GPU tests, mmrr bench on the true 2B and 8B shapes with random
# weights, and the pages a second of embed and precache. Sized for one H200-class GPU with 16 processor cores.
#
#     benchmarks/gpu.sh [--tiny] [--device DEVICE] [--output FOLDER]
#
# Every step has its own time limit; one that fails or takes too long does not stop the others. FOLDER gets a JSON file
# and a log a step, steps.txt with each exit status (124: over the limit), and table.md for BENCHMARKS.md.
# --tiny: a model of a few thousand weights, to try the script: it also runs on a CPU. PYTHON names the interpreter.
set -u
device=cuda output=gpu-results tiny=
while [ $# -gt 0 ]; do
    case $1 in
        --tiny) tiny=1 ;;
        --device) device=$2; shift ;;
        --output) output=$2; shift ;;
        *) echo "usage: benchmarks/gpu.sh [--tiny] [--device DEVICE] [--output FOLDER]" >&2; exit 2 ;;
    esac
    shift
done
mkdir -p "$output" || exit 1
output=$(cd "$output" && pwd)
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python}
: >"$output/steps.txt"

# step NAME SECONDS COMMAND...: the command's output is NAME.json, or NAME.txt for the tests; its log is NAME.log.
step() {
    local name=$1 seconds=$2 suffix=json
    shift 2
    [ "$name" = tests ] && suffix=txt
    echo "$name (at most $seconds s)" >&2
    timeout -k 5 "$seconds" "$@" >"$output/$name.$suffix" 2>"$output/$name.log"
    echo "$name $?" >>"$output/steps.txt"
}

mmrr=("$python" -c "from mmrr.cli.main import main; main()")
if [ -n "$tiny" ]; then
    echo "tests skipped" >>"$output/steps.txt"
    step bench-tiny 60 "${mmrr[@]}" bench tiny --device "$device" --candidates 2 --query-counts 2 --tokens 16 \
        --codec int8 --repeats 1 --dense-pages 1 --json
    step pages-tiny 60 "$python" -m benchmarks.gpu pages tiny "$device"
else
    step tests 70 "$python" -m pytest -m gpu -q -n 0 -p no:cacheprovider
    for size in 2b 8b; do
        step "bench-$size" $([ $size = 2b ] && echo 100 || echo 150) "${mmrr[@]}" bench "qwen3-vl-$size" \
            --device "$device" --candidates 20,100 --query-counts 8 --tokens 1280 \
            --codec bf16 --codec int8 --codec int4 --dense-pages 4 --json
        step "pages-$size" $([ $size = 2b ] && echo 60 || echo 80) "$python" -m benchmarks.gpu pages "qwen3-vl-$size" "$device"
    done
fi
"$python" -m benchmarks.gpu table "$output" >"$output/table.md" || exit 1
cat "$output/table.md"
