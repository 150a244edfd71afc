#!/usr/bin/env bash
# Makes .venv match scripts/requirements.txt; with arguments, then runs its Python with them:
#   scripts/python_env.sh -m reference.check_golden
# Touches no network when .venv is up to date. Several may run at once.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
requirements="$root/scripts/requirements.txt"
stamp="$venv/.requirements.sha256"

wanted_stamp() { sha256sum <"$requirements" | cut -d' ' -f1; }
up_to_date() {
  [[ -x "$venv/bin/python" && -f "$stamp" && "$(cat "$stamp")" == "$(wanted_stamp)" ]]
}

make_venv() {
  local python=/usr/bin/python3
  [[ -x "$python" ]] || python="$(command -v python3 || true)"
  if [[ -z "$python" ]]; then
    echo "python_env: no python3 found; install the packages python3 and python3-venv" >&2
    return 1
  fi
  if [[ ! -x "$venv/bin/python" || ! -x "$venv/bin/pip" ]]; then
    if ! "$python" -m venv "$venv" >&2; then
      echo "python_env: cannot create $venv; install the package python3-venv" >&2
      return 1
    fi
  fi
  local wanted
  wanted="$(wanted_stamp)"
  if ! "$venv/bin/pip" install --quiet --disable-pip-version-check \
      --requirement "$requirements" >&2; then
    echo "python_env: cannot install the packages of scripts/requirements.txt;" \
      "they come from the Python package index, so a connection is needed once" >&2
    return 1
  fi
  echo "$wanted" >"$stamp"
}

if ! up_to_date; then
  exec 9<"$requirements"
  flock 9
  up_to_date || make_venv
  flock -u 9
  exec 9>&-
fi
[[ $# -eq 0 ]] || exec "$venv/bin/python" "$@"
