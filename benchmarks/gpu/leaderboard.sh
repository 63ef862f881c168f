#!/usr/bin/env bash
# All methods with the paper budget on a real category, three seeds, in less than eight minutes; run it again to go on.
# Usage: KDAD_DATA=... benchmarks/gpu/leaderboard.sh [OUT] [more options of leaderboard.py]
# BUDGET: seconds (440); CATEGORY (bottle); TEACHER: set it to nothing for the paper's own. OUT/results.tar.gz holds all.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${KDAD_DATA:?set KDAD_DATA to the folder that holds mvtec_ad/}"
out="${1:-${OUT:-results-gpu}}"
shift || true
teacher="${TEACHER-efficientnet_lite0}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" benchmarks/gpu/leaderboard.py --out "$out" --seconds "${BUDGET:-440}" \
  --categories ${CATEGORY:-bottle} ${teacher:+--teacher "$teacher"} "$@"
