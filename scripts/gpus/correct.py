"""Section correct: every layout gives the log-probabilities of the reference, and one card's texts."""

import concurrent.futures
import os
import sys

import numpy as np

from gpus.cluster import Cluster, Layout, layouts
from gpus.processes import run as run_command
from gpus.report import progress
from reference import safetensors_file
from reference.shapes import SHAPES, WIDE_SHAPES

F32_LIMIT = 1e-3
MEAN_RATIO, P99_RATIO = 1.3, 1.5


def make_cases(run):
    """The folders of all cases, made from the run's seed by one process for each shape."""
    out = run.scratch / "cases"
    command = [sys.executable, "-m", "reference.make_cases", "--out", str(out), "--seed",
               str(run.seed), "--dtypes", ",".join(run.dtypes), "--shapes"]
    with concurrent.futures.ThreadPoolExecutor(run.parallel) as pool:
        list(pool.map(lambda shape: run_command([*command, shape], run.clock, 200,
                                                cwd=run.root / "tests"), run.shapes or [*SHAPES, *WIDE_SHAPES]))
    return sorted(out.iterdir())


def emulation(tensors, rounds_inputs):
    """The name of the rounding that a case is measured by; None: of none, in F32.

    Where cards have fast kernels they quantise what FP8 weights are multiplied with, so there an
    emulation of that goes before the one of bf16 rounding."""
    names = {name.removeprefix("prompt.0.") for name in tensors
             if name.startswith("prompt.0.emulated_")}
    quantised = "emulated_fp8_inputs_logprobs"
    if rounds_inputs and quantised in names:
        return quantised
    return "emulated_logprobs" if names else None


class Expected:
    """What the reference says about the prompts of one case."""

    def __init__(self, case, backend):
        tensors = safetensors_file.read(case / "expected.safetensors")
        count = sum(name.endswith(".tokens") for name in tensors)
        self.prompts = [tensors[f"prompt.{i}.tokens"].data for i in range(count)]
        self.exact = self._joined(tensors, "logprobs")
        shape = case.name.rsplit("-", 1)[0]
        self.criterion = emulation(tensors, backend == "cuda" and shape in WIDE_SHAPES)
        self.emulated = self.criterion and self._joined(tensors, self.criterion)

    def _joined(self, tensors, name):
        return np.concatenate([tensors[f"prompt.{i}.{name}"].data
                               for i in range(len(self.prompts))]).astype(np.float64)

    def judge(self, got):
        """Errors of log-probabilities [positions] and whether they are small enough."""
        error = np.abs(got - self.exact)
        values = {"positions": len(got), "max": float(error.max()), "mean": float(error.mean()),
                  "p99": float(np.quantile(error, 0.99))}
        if self.emulated is None:
            values["ok"] = values["max"] <= F32_LIMIT
        else:
            base = np.abs(self.emulated - self.exact)
            values["mean_ratio"] = float(error.mean() / base.mean())
            values["p99_ratio"] = values["p99"] / float(np.quantile(base, 0.99))
            values["ok"] = values["mean_ratio"] <= MEAN_RATIO and values["p99_ratio"] <= P99_RATIO
        return values | {"criterion": self.criterion or "absolute"}


def fetch(cluster, prompts):
    """Log-probabilities of all prompts but of their first tokens, in one array."""
    clients = [cluster.start("--json", "--token-ids", ",".join(map(str, prompt)),
                             "--prompt-logprobs", "--max-tokens", "1", "--ignore-eos",
                             "--temperature", "0") for prompt in prompts]
    answers = [cluster.finish(client, 120)["prompt_logprobs"] for client in clients]
    for prompt, answer in zip(prompts, answers):
        if len(answer) != len(prompt):
            raise RuntimeError(f"{len(answer)} log-probabilities for a prompt of {len(prompt)}")
    # Infinity and NaN have no JSON and come as null.
    return np.array([np.nan if p is None else p for answer in answers for p in answer[1:]])


def serve_case(run, case, layout):
    """(log-probabilities, verdict) of one case in one layout."""
    expected = Expected(case, run.backend)
    with Cluster(run, case, layout, "--kv-blocks", "512").start_workers() as cluster:
        got = fetch(cluster, expected.prompts)
    return got, expected.judge(got)


def check_cases(run):
    begin = run.clock.left()
    cases = make_cases(run)
    progress(f"{len(cases)} checkpoints of seed {run.seed} made in {begin - run.clock.left():.0f} s")
    with concurrent.futures.ThreadPoolExecutor(run.parallel) as pool:
        jobs = {(case, layout): pool.submit(serve_case, run, case, layout)
                for case in cases for layout in layouts(run)}
        for case in cases:
            alone = None
            for layout in (key[1] for key in jobs if key[0] == case):
                values = {"case": case.name, "layout": str(layout)}
                try:
                    got, verdict = jobs[case, layout].result()
                    values |= verdict
                    if layout.ranks == 1:
                        alone = got
                    elif alone is not None:
                        values["from_1x1"] = float(np.abs(got - alone).max())
                except Exception as error:  # pylint: disable=broad-exception-caught
                    values |= {"ok": False, "error": str(error)}
                run.report.add("correct", "log-probabilities", **values)
            progress(f"{case.name} done")


def ask_all(run, demo, layout):
    """Greedy answers of the demo model, all asked at once."""
    flags = ("--kv-blocks", "1024")
    with Cluster(run, run.demo, layout, *flags).start_workers() as cluster:
        clients = [cluster.start("--json", "--chat", question, "--temperature", "0", "--ignore-eos",
                                 "--max-tokens", str(demo.TOKENS), "--logprobs", "2",
                                 "--timeout", "280") for question in demo.QUESTIONS]
        return [cluster.finish(client, 280) for client in clients]


def check_demo(run):
    if not run.demo or not os.path.exists(os.path.join(run.demo, "config.json")):
        run.report.add("correct", "demo", skipped="no demo model: give its folder as --demo")
        return
    os.environ["HADAL_DEMO_MODEL"] = str(run.demo)  # the test reads it when it is imported
    import demo_model_test as demo  # pylint: disable=import-outside-toplevel,import-error
    alone = ask_all(run, demo, Layout(1, 1))
    progress(f"demo model in 1x1: {alone[0]['text'].split('.')[0]!r}")
    for layout in (layout for layout in layouts(run) if layout.ranks > 1):
        answers = ask_all(run, demo, layout)
        parted = [(a, demo.parting(a, b)) for a, b in zip(alone, answers)]
        gaps = [demo.gap(a, position) for a, position in parted if position is not None]
        whole = all(len(a["token_ids"]) == demo.TOKENS for a in answers)
        run.report.add("correct", "demo", layout=str(layout), questions=len(answers),
                       partings=len(gaps), largest_gap=max(gaps, default=0.0),
                       ok=whole and max(gaps, default=0.0) < demo.GAP)
        progress(f"demo model in {layout} done")


def run_section(run):
    check_demo(run)
    check_cases(run)
