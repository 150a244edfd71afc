#!/usr/bin/env python3
"""Measures a whole deployment on this machine: server and worker ranks on loopback.

  scripts/measure_serving.py [--model models/demo] [--ranks 2] [--long-prompt 4000]

Prints the CPU time of an idle deployment, what a long prompt does to a running stream, throughput
with 1 and 16 streams, and each rank's memory against its plan. Needs build/release.
"""

import argparse
import os
import pathlib
import re
import signal
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ.setdefault("HADAL_BIN", str(ROOT / "build/release/bin"))
sys.path.insert(0, str(ROOT / "tests/e2e"))
from deployment import Deployment, finish, wait_for  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
IDLE_SECONDS = 20
STREAM_TOKENS = 1500
KV_BLOCKS = 256


def pids(hadal):
    return [hadal.server.pid, *hadal.rank_pids()]


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def measure_idle(hadal):
    time.sleep(2)
    before = sum(cpu_seconds(pid) for pid in pids(hadal))
    time.sleep(IDLE_SECONDS)
    used = sum(cpu_seconds(pid) for pid in pids(hadal)) - before
    print(f"idle: server and ranks use {100 * used / IDLE_SECONDS:.2f} % of one core")


def bench(hadal, concurrency, requests, prompt_tokens, max_tokens):
    """A running load test; finish() gives its report."""
    return hadal.start("--json", "--concurrency", str(concurrency), "--requests", str(requests),
                       "--prompt-tokens", str(prompt_tokens), "--max-tokens", str(max_tokens),
                       "--temperature", "0", "--seed", str(time.monotonic_ns() % 10**6),
                       subcommand="bench")


def measure_throughput(hadal):
    for streams in (1, 16):
        report = finish(bench(hadal, streams, streams, 128, 64), timeout=600)
        print(f"{streams} streams of 128 + 64 tokens: {report['output_tokens_per_s']:.1f} tokens/s,"
              f" first token after {report['ttft_ms']['p50']:.0f} ms (median),"
              f" then every {report['tpot_ms']['p50']:.1f} ms")


def measure_long_prompt(hadal, prompt_tokens):
    finish(bench(hadal, 1, 1, 16, 50))
    alone = finish(bench(hadal, 1, 1, 16, 200))["itl_ms"]
    stream = bench(hadal, 1, 1, 16, STREAM_TOKENS)
    generated = lambda: hadal.status()["generated_tokens"]
    before = generated()
    wait_for(lambda: generated() > before + 5, "the stream runs")
    begin, before = time.monotonic(), generated()
    prompt = bench(hadal, 1, 1, prompt_tokens, 1)
    finish(prompt, timeout=600)
    seconds, tokens = time.monotonic() - begin, generated() - before - 1
    if stream.poll() is not None:
        sys.exit("the stream ended before the prompt: raise STREAM_TOKENS")
    beside = finish(stream, timeout=600)["itl_ms"]
    mean = 1e3 * seconds / tokens
    print(f"a stream alone: {alone['p50']:.1f} ms between tokens (p99 {alone['p99']:.1f})")
    print(f"while a prompt of {prompt_tokens} tokens runs ({seconds:.1f} s): {mean:.1f} ms, "
          f"{mean / alone['p50']:.1f} times as long; p99 of the whole stream {beside['p99']:.0f} ms")


def unit_bytes(text):
    value, unit = text.split()
    return float(value) * 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)


def measure_memory(hadal):
    """After every KV block has been written once."""
    finish(bench(hadal, 4, 8, KV_BLOCKS * 64 // 4 - 64, 2), timeout=600)
    with open(hadal.worker_log, errors="replace") as log:
        text = log.read()
    for rank, pid in enumerate(hadal.rank_pids()):
        planned = re.search(rf"worker {rank}/.*memory: (.*) = ([\d.]+ [KMGT]?i?B) of", text)
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        used = 1024 * sum(int(re.search(rf"{key}:\s+(\d+)", status).group(1))
                          for key in ("RssAnon", "RssFile", "RssShmem"))
        plan = unit_bytes(planned.group(2))
        print(f"rank {rank}: {used / 2**20:.0f} MiB resident, plan {plan / 2**20:.0f} MiB"
              f" ({planned.group(1)}): {100 * used / plan - 100:+.1f} %")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "models/demo"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--long-prompt", type=int, default=4000, help="tokens")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):  # unwinding ends what was started
        signal.signal(number, lambda *_: sys.exit(143))
    with Deployment(arguments.model, ranks=arguments.ranks,
                    worker_flags=("--threads", str(arguments.threads),
                                  "--kv-blocks", str(KV_BLOCKS))) as hadal:
        hadal.start_workers()
        measure_idle(hadal)
        measure_throughput(hadal)
        measure_long_prompt(hadal, arguments.long_prompt)
        measure_memory(hadal)


if __name__ == "__main__":
    main()
