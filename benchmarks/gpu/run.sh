#!/usr/bin/env bash
# Every GPU figure of the kernels in less than eight minutes, from a bare checkout: correctness first, then tables.
# Usage: benchmarks/gpu/run.sh [OUT]   (needs torch with CUDA and triton in `python3`, or in $PYTHON; BUDGET: seconds, 440)
set -uo pipefail
cd "$(dirname "$0")/../.."
out="${1:-${OUT:-results-gpu-kernels}}"
python="${PYTHON:-python3}"
budget="${BUDGET:-440}"
mkdir -p "$out"
unset TRITON_INTERPRET KDAD_KERNELS
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" KDAD_KERNELS=triton
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv 2>&1 | tee "$out/gpu.txt"
timeout "$((budget + 30))" "$python" benchmarks/gpu/kernels.py --out "$out" --seconds "$budget" 2>&1 | tee "$out/kernels.txt"
exit "${PIPESTATUS[0]}"
