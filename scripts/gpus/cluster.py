"""A server with a group of ranks in one layout, as the sections start it."""

import contextlib
import pathlib
import subprocess
import time

from deployment import Deployment, finish
from gpus.processes import last_lines


class Layout:
    """T x D: ranks that share one sequence, and groups with sequences of their own."""

    def __init__(self, tensor, data):
        self.tensor, self.data = tensor, data
        self.ranks = tensor * data

    def __str__(self):
        return f"{self.tensor}x{self.data}"

    def flags(self):
        return ("--tensor-parallel", str(self.tensor), "--data-parallel", str(self.data))


def layouts(run, names=None):
    """Those of these names, or of --layouts; without it one card, then all cards as T and as D."""
    names = names or run.layouts or ["1x1", f"{run.gpus}x1", f"1x{run.gpus}"]
    return [Layout(*map(int, name.split("x"))) for name in names]


class Cluster(Deployment):
    """Like Deployment, with a longer start, without ps, and quiet when it fails."""

    def __init__(self, run, model, layout, *worker_flags, server_flags=()):
        self.clock, self.layout = run.clock, layout
        backend = ("--backend", run.backend) + (("--threads", "1") if run.backend == "cpu" else ())
        super().__init__(str(model), *server_flags, ranks=layout.ranks,
                         worker_flags=(*layout.flags(), *backend, *worker_flags))
        self.ready_s = None

    def start_workers(self, wait=True, timeout=150):
        begin = time.monotonic()
        super().start_workers(wait=False)
        if wait:
            self.wait_until(lambda: self.status()["ready"], "the ranks are ready", timeout)
            self.ready_s = time.monotonic() - begin
        return self

    def wait_until(self, condition, what, timeout, ranks_live=True):
        """Seconds that it took. Raises RuntimeError with the ranks' last words."""
        begin = time.monotonic()
        timeout = self.clock.limit(timeout)
        while not condition():
            if self.server.poll() is not None:
                raise RuntimeError(f"the server ended before: {what}: {self.words(self.server_log)}")
            if ranks_live and self.workers.poll() is not None:
                raise RuntimeError(f"the ranks ended before: {what}: {self.words(self.worker_log)}")
            if time.monotonic() - begin > timeout:
                raise RuntimeError(f"not within {timeout:.0f} s: {what}: {self.words(self.worker_log)}")
            time.sleep(0.02)
        return time.monotonic() - begin

    def status(self):
        try:
            return super().status()
        except subprocess.SubprocessError as error:
            raise RuntimeError(f"{error}; server: {self.words(self.server_log)}") from None

    @staticmethod
    def words(path):
        return last_lines(pathlib.Path(path).read_text(errors="replace"))

    def print_logs(self):
        """The error's message has the end of them."""

    def rank_pids(self):
        """Process ids of the ranks that serve this server, rank 0 first."""
        found = {}
        for directory in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, KeyError):
                if (directory / "comm").read_text().strip() != "hadal-worker":
                    continue
                if self.worker_address.encode() not in (directory / "cmdline").read_bytes().split(b"\0"):
                    continue
                environment = (directory / "environ").read_bytes().split(b"\0")
                values = dict(entry.split(b"=", 1) for entry in environment if b"=" in entry)
                found[int(values[b"OMPI_COMM_WORLD_RANK"])] = int(directory.name)
        return [found[rank] for rank in sorted(found)]

    def bench(self, streams, requests, prompt_tokens, max_tokens, seed, timeout=120):
        """The report of a load test."""
        client = self.start("--json", "--concurrency", str(streams), "--requests", str(requests),
                            "--prompt-tokens", str(prompt_tokens), "--max-tokens", str(max_tokens),
                            "--temperature", "0", "--seed", str(seed), "--timeout", str(timeout),
                            subcommand="bench")
        return self.finish(client, timeout + 10)

    def finish(self, client, timeout):
        """The JSON object that a client prints."""
        try:
            return finish(client, timeout=self.clock.limit(timeout))
        except (AssertionError, subprocess.TimeoutExpired) as error:
            what = str(error) if isinstance(error, AssertionError) else "a client ran into its timeout"
            raise RuntimeError(f"{what}; ranks: {self.words(self.worker_log)}") from None
        finally:
            client.kill()
