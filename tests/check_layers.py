#!/usr/bin/env python3
"""Refuses an include that points up, as cmake/layers.txt orders the folders, and MPI, CUDA or gRPC
headers outside the few places that may know them."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[">]', re.M)
SUFFIXES = {".h", ".cc", ".cu", ".cuh"}

# System header prefix -> where it may appear.
RESTRICTED = {
    "mpi.h": ["worker/comm/mpi_communicator.cc", "worker/comm/nccl_bench.cc",
              "worker/bench/exchange_bench.cc", "worker/main.cc"],
    "nccl.h": ["worker/comm/"],
    "cuda": ["kernels/cuda/", "worker/comm/nccl"],
    "grpc": ["server/frontend/", "server/main.cc", "server/engine/grpc_worker_group",
             "worker/runtime/plan_channel", "client/"],
}


def read_layers():
    layers = {}
    for line in (ROOT / "cmake/layers.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            folder, allowed = line.split(":")
            layers[folder] = allowed.split()
    return layers


def layer_of(path, layers):
    """The longest listed folder that holds the path."""
    parts = path.split("/")[:-1]
    for n in range(len(parts), 0, -1):
        folder = "/".join(parts[:n])
        if folder in layers:
            return folder
    return None


def check_file(path, layers):
    name = path.relative_to(ROOT).as_posix()
    own = layer_of(name, layers)
    for kind, header in INCLUDE.findall(path.read_text()):
        for prefix, places in RESTRICTED.items():
            if kind == "<" and header.startswith(prefix) and not name.startswith(tuple(places)):
                yield f"{name}: <{header}> is only for {', '.join(places)}"
        target = layer_of(header, layers)
        if kind == '"' and target and target != own and target not in layers[own]:
            yield f"{name}: includes {header}, but {own} may only include {layers[own]}"


def main():
    layers = read_layers()
    files = [p for top in {f.split("/")[0] for f in layers} for p in sorted((ROOT / top).rglob("*"))
             if p.suffix in SUFFIXES]
    if not files:
        sys.exit("no source files found")
    errors = [error for path in files for error in check_file(path, layers)]
    print("\n".join(errors))
    print(f"{len(files)} files, {len(errors)} includes that point up")
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()
