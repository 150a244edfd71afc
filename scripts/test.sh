#!/usr/bin/env bash
# Installs what is missing, builds, runs every test, and ends with "N passed, N failed".
#   scripts/test.sh            everything: the release build, then the sanitizer builds
#   scripts/test.sh release    one build only (release, asan or tsan)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in
  -h | --help) sed -n '2,4s/^# \{0,1\}//p' scripts/test.sh; exit 0 ;;
  -*) echo "test: unknown option $1; --help says what there is" >&2; exit 2 ;;
esac

builds=("$@")
[[ ${#builds[@]} -gt 0 ]] || builds=(release asan tsan)
jobs="$(nproc)"
passed=0
failed=0

# Records a step that is no CTest entry; the run ends when it fails.
step() {
  local name="$1"
  shift
  echo "== $name" >&2
  if ! "$@"; then
    echo "$name failed" >&2
    echo "$passed passed, $((failed + 1)) failed"
    exit 1
  fi
}

# Runs the CTest entries of one build folder and adds to the counts.
run_ctest() {
  local build="$1" log="build/$1/ctest.log"
  echo "== tests: $build" >&2
  ctest --test-dir "build/$build" --parallel "$jobs" --output-on-failure --timeout 600 2>&1 |
    tee "$log"
  local total bad
  total="$(sed -nE 's/.*tests failed out of ([0-9]+)$/\1/p' "$log" | tail -1)"
  bad="$(sed -nE 's/.* ([0-9]+) tests? failed out of [0-9]+$/\1/p' "$log" | tail -1)"
  if [[ -z "$total" || "$total" -eq 0 ]]; then
    echo "no tests ran in build/$build" >&2
    total=1 bad=1
  fi
  passed=$((passed + total - bad))
  failed=$((failed + bad))
}

step "packages" scripts/install_deps.sh
step "python" scripts/python_env.sh
for build in "${builds[@]}"; do
  step "configure: $build" cmake --preset "$build" -DHADAL_TESTS=ON
  step "build: $build" cmake --build "build/$build" --parallel "$jobs"
  run_ctest "$build"
done

echo "$passed passed, $failed failed"
[[ "$failed" -eq 0 ]]
