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
python="${PYTHON:-python3}"
if [ "${MPS:-0}" = 1 ]; then
  PATH="$PATH:/usr/local/nvidia/bin"
  CUDA_MPS_PIPE_DIRECTORY="$(mktemp -d)"
  export CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY="$CUDA_MPS_PIPE_DIRECTORY"
  trap 'echo quit | timeout 10 nvidia-cuda-mps-control >/dev/null 2>&1 || true; rm -rf "$CUDA_MPS_PIPE_DIRECTORY"' EXIT
  if ! timeout 10 nvidia-cuda-mps-control -d || ! timeout 60 "$python" -c 'import torch; torch.ones(1).cuda().item()'; then
    echo "no MPS here: jobs take turns on the card"
    echo quit | timeout 10 nvidia-cuda-mps-control >/dev/null 2>&1 || true
    rm -rf "$CUDA_MPS_PIPE_DIRECTORY"
    trap - EXIT
    unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
  fi
fi
"$python" benchmarks/gpu/leaderboard.py --out "$out" --seconds "${BUDGET:-440}" \
  --categories ${CATEGORY:-bottle} ${teacher:+--teacher "$teacher"} "$@" &
trap 'kill -TERM "$board"' TERM INT
board=$!
while true; do
  code=0
  wait "$board" || code=$?
  kill -0 "$board" 2>/dev/null || exit "$code"
done
