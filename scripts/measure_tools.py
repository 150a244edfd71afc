#!/usr/bin/env python3
"""Measures the checkpoint tools against what the disk and a core can do.

  scripts/measure_tools.py [--dir DIR] [--model DIR] [--fp8-model DIR] [--runs 3]

Prints the rate of hadal-convert from bf16 to bf16 beside that of cp on the same disk, in turns, both
read from the disk and synced to it; and the rate of hadal-fp8-cast-bf16 on one core, from memory to
memory. Needs build/release, and the models of scripts/make_bench_model.py, with and without --fp8.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / "build/release/bin"


def shards(directory):
    return sorted(directory.glob("*.safetensors"))


def size(paths):
    return sum(path.stat().st_size for path in paths)


def forget(directory):
    """Its pages leave the page cache, so that the next reader reads the disk."""
    os.sync()
    for path in shards(directory):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(*command):
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                          check=False)
    if done.returncode != 0:
        sys.exit(f"measure_tools: {done.stderr.strip()}")


def copy(model, out):
    out.mkdir()
    run("cp", "--reflink=never", "--sparse=never", *shards(model), out)
    run("sync", *shards(out))


def convert(model, out):
    experts = json.loads((model / "config.json").read_text())["n_routed_experts"]
    run(BIN / "hadal-convert", "--hf-ckpt-path", model, "--save-path", out,
        "--n-experts", str(experts), "--model-parallel", "1")


def rate(way, model, out):
    """GB/s of the weights; `way` writes `out`."""
    forget(model)
    start = time.monotonic()
    way(model, out)
    seconds = time.monotonic() - start
    shutil.rmtree(out)
    return size(shards(model)) / seconds / 1e9


def measure_copies(model, directory, runs):
    rates = {copy: [], convert: []}
    for number in range(runs):
        for way in (copy, convert) if number % 2 == 0 else (convert, copy):
            rates[way].append(rate(way, model, directory / "out"))
    for way, name in ((copy, "cp and sync"), (convert, "hadal-convert")):
        print(f"{name + ':':15}", " ".join(f"{r:.2f}" for r in rates[way]), "GB/s")
    cp, tool = (statistics.median(rates[way]) for way in (copy, convert))
    print(f"hadal-convert reaches {100 * tool / cp:.0f} % of cp (medians; wanted: 70)")


def measure_cast(model, runs):
    """One core and /dev/shm: no disk. Bytes are those of the source, whose larger part is FP8."""
    source = size(shards(model))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        if shutil.disk_usage(directory).free < 2.5 * source:
            print("no room in /dev/shm for the cast")
            return
        out = Path(directory) / "out"
        for path in shards(model):
            run("cat", path)  # into the page cache
        for _ in range(runs):
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            run("taskset", "-c", str(min(os.sched_getaffinity(0))), BIN / "hadal-fp8-cast-bf16",
                "--threads", "1", "--input-fp8-hf-path", model, "--output-bf16-hf-path", out)
            wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
            print(f"hadal-fp8-cast-bf16 on one core: {source / wall / 1e9:.2f} GB/s of source,"
                  f" {wall:.2f} s, of which {user:.2f} s in the program, {system:.2f} s in the kernel")
            shutil.rmtree(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "models/v2lite-6layer")
    parser.add_argument("--fp8-model", type=Path, default=ROOT / "models/v2lite-6layer-fp8")
    parser.add_argument("--dir", type=Path, help="where to write; default: beside the model")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    for model, flag in ((arguments.model, ""), (arguments.fp8_model, " --fp8")):
        if not (model / "config.json").is_file():
            sys.exit(f"measure_tools: {model} is no model; make it with scripts/python_env.sh "
                     f"scripts/make_bench_model.py{flag}, or name another one")
    if not (BIN / "hadal-cast-bench").is_file():
        sys.exit(f"measure_tools: {BIN} has no hadal-cast-bench; build the preset release, with tests")
    with tempfile.TemporaryDirectory(dir=arguments.dir or arguments.model.parent) as directory:
        measure_copies(arguments.model, Path(directory), arguments.runs)
    measure_cast(arguments.fp8_model, arguments.runs)
    print("the cast alone, on one core (wanted: 1.5 GB/s of FP8 with AVX2):", flush=True)
    subprocess.run([BIN / "hadal-cast-bench"], check=True)


if __name__ == "__main__":
    main()
