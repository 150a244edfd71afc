"""Writes a checkpoint directory so that it appears whole or not at all."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from reference import safetensors_file  # noqa: E402

_STAMP = "hadal_checkpoint.json"


class OutputError(Exception):
    """A sentence for the user."""


def run_interruptibly(main):
    """main(), with Ctrl-C and SIGTERM unwinding it, so that whole_directory() cleans up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was left behind")


class Progress:
    """One line on stderr, rewritten in place on a terminal, at most every tenth otherwise."""

    def __init__(self, label, total):
        self._label, self._total, self._done, self._shown = label, total, 0, -1
        self._start = time.monotonic()

    def add(self, amount):
        self._done += amount
        percent = 100 * self._done // max(self._total, 1)
        step = 1 if sys.stderr.isatty() else 10
        if percent // step == self._shown:
            return
        self._shown = percent // step
        end = "\r" if sys.stderr.isatty() and percent < 100 else "\n"
        seconds = time.monotonic() - self._start
        print(f"{self._label}: {percent:3d} % of {self._total / 1e6:.0f} MB, {seconds:.0f} s",
              end=end, file=sys.stderr, flush=True)


def is_current(directory, stamp):
    """Whether `directory` is a complete checkpoint made with this very stamp."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((directory / _STAMP).read_text()) == stamp
    return False


@contextlib.contextmanager
def whole_directory(directory, stamp, needed_bytes):
    """Yields an empty directory next to `directory` and moves it there at the end of the block.

    A failed or interrupted block leaves no trace. One writer at a time; a directory that none of
    these scripts made is refused, never replaced.
    """
    directory = Path(directory).absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    if directory.exists() and not (directory / _STAMP).exists() and any(directory.iterdir()):
        raise OutputError(f"{directory} exists and was not made by this script;"
                          " move it away or give another --out")
    free = shutil.disk_usage(directory.parent).free
    if free < needed_bytes * 1.02:
        raise OutputError(f"{directory.parent} has {free / 1e9:.1f} GB free;"
                          f" {needed_bytes / 1e9:.1f} GB are needed")
    partial = directory.parent / f".{directory.name}.partial"
    with open(directory.parent / f".{directory.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            safetensors_file.write_json(partial / _STAMP, stamp)
            for path in [*partial.iterdir(), partial]:
                _sync(path)
            _replace(partial, directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(partial, directory):
    old = directory.parent / f".{directory.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    _sync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def tensor_bytes(dtype, shape):
    return int(np.prod(shape, dtype=np.int64)) * {"F32": 4, "BF16": 2, "F8_E4M3": 1}[dtype]


def total_bytes(layout):
    return sum(tensor_bytes(*entry) for entry in layout.values())


def write_shards(directory, layout, produce, shard_bytes, label):
    """Streams tensors to one model.safetensors, or to shards of at most `shard_bytes` or a tensor.

    layout: name -> (dtype, shape), in order. produce(name) returns the stored array; it is asked
    for each name once, in order.
    """
    shards, size = [{}], 0
    for name, entry in layout.items():
        if shards[-1] and size + tensor_bytes(*entry) > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = entry
        size += tensor_bytes(*entry)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    progress = Progress(label, total_bytes(layout))
    for file_name, shard in zip(names, shards):
        with open(directory / file_name, "wb") as file:
            file.write(safetensors_file.header_bytes(shard))
            for name, (dtype, shape) in shard.items():
                data = np.ascontiguousarray(produce(name))
                if data.nbytes != tensor_bytes(dtype, shape):
                    raise RuntimeError(f"{name}: {data.nbytes} bytes produced for {dtype} {shape}")
                file.write(data.reshape(-1).view(np.uint8).data)
                progress.add(data.nbytes)
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(names, shards) for name in shard}
        index = {"metadata": {"total_size": total_bytes(layout)}, "weight_map": weight_map}
        safetensors_file.write_json(directory / "model.safetensors.index.json", index)
