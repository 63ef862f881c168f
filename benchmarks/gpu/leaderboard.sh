#!/usr/bin/env bash
# All seven methods with the paper budget on one real category, three seeds, beside the published numbers.
# Usage: KDAD_DATA=... benchmarks/gpu/leaderboard.sh [OUT]   (resumes where it stopped; set TEACHER= for the paper's own)
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${KDAD_DATA:?set KDAD_DATA to the folder that holds mvtec_ad/}"
out="${1:-results-gpu-bottle}"
teacher="${TEACHER-efficientnet_lite0}"
python="${PYTHON:-python3}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
"$python" -m kdad_bench run --all --dataset mvtec_ad --category "${CATEGORY:-bottle}" --preset paper --seeds 3 \
  --device cuda:0 ${teacher:+--teacher "$teacher"} --out "$out"
"$python" -m kdad_bench leaderboard "$out" --figures
