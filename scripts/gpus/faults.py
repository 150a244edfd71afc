"""Section faults: a rank is killed or hangs under load, and a new group takes its streams over."""

import itertools
import json
import os
import random
import signal
import time

from gpus.cluster import Cluster, layouts
from gpus.report import progress
from gpus.serve import model_folder

STREAMS = 32
PROMPT_TOKENS = 64
STEP_TIMEOUT = 10      # seconds, of the workers
GRACE = 5              # seconds that ending takes besides
LAYERS = 4             # enough for every kind of layer; groups then start quickly
FAULTS = {"killed": signal.SIGKILL, "hangs": signal.SIGSTOP}


class Fault:
    def __init__(self, run, model, layout, name):
        self.run, self.layout, self.name = run, layout, name
        blocks = STREAMS * ((PROMPT_TOKENS + run.fault_tokens) // 64 + 2)
        flags = ("--load-format", "dummy", "--kv-blocks", str(blocks), "--max-slots", str(STREAMS),
                 "--step-timeout", str(STEP_TIMEOUT))
        self.cluster = Cluster(run, model, layout, *flags)
        self.random = random.Random(run.seed)

    def start_streams(self):
        tokens = lambda: ",".join(str(self.random.randrange(1000)) for _ in range(PROMPT_TOKENS))
        return [self.cluster.start("--json", "--token-ids", tokens(), "--max-tokens",
                                   str(self.run.fault_tokens), "--ignore-eos", "--temperature",
                                   "0.8", "--seed", str(i), "--timeout", "300")
                for i in range(STREAMS)]

    def wait_for_streams(self):
        """Until all of them are some tokens on."""
        wanted = self.cluster.status()["generated_tokens"] + 20 * STREAMS

        def running():
            status = self.cluster.status()
            return status["running_requests"] == STREAMS and status["generated_tokens"] >= wanted
        self.cluster.wait_until(running, "all streams run", 60)

    def break_rank(self, clients):
        """Rank 1 ends or falls silent; times until the server and mpirun have noticed."""
        cluster = self.cluster
        running = sum(client.poll() is None for client in clients)
        os.kill(cluster.rank_pids()[1], FAULTS[self.name])
        limit = STEP_TIMEOUT + GRACE
        begin = time.monotonic()
        values = {"running_then": running}
        cluster.wait_until(lambda: not cluster.status()["ready"], "the server is not ready", limit,
                           ranks_live=False)
        values["not_ready_s"] = time.monotonic() - begin
        cluster.wait_until(lambda: cluster.workers.poll() is not None, "mpirun ends",
                           limit - values["not_ready_s"], ranks_live=False)
        values["job_ended_s"] = time.monotonic() - begin
        cluster.wait_until(lambda: not cluster.rank_pids(), "the ranks are gone", GRACE,
                           ranks_live=False)
        return values

    def count(self, clients):
        """Streams that end without error and with every token."""
        whole, error = 0, None
        for client in clients:
            try:
                answer = self.cluster.finish(client, 200)
                counts = {len(answer["token_ids"]), answer["usage"]["completion_tokens"]}
                whole += counts == {self.run.fault_tokens}
            except Exception as e:  # pylint: disable=broad-exception-caught
                error = error or str(e)
        return whole, error

    def measure(self):
        with self.cluster as cluster:
            cluster.start_workers()
            clients = self.start_streams()
            self.wait_for_streams()
            values = self.break_rank(clients)
            waiting = sum(client.poll() is None for client in clients)
            cluster.start_workers()
            values["ready_again_s"] = cluster.ready_s
            begin = time.monotonic()
            whole, error = self.count(clients)
            values |= {"streams_s": time.monotonic() - begin, "whole_streams": whole,
                       "tokens": self.run.fault_tokens,
                       "epoch": cluster.status()["worker_groups"][0]["epoch"]}
            values["ok"] = (whole == STREAMS and values["running_then"] == STREAMS
                            and waiting == STREAMS and values["epoch"] == 2)
            return values if error is None else values | {"error": error}


def run_section(run):
    config = json.loads(run.config.read_text())
    config["n_layers"] = min(config["n_layers"], LAYERS)
    model = model_folder(run, "faults", config)
    cases = itertools.product((layout for layout in layouts(run) if layout.ranks > 1), FAULTS)
    for layout, name in cases:
        values = {"rank_1": name, "layout": str(layout), "streams": STREAMS}
        try:
            values |= Fault(run, model, layout, name).measure()
        except (RuntimeError, OSError) as error:
            values |= {"ok": False, "error": str(error)}
        run.report.add("faults", "a rank of a group under load", **values)
        progress(f"rank 1 {name} in {layout}: {'as it should be' if values['ok'] else 'WRONG'}")
