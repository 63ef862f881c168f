#!/usr/bin/env bash
# Every GPU figure of the kernels in less than eight minutes, from a bare checkout: correctness first, then tables.
# Usage: benchmarks/gpu/run.sh [OUT]   (needs torch with CUDA and triton in `python3`, or in $PYTHON; BUDGET: seconds, 440)
# Without a GPU: KDAD_REHEARSAL=benchmarks/gpu/rehearse.py benchmarks/gpu/run.sh OUT goes the whole way with tiny sizes.
set -uo pipefail
cd "$(dirname "$0")/../.."
out="${1:-${OUT:-results-gpu-kernels}}"
python="${PYTHON:-python3}"
budget="${BUDGET:-440}"
mkdir -p "$out"
unset TRITON_INTERPRET
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" KDAD_KERNELS=triton PYTHONUNBUFFERED=1
{ timeout 20 nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv || echo "nvidia-smi: exit $?"; } \
  2>&1 | tee "$out/gpu.txt"
timeout --kill-after=10 "$((budget + 30))" "$python" ${KDAD_REHEARSAL:+"$KDAD_REHEARSAL"} benchmarks/gpu/kernels.py \
  --out "$out" --seconds "$budget" 2>&1 | tee "$out/kernels.txt"
exit "${PIPESTATUS[0]}"
