#!/usr/bin/env python3
"""Runs the GPU tests under compute-sanitizer and keeps what it finds, kernel by kernel.

  scripts/sanitize_gpu.py --bin build/release/bin --out sanitizer [--only racecheck] [--minutes 8]

Only this project's kernels are watched (--kernel-name kns=hadal; --all watches the libraries' too). Runs come in
the order of the table below, the open questions first; what finds no time is named in the end. Every run's whole
output is kept in --out, one file each. Exit code 0: nothing was found, and every run that was begun came to its
end."""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import time

# Tool, program, tests of it. Tests of products and of attention take minutes under racecheck.
RUNS = [
    ("racecheck", "cuda_matmul_test", "NormMatMul*"),
    ("racecheck", "cuda_attention_test", "MlaPrefillAnd*"),
    ("racecheck", "cuda_moe_test", "*"),
    ("racecheck", "cuda_row_ops_test", "*"),
    ("racecheck", "cuda_sample_test", "*"),
    ("racecheck", "cuda_attention_test", "*"),
    ("racecheck", "cuda_matmul_test", "*"),
    ("synccheck", "cuda_moe_test", "*"),
    ("synccheck", "cuda_attention_test", "*"),
    ("synccheck", "cuda_matmul_test", "*"),
    ("memcheck", "cuda_matmul_test", "*"),
    ("memcheck", "cuda_attention_test", "*"),
    ("memcheck", "cuda_moe_test", "*"),
    ("memcheck", "cuda_sample_test", "*"),
    ("memcheck", "cuda_row_ops_test", "*"),
    ("memcheck", "cuda_copies_test", "*"),
]
# How a tool ends its output, with the number of what it found.
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)")
KERNEL = re.compile(r"\bat (?:void )?([A-Za-z_][\w:]*)[<(].*\+0x")


def parse():
    summary, rest = __doc__.split("\n", 1)
    parser = argparse.ArgumentParser(description=summary, epilog=rest, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--bin", type=pathlib.Path, default="build/release/bin", help="folder of the tests")
    add("--out", type=pathlib.Path, default="sanitizer", help="folder for what the tools print")
    add("--only", nargs="+", default=[], help="tools or programs: only runs that have one of these")
    add("--minutes", type=float, default=9, help="of everything (default 9)")
    add("--each", type=float, default=4, help="minutes of one run at most (default 4)")
    add("--all", action="store_true", help="watch kernels of libraries too")
    return parser.parse_args()


def kernels_of(text):
    """The kernels that findings name, each once."""
    return sorted(set(KERNEL.findall(text)))


def run_one(arguments, tool, program, tests, seconds):
    command = ["compute-sanitizer", "--tool", tool, "--print-limit", "50", "--error-exitcode", "99"]
    if not arguments.all:
        command += ["--kernel-name", "kns=hadal"]
    command += [str(arguments.bin / program), tests]
    log = arguments.out / f"{tool}-{program}-{re.sub(r'[^A-Za-z0-9]', '', tests) or 'all'}.log"
    begin = time.monotonic()
    with log.open("w") as to:
        try:
            code = subprocess.run(command, stdout=to, stderr=subprocess.STDOUT, timeout=seconds,
                                  check=False).returncode
        except subprocess.TimeoutExpired:
            code = None
    text = log.read_text(errors="replace")
    found = SUMMARY.findall(text)
    ended = code is not None and bool(found) and "skipped: no CUDA device" not in text
    row = (tool, program, tests, f"{time.monotonic() - begin:.0f}", found[-1] if found else "?",
           "" if ended else "stopped" if code is None else f"no result, exit {code}", ", ".join(kernels_of(text)))
    print("  ".join(f"{value:<18}" for value in row).rstrip(), flush=True)
    return ended and found[-1] == "0" and code == 0


def main():
    arguments = parse()
    if shutil.which("compute-sanitizer") is None:
        sys.exit("sanitize_gpu: compute-sanitizer is not in the PATH; it comes with the CUDA toolkit")
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = [run for run in RUNS if not arguments.only or set(run) & set(arguments.only)]
    if not runs:
        sys.exit(f"sanitize_gpu: --only {' '.join(arguments.only)} names no tool, program or tests of a run")
    end = time.monotonic() + 60 * arguments.minutes
    good = True
    for at, run in enumerate(runs):
        left = end - time.monotonic()
        if left < 20:
            print("no time for:", *("/".join(other) for other in runs[at:]))
            break
        good &= run_one(arguments, *run, min(left, 60 * arguments.each))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
