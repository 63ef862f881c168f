#!/usr/bin/env bash
# Methods with the paper budget on real categories, three seeds, in less than eight minutes; run it again to go on.
# Usage: KDAD_DATA=... benchmarks/gpu/leaderboard.sh [OUT] [more options of leaderboard.py]
# BUDGET: seconds (440); CATEGORY (bottle; several apart by spaces); TEACHER: set it to nothing for the paper's own.
# MPS=1: with --workers, kernels of several jobs run at once on the card, by a daemon that ends with this script.
# OUT/results.tar.gz holds all.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${KDAD_DATA:?set KDAD_DATA to the folder that holds mvtec_ad/}"
out="${1:-${OUT:-results-gpu}}"
shift || true
teacher="${TEACHER-efficientnet_lite0}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if [ "${MPS:-0}" = 1 ]; then
  PATH="$PATH:/usr/local/nvidia/bin"
  CUDA_MPS_PIPE_DIRECTORY="$(mktemp -d)"
  export CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY="$CUDA_MPS_PIPE_DIRECTORY"
  if timeout 10 nvidia-cuda-mps-control -d; then
    trap 'echo quit | timeout 10 nvidia-cuda-mps-control || true; rm -rf "$CUDA_MPS_PIPE_DIRECTORY"' EXIT
  else
    echo "no MPS here: jobs take turns on the card"
    rm -rf "$CUDA_MPS_PIPE_DIRECTORY"
    unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
  fi
fi
"${PYTHON:-python3}" benchmarks/gpu/leaderboard.py --out "$out" --seconds "${BUDGET:-440}" \
  --categories ${CATEGORY:-bottle} ${teacher:+--teacher "$teacher"} "$@" &
trap 'kill -TERM "$python"' TERM INT
python=$!
while true; do
  code=0
  wait "$python" || code=$?
  kill -0 "$python" 2>/dev/null || exit "$code"
done
