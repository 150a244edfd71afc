#!/usr/bin/env python3
r"""Checks and measures Hadal on several GPUs of one host, one rank on each, in under ten minutes.

  HADAL_BIN=DIR scripts/measure_gpus.py --gpus 2 --out results.jsonl [--demo models/demo]

HADAL_BIN is a folder with hadal, hadal-server, hadal-worker, hadal-model-bench, hadal-comm-bench and
hadal-exchange-bench (default: build/release/bin). mpirun and, for the section correct, numpy must be there. Layouts are
T x D: T ranks share a sequence's heads, D groups have sequences of their own; experts are spread over
all. With N cards they are 1x1, Nx1 and 1xN. NVLink multicast stays off (NCCL_NVLS_ENABLE=0).

sections:
  correct      random checkpoints of all 17 shapes and types, made now from a seed that is printed:
               log-probabilities of the reference's prompts over gRPC. F32 is right within 1e-3; bf16 and
               FP8 with a mean error of 1.3 and a p99 of 1.5 times those of the reference's emulation.
               from_1x1 is the largest difference from one card. With --demo also 20 greedy answers:
               how many part from one card's, and where the two best tokens are furthest apart.
  collectives  hadal-comm-bench: all-reduce, dispatch and combine beside NCCL alone; and
               hadal-exchange-bench: all of a layer's routed experts with their exchange
  faults       32 streams; rank 1 is killed, or hangs: the job must end within its step timeout, the
               server stay up, and a new group bring all streams to their last token
  serve        the 16B configuration with random weights, bf16 and FP8: decode at several numbers of
               streams and prompts of 2048, through the server. The floor of a step is its bytes over
               the read rate of all cards, which hadal-model-bench measures first; the rank floor
               counts what one rank reads, with what is not split.

Larger models on more cards:

  --gpus 4 --config configs/config_236B.json --dtypes f32 bf16 fp8 --layouts 1x1 4x1 2x2 1x4 \
      --serve-layouts 4x1 2x2 1x4
  --gpus 8 --config configs/config_671B.json --sections collectives serve --dtypes fp8 --layouts 8x1 1x8 \
      --streams 1 64 256 1024 --prompt-tokens 1000 --answer-tokens 2000 --kv-blocks 0

Each result is a line of JSON in --out as soon as it is known, and a row of a table in the end. A
section that fails is recorded, and the next one goes on. Exit code 0: nothing is wrong. Without GPUs:

  scripts/measure_gpus.py --backend cpu --config TINY.json --streams 1 4 --prompt-tokens 64 \
      --prefill-tokens 128 --fault-tokens 1000
"""

import argparse
import importlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parent.parent
SECTIONS = ("correct", "collectives", "faults", "serve")

os.environ.setdefault("HADAL_BIN", str(ROOT / "build/release/bin"))
os.environ.update(NCCL_NVLS_ENABLE="0", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/e2e")]

from gpus import processes  # noqa: E402
from gpus.report import Report, cell, progress  # noqa: E402

processes.mark_environment()  # before deployment.py copies the environment


def parse():
    summary, rest = __doc__.split("\n", 1)
    parser = argparse.ArgumentParser(description=summary, epilog=rest, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--gpus", type=int, default=2, help="cards, and ranks of the larger layouts (default 2)")
    add("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="only these")
    add("--layouts", nargs="+", help="correct, faults, serve: T x D, as 1x2 (default 1x1 Nx1 1xN)")
    add("--serve-layouts", nargs="+", help="serve: these instead, where a model does not fit in all")
    add("--out", default="gpus.jsonl", help="file for the JSON lines (default gpus.jsonl)")
    add("--demo", help="folder of the demo model; without it, it is left out")
    add("--backend", choices=("cuda", "cpu"), default="cuda")
    add("--config", type=pathlib.Path, default=ROOT / "configs/config_16B.json",
        help="model of the sections serve and faults, in DeepSeek's field names (default 16B)")
    add("--minutes", type=float, default=9.5, help="end everything after this time (default 9.5)")
    add("--seed", type=int, help="of checkpoints and prompts (default: fresh, printed)")
    add("--parallel", type=int, help="deployments at once in correct (default: 3 on cuda, 1 on cpu)")
    add("--shapes", nargs="+", help="correct: only these shapes")
    add("--dtypes", nargs="+", default=["f32", "bf16", "fp8"], help="correct, serve: only these types")
    add("--streams", type=int, nargs="+", default=[1, 8, 64, 256], help="serve: (default 1 8 64 256)")
    add("--prompt-tokens", type=int, default=512, help="serve: of decode's streams (default 512)")
    add("--answer-tokens", type=int,
        help="serve: of decode's streams (default: 200 of up to 8 streams, 160 of 64, 128 of more)")
    add("--kv-blocks", type=int,
        help="serve: of a rank (default: what the streams need; 0: what memory has room for)")
    add("--prompts", type=int, nargs="+", default=[4, 16],
        help="serve: prompts at a time, when there is nothing else (default 4 16)")
    add("--prefill-tokens", type=int, default=2048, help="serve: of prompts alone (default 2048)")
    add("--fault-tokens", type=int, default=4000, help="faults: of a stream (default 4000)")
    return parser.parse_args()


class Run:
    """What the sections share."""

    def __init__(self, arguments):
        vars(self).update(vars(arguments))
        self.root = ROOT
        self.seed = arguments.seed or random.SystemRandom().randrange(1, 2**31)
        self.parallel = arguments.parallel or (3 if arguments.backend == "cuda" else 1)
        self.clock = processes.Clock(60 * arguments.minutes)
        self.report = Report(arguments.out)
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="hadal-gpus-"))
        tempfile.tempdir = str(self.scratch)  # also for logs

    def end(self):
        killed = processes.kill_started()
        shutil.rmtree(self.scratch, ignore_errors=True)
        return killed


def end_on_signals(run):
    def end(number, _):
        run.end()
        print(f"measure_gpus: ended by {signal.Signals(number).name}", file=sys.stderr, flush=True)
        os._exit(128 + number)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


def cards():
    """Names and drivers of the GPUs, as nvidia-smi lists them."""
    try:
        done = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version,memory.total",
                               "--format=csv,noheader"], capture_output=True, text=True, timeout=30,
                              check=True)
        return done.stdout.strip().splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def run_section(run, name):
    begin = time.monotonic()
    progress(f"section {name}")
    values = {"ok": True}
    try:
        importlib.import_module(f"gpus.{name}").run_section(run)
    except Exception as error:  # pylint: disable=broad-exception-caught
        values = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        progress(f"section {name} failed: {values['error']}")
        traceback.print_exc()
    left_behind = processes.kill_started()
    values["ok"] = values["ok"] and left_behind == 0
    run.report.print_section(name)
    run.report.add(name, "section", seconds=time.monotonic() - begin, left_behind=left_behind, **values)


def main():
    run = Run(parse())
    end_on_signals(run)
    found = cards()
    run.report.add("run", "machine", host_cores=os.cpu_count(), cards=found, gpus=run.gpus,
                   backend=run.backend, seed=run.seed, config=run.config.name)
    progress(f"{run.backend}, seed {run.seed}, cards: {', '.join(found) or 'none'}")
    try:
        for name in SECTIONS:
            if name in run.sections:
                run_section(run, name)
    finally:
        run.end()
    failures = run.report.failures()
    for record in failures:
        print("WRONG:", *(f"{key}={cell(value)}" for key, value in record.items() if key != "ok"))
    progress(f"all done, {len(failures)} results are wrong; see {run.out}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
