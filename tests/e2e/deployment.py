"""Starts hadal-server and mpirun'd workers on free ports, and talks to them through the client."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

BIN = os.environ["HADAL_BIN"]
SEED = int(os.environ.get("HADAL_TEST_SEED") or random.SystemRandom().getrandbits(32))
ENV = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
print(f"HADAL_TEST_SEED={SEED}", flush=True)


def binary(name):
    return os.path.join(BIN, name)


def byte_tokens():
    """GPT-2's printable character for each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def make_model(directory, with_tokenizer=True, seed=SEED):
    """A random model of 261 ids: the bytes, ChatML's control tokens, <|bos|> and <|eos|>."""
    subprocess.run([binary("hadal-make-tiny-checkpoint"), directory, str(seed)], check=True)
    if not with_tokenizer:
        return directory
    control = ["<|im_start|>", "<|im_end|>", "<|pad|>", "<|bos|>", "<|eos|>"]
    added = [{"id": 256 + i, "content": c, "special": True, "normalized": False, "lstrip": False,
              "rstrip": False, "single_word": False} for i, c in enumerate(control)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": True}
    tokenizer = {"version": "1.0", "normalizer": None, "added_tokens": added,
                 "pre_tokenizer": level, "decoder": level,
                 "model": {"type": "BPE", "merges": [],
                           "vocab": {token: byte for byte, token in byte_tokens().items()}}}
    with open(os.path.join(directory, "tokenizer.json"), "w", encoding="utf-8") as out:
        json.dump(tokenizer, out)
    config = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "add_bos_token": True}
    with open(os.path.join(directory, "tokenizer_config.json"), "w", encoding="utf-8") as out:
        json.dump(config, out)
    return directory


class Deployment:
    """One server and, while started, one worker group."""

    def __init__(self, model, *server_flags, ranks=2,
                 worker_flags=("--threads", "1", "--kv-blocks", "1024"),
                 worker_listen="127.0.0.1:0"):
        self.model, self.ranks, self.worker_flags = model, ranks, worker_flags
        self.logs = tempfile.TemporaryDirectory(prefix="hadal-e2e-")
        self.workers, self.worker_log = None, None
        self.server_log = os.path.join(self.logs.name, "server.log")
        with open(self.server_log, "wb") as log:
            self.server = subprocess.Popen(
                [binary("hadal-server"), "--model", model, "--listen", "127.0.0.1:0",
                 "--worker-listen", worker_listen, *server_flags], stderr=log)
        try:
            self.address = self.bound("serving gRPC on")
            self.worker_address = self.bound("waiting for workers on")
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            self.print_logs()
        self.stop_workers()
        if self.server.poll() is None:
            self.server.kill()
        self.server.wait()
        self.logs.cleanup()

    def print_logs(self):
        for path in (self.server_log, self.worker_log):
            if path:
                with open(path, errors="replace") as log:
                    print(f"--- {os.path.basename(path)}\n{log.read()}", file=sys.stderr)

    def bound(self, words):
        """The address that the server logs after these words."""
        def find():
            with open(self.server_log, errors="replace") as log:
                return re.search(words + r" (\S+:[1-9]\d*)", log.read())
        return wait_for(find, "the server listens", alive=self.server).group(1)

    def start_workers(self, wait=True, last_rank_flags=(), last_rank_model=None):
        """The last rank of several may be told more than the others, or have another model."""
        self.worker_log = os.path.join(self.logs.name, f"workers-{time.monotonic_ns()}.log")
        def command(ranks, model):
            return ["-n", str(ranks), binary("hadal-worker"), "--model", model, "--server",
                    self.worker_address, *self.worker_flags]
        ranks = command(self.ranks, self.model)
        if last_rank_flags or last_rank_model:
            last = command(1, last_rank_model or self.model)
            ranks = [*command(self.ranks - 1, self.model), ":", *last, *last_rank_flags]
        with open(self.worker_log, "wb") as log:
            self.workers = subprocess.Popen(
                ["mpirun", "--oversubscribe", "--bind-to", "none", *ranks],
                stdout=log, stderr=log, env=ENV, start_new_session=True)
        if wait:
            self.wait_ready(True)
        return self

    def wait_ready(self, ready):
        wait_for(lambda: self.status()["ready"] == ready, f"ready is {ready}", alive=self.server)

    def rank_pids(self):
        """Process ids of the ranks, rank 0 first."""
        out = subprocess.run(["ps", "-o", "pid=,args=", "-g", str(os.getsid(self.workers.pid))],
                             capture_output=True, text=True, check=False).stdout
        return sorted(int(line.split()[0]) for line in out.splitlines()
                      if line.split()[1].endswith("/hadal-worker"))

    def stop_workers(self):
        if self.workers is None:
            return
        for pid in self.rank_pids():
            os.kill(pid, signal.SIGKILL)
        if self.workers.poll() is None:
            os.killpg(self.workers.pid, signal.SIGKILL)
        self.workers.wait()
        self.workers = None

    def status(self):
        done = subprocess.run([binary("hadal"), "status", "--json", "--server", self.address],
                              capture_output=True, text=True, check=True, timeout=20)
        return json.loads(done.stdout)

    def free_blocks(self):
        return self.status()["worker_groups"][0]["free_kv_blocks"]

    def start(self, *flags, subcommand="generate"):
        """A client in the background."""
        return subprocess.Popen([binary("hadal"), subcommand, "--server", self.address, *flags],
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE)

    def run(self, *flags, timeout=120):
        client = self.start(*flags)
        try:
            out, err = client.communicate(timeout=timeout)
        finally:
            client.kill()
        return client.returncode, out.decode(), err.decode()

    def generate(self, *flags, **kwargs):
        """The JSON object of an answer."""
        code, out, err = self.run("--json", *flags, **kwargs)
        assert code == 0, f"exit {code}: {err}"
        return json.loads(out)


def finish(client, timeout=120):
    """The JSON object of a client that was started with --json."""
    out, err = client.communicate(timeout=timeout)
    assert client.returncode == 0, f"exit {client.returncode}: {err.decode()}"
    return json.loads(out)


def wait_for(condition, what, timeout=60, alive=None):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        assert alive is None or alive.poll() is None, f"the process ended before: {what}"
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout} s: {what}")
