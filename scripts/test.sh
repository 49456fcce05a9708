#!/usr/bin/env bash
# Install what the tests need into .venv and run them. Arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_venv "[dev,bench-models]"
ensure_llm_test
cd "$ROOT"
exec "$VENV/bin/python" -m pytest "$@"
