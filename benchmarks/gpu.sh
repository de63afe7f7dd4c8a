#!/usr/bin/env bash
# Everything that needs a GPU, in at most nine minutes: bash benchmarks/gpu.sh FOLDER [--quick]
# Each script leaves its JSON in FOLDER; one that fails or runs out of its time leaves its log and stops nobody.
# --quick is the same with tiny models, on whatever machine: whether everything runs.
# `python benchmarks/gpu_table.py FOLDER` makes the table of docs/benchmarks.md from them.
set -uo pipefail
folder=${1:?where the results go}
shift
here=$(dirname "$0")
python=${PYTHON:-python}
mkdir -p "$folder"
seven_b=(--shape 7b --batch 16 --tokens 256) # which no CPU has the memory or the time for
[ "${1:-}" = --quick ] && seven_b=()
[ "${1:-}" = --quick ] || "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
    echo "There is no GPU here; --quick runs the same on tiny models." >&2
    exit 2
}

measure() { # name, seconds, script and its words
    local name=$1 seconds=$2 script=$3
    shift 3
    echo "$name, at most $seconds s"
    timeout "$seconds" "$python" "$here/$script.py" "$@" --json "$folder/$name.json" > "$folder/$name.log" 2>&1 ||
        echo "$name: failed ($?), see $folder/$name.log"
}

measure kernels-7b 60 joint_kernels --rounds 7 "$@"
measure fleet-small 150 fleet --attackers 16 --rounds 3 --loop "$@"
measure steps-small 90 steps --rounds 5 "$@"
measure steps-7b 140 steps "${seven_b[@]}" --rounds 3 "$@"
measure decoding-small 90 decoding --rounds 3 "$@"
