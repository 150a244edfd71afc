#!/usr/bin/env bash
# Downloads the headers of CUTLASS and FlashInfer, for hadal-cuda-peers-bench, to third_party/peers:
# 70 MB from the Python package index, of which 47 MB stay. Configure again afterwards. Does nothing
# when they are there.
set -euo pipefail
if [[ $# -gt 0 ]]; then  # there are no options
  sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}"
  [[ "$1" == -h || "$1" == --help ]] && exit 0 || exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=third_party/peers
pins="nvidia-cutlass==4.2.0.0 \
  --hash=sha256:f9599ada45c7bcb6bf53f7d3f0a7d154183e53451c01bfa59eecd37dd4a693f6
flashinfer-python==0.7.2.post1 \
  --hash=sha256:bfdc18b9e1e4d8d0730fe4343dc0e284cd0c160086de80f99888bc4867922d49"

if [[ -f "$target/pins" && "$(cat "$target/pins")" == "$pins" ]]; then
  echo "fetch_peers: $target is complete"
  exit 0
fi

python=.venv/bin/python
[[ -x "$python" ]] || python=python3
if ! "$python" -m pip --version >/dev/null 2>&1; then
  echo "fetch_peers: $python has no pip; run scripts/python_env.sh or install python3-pip" >&2
  exit 1
fi

mkdir -p third_party
work="$(mktemp -d third_party/peers.XXXXXX)"
trap 'rm -rf "$work"' EXIT
echo "$pins" >"$work/pins"
echo "fetch_peers: downloading CUTLASS 4.2.0 and FlashInfer 0.7.2.post1"
if ! "$python" -m pip download --disable-pip-version-check --no-deps --require-hashes \
    --only-binary :all: --dest "$work/wheels" --requirement "$work/pins"; then
  echo "fetch_peers: cannot download; the packages come from the Python package index, so a" \
    "connection is needed once" >&2
  exit 1
fi

# unpack WHEEL FOLDER TO: what the wheel has below FOLDER.
unpack() {
  echo "fetch_peers: unpacking $2"
  "$python" - "$1" "$2" "$3" <<'PY'
import pathlib, sys, zipfile
wheel, folder, to = sys.argv[1:]
with zipfile.ZipFile(wheel) as z:
    names = [n for n in z.namelist() if n.startswith(folder + "/") and not n.endswith("/")]
    if not names:
        sys.exit(f"fetch_peers: {wheel} has no {folder}")
    for name in names:
        path = pathlib.Path(to) / name[len(folder) + 1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(z.read(name))
PY
}
unpack "$work"/wheels/nvidia_cutlass-*.whl cutlass_library/source/include "$work/cutlass"
unpack "$work"/wheels/flashinfer_python-*.whl flashinfer/data/include "$work/flashinfer"
unpack "$work"/wheels/flashinfer_python-*.whl flashinfer/data/cccl/libcudacxx/include \
  "$work/libcudacxx"
rm -r "$work/wheels"
rm -rf "$target"
chmod 755 "$work"
mv "$work" "$target"
echo "fetch_peers: done; configure and build hadal-cuda-peers-bench"
