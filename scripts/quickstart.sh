#!/usr/bin/env bash
# Install into .venv and make, check and measure one operator. Arguments go to `qimeng run`.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_venv "[peers]"
if [ $# -eq 0 ]; then
  set -- "fp32 GEMM 1024x1024x1024 with weights on this CPU" --trials 8 --out "$ROOT/qimeng-out/quickstart"
fi
exec "$VENV/bin/qimeng" run "$@"
