#!/usr/bin/env bash
# All that a short time with one GPU is for, the most valuable first:
#
#   benchmarks/gpu.sh OUT [benchmark] [tests] [runs] [autotune]
#
# benchmark: benchmarks/gpu.py, 8 minutes
# tests:     the tests of the lane `gpu`, 3.5 minutes at most
# runs:      configs/wrn_fashion_mnist.py for a tenth of its steps, for as many
#            populations as fit the minutes left; FASHION_MNIST is the folder of
#            the data set's IDX files, if it is not Debian's
# autotune:  only if asked for: tiles of Hopper's kernels, 4 minutes at most
#
# MINUTES (15) is for all of them. What they print and make goes to the folder
# OUT; where the time was over, the table is of the runs that were finished.
set -uo pipefail
out=$(realpath "$1") && shift
cd "$(dirname "$0")/.." || exit 1
end=$((SECONDS + ${MINUTES:-15} * 60))
mkdir -p "$out"
left() { # at most so many seconds, and 10 less than there are
  local seconds=$((end - SECONDS - 10))
  echo $((seconds < $1 ? (seconds > 1 ? seconds : 1) : $1))
}

benchmark() {
  timeout "$(left 500)" python -m benchmarks.gpu --csv="$out/gpu.csv"
}

tests() {
  timeout --signal=INT "$(left 210)" \
    python -m pytest -m gpu -n "${JOBS:-14}" --dist=worksteal -q -rfE --tb=short
}

runs() {
  local config=configs/wrn_fashion_mnist.py:tenth
  local data=${FASHION_MNIST:+--config.data.data_dir=$FASHION_MNIST}
  # A stop saves first, and takes a moment.
  timeout --signal=TERM --kill-after=30 "$(left 560)" python -m \
    experiments.sweep --config=$config --launcher=population \
    --root="$out/wrn" $data
  python -m experiments.tables --table=wrn_fashion_mnist --arg=tenth \
    --root="$out/wrn" --out="$out" $data
}

autotune() {
  timeout "$(left 240)" python -m benchmarks.blocks --autotune --rounds=5
}

[ $# -gt 0 ] || set -- benchmark tests runs
for part in "$@"; do
  begin=$SECONDS
  "$part" 2>&1 | tee "$out/$part.log"
  echo "== $part: $((SECONDS - begin)) s" | tee -a "$out/times.log"
done
