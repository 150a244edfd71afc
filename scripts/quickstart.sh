#!/usr/bin/env bash
set -euo pipefail
usage() {
  cat <<'TEXT'
From nothing to a chat: installs missing packages, builds, makes the demo model, starts hadal-server
and the worker ranks on loopback, and opens a chat in this terminal.

  scripts/quickstart.sh                     chat with the demo model
  scripts/quickstart.sh --prompt "..."      answer once on standard output and stop everything
  scripts/quickstart.sh --model DIR         serve another Hugging Face checkpoint
  scripts/quickstart.sh --ranks N           worker ranks (default 2)
  scripts/quickstart.sh --wait SECONDS      give up when the model is not loaded then (default 600)

Ctrl-C at the prompt, or /exit, stops all that was started. Logs: build/quickstart/.
TEXT
}

called_from="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ranks=2
wait_s=600
model=""
prompt=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --prompt | --model | --ranks | --wait)
      [[ $# -ge 2 ]] || { echo "quickstart: $1 needs a value" >&2; exit 2; }
      case "$1" in
        --prompt) prompt=(--prompt "$2") ;;
        --model) [[ "$2" == /* ]] && model="$2" || model="$called_from/$2" ;;
        --ranks) ranks="$2" ;;
        --wait) wait_s="$2" ;;
      esac
      shift 2
      ;;
    -h | --help) usage; exit 0 ;;
    *) echo "quickstart: unknown option $1" >&2; usage >&2; exit 2 ;;
  esac
done
[[ "$ranks" =~ ^[1-9][0-9]*$ ]] || { echo "quickstart: --ranks $ranks is not a number" >&2; exit 2; }
[[ "$wait_s" =~ ^[1-9][0-9]*$ ]] || { echo "quickstart: --wait $wait_s is not a number" >&2; exit 2; }
if [[ -n "$model" && ! -f "$model/config.json" ]]; then
  echo "quickstart: --model $model holds no config.json; give a Hugging Face model directory" >&2
  exit 2
fi

logs=build/quickstart
bin=build/release/bin
server_pid=""
workers_pid=""

# Workers first, so that the server does not log their loss; then both are waited for.
stop_all() {
  trap - EXIT INT TERM
  local pid
  for pid in "$workers_pid" "$server_pid"; do
    [[ -z "$pid" ]] || kill -TERM "$pid" 2>/dev/null || true
  done
  for pid in "$workers_pid" "$server_pid"; do
    [[ -z "$pid" ]] || wait "$pid" 2>/dev/null || true  # what a signal ended has no status of 0
  done
  return 0
}

fail() {
  echo "quickstart: $1" >&2
  stop_all
  exit 1
}

# Why a program failed: the first error of its log, or else the log's end.
fail_with_log() {
  grep -m1 -E ' (error|critical) \[' "$2" >&2 || tail -5 "$2" >&2
  fail "$1; see $2"
}

build_all() {
  mkdir -p "$logs"
  scripts/install_deps.sh
  if [[ ! -f build/release/build.ninja ]]; then
    echo "Configuring..." >&2
    cmake --preset release -DHADAL_TESTS=OFF >"$logs/build.log" 2>&1 ||
      { tail -20 "$logs/build.log" >&2; fail "configuring failed; see $logs/build.log"; }
  fi
  # Said only when there is something to build, which takes longer than this.
  (sleep 3 && echo "Building (some minutes the first time; progress in $logs/build.log)..." >&2) &
  local notice=$! built=0
  cmake --build build/release --parallel "$(nproc)" --target hadal-server hadal-worker hadal \
    >>"$logs/build.log" 2>&1 || built=$?
  kill "$notice" 2>/dev/null || true
  wait "$notice" 2>/dev/null || true
  [[ $built -eq 0 ]] ||
    { tail -20 "$logs/build.log" >&2; fail "the build failed; see $logs/build.log"; }
}

make_model() {
  [[ -z "$model" ]] || return 0
  model=models/demo
  [[ -f "$model/config.json" ]] && return 0
  scripts/python_env.sh scripts/make_demo_model.py --out "$model" >&2 ||
    fail "the demo model could not be made; serve another checkpoint with --model DIR"
}

# The address that a server with port 0 has bound, from its log.
bound_port() { sed -nE "s/.*$1 on 127\.0\.0\.1:([0-9]+).*/\1/p" "$logs/server.log" | tail -1; }

start_server() {
  # Its own session: Ctrl-C in the terminal reaches the chat, and the trap stops the rest.
  setsid "$bin/hadal-server" --model "$model" --listen 127.0.0.1:0 --worker-listen 127.0.0.1:0 \
    >"$logs/server.log" 2>&1 &
  server_pid=$!
  for _ in $(seq 300); do
    public_port="$(bound_port 'serving gRPC')"
    worker_port="$(bound_port 'waiting for workers')"
    [[ -n "$public_port" && -n "$worker_port" ]] && return 0
    kill -0 "$server_pid" 2>/dev/null || break
    sleep 0.1
  done
  fail_with_log "hadal-server did not start" "$logs/server.log"
}

start_workers() {
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  setsid mpirun --oversubscribe --bind-to none -n "$ranks" "$bin/hadal-worker" --model "$model" \
    --server "127.0.0.1:$worker_port" >"$logs/workers.log" 2>&1 &
  workers_pid=$!
}

wait_until_ready() {
  local start=$SECONDS said=$SECONDS error
  until error="$("$bin/hadal" ready --server "127.0.0.1:$public_port" 2>&1 >/dev/null)"; do
    kill -0 "$workers_pid" 2>/dev/null || fail_with_log "the workers ended" "$logs/workers.log"
    kill -0 "$server_pid" 2>/dev/null || fail_with_log "hadal-server ended" "$logs/server.log"
    if ((SECONDS - start >= wait_s)); then
      echo "${error##*$'\n'}" >&2
      fail_with_log "not ready within --wait $wait_s s" "$logs/workers.log"
    fi
    if [[ -t 2 ]]; then
      printf '\rLoading %s on %s ranks... %s s' "$model" "$ranks" $((SECONDS - start)) >&2
    elif ((SECONDS - said >= 5)); then
      said=$SECONDS
      echo "Loading $model on $ranks ranks... $((SECONDS - start)) s" >&2
    fi
    sleep 0.2
  done
  [[ -t 2 ]] && printf '\r\033[K' >&2
  return 0
}

trap stop_all EXIT
trap 'stop_all; exit 130' INT
trap 'stop_all; exit 143' TERM
build_all
make_model
start_server
start_workers
wait_until_ready
[[ ${#prompt[@]} -gt 0 ]] || trap '' INT
"$bin/hadal" chat --server "127.0.0.1:$public_port" "${prompt[@]}"
