#!/usr/bin/env bash
# One command for a machine with a GPU: kernels' parity, then workloads A, C, E, F, G with their peers.
#
#   bench/gpu.sh [--minutes 25] [--out FOLDER] [--part A --part C ...]    results in FOLDER/gpu.json
#   bench/gpu.sh --dry-run                                               the same plan in small, on the CPU
#
# A lease whose commands may take ten minutes each: give each of them its own --part, --minutes 9 and --no-kernels.
# Wheels of what is missing there lie in .whl/ (bench/peers-gpu.txt says which); the python is that of $PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if compgen -G '.whl/*.whl' > /dev/null; then
  site=$(mktemp -d)
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "$python" -m bench gpu "$@"
