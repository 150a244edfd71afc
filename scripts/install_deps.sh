#!/usr/bin/env bash
# Installs the Debian 12 / Ubuntu 24.04 packages that building and testing need, those that are
# missing only, with sudo when not root. Prints what it will install first.
set -euo pipefail
if [[ $# -gt 0 ]]; then  # there are no options
  sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}"
  [[ "$1" == -h || "$1" == --help ]] && exit 0 || exit 2
fi

packages=(
  build-essential cmake ninja-build pkg-config ccache git
  libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc libssl-dev
  libopenmpi-dev openmpi-bin nlohmann-json3-dev libspdlog-dev libfmt-dev libcli11-dev
  libpcre2-dev catch2 procps python3 python3-venv
)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' ||
    missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

echo "Installing with apt: ${missing[*]}" >&2
sudo=()
if [[ $EUID -ne 0 ]]; then
  if ! command -v sudo >/dev/null; then
    echo "install_deps: not root and no sudo; install these packages, then run again" >&2
    exit 1
  fi
  sudo=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
"${sudo[@]}" apt-get update -qq >&2
"${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
