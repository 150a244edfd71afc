"""Section serve: decode and prefill of the 16B model through the server, in every layout."""

import json
import os

from gpus.cluster import Cluster, layouts
from gpus.cost import StepCost
from gpus.processes import run as run_command
from gpus.report import progress

ROUNDS = 8  # of prompts
CEILING_LAYERS = 2  # the ceilings are of the card, not of the model


def configs(run):
    """By name: the configuration as it stands, and with FP8 weights."""
    config = json.loads(run.config.read_text())
    fp8 = config | {"dtype": "fp8", "scale_fmt": None, "scale_block": 128}
    found = {config["dtype"]: config, "fp8": fp8}
    return {name: found[name] for name in found if name in run.dtypes}


def model_folder(run, name, config):
    """A folder that holds nothing but a configuration."""
    folder = run.scratch / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def measure_ceilings(run):
    """Bytes and operations a second of one card, as the model bench measures them."""
    config = json.loads(run.config.read_text())
    config["n_layers"] = min(config["n_layers"], CEILING_LAYERS)
    folder = model_folder(run, "ceilings", config)
    out = run_command([os.path.join(os.environ["HADAL_BIN"], "hadal-model-bench"), "--device",
                       run.backend, "--dummy", "--json", "--model", str(folder), "--batch", "1",
                       "--prompt", "64", "--context", "64", "--steps", "2", "--repeats", "1"],
                      run.clock, 120)
    values = json.loads(out.strip().splitlines()[-1])
    run.report.add("serve", "ceilings of one card", device=values["backend"],
                   read_GBs=values["read_GBs"], matmul_GFLOPs=values["matmul_GFLOPs"])
    progress(f"one card reads {values['read_GBs']:.0f} GB/s, multiplies at "
             f"{values['matmul_GFLOPs'] / 1e3:.3g} TFLOP/s")
    return values["read_GBs"] * 1e9, values["matmul_GFLOPs"] * 1e9


def answer_tokens(run, streams):
    """Long answers for few streams, so that every median is over enough steps."""
    return run.answer_tokens or (200 if streams <= 8 else 160 if streams <= 64 else 128)


def kv_flags(run):
    """What the largest test needs in one D group, also when groups are filled unevenly."""
    if run.kv_blocks == 0:
        return ()
    decode = max(streams * -(-(run.prompt_tokens + answer_tokens(run, streams)) // 64 + 1)
                 for streams in run.streams)
    needed = max(decode, max(run.prompts) * (run.prefill_tokens // 64 + 2)) + 64
    return ("--kv-blocks", str(run.kv_blocks or needed))


class Serving:
    """The measurements of one model in one layout."""

    def __init__(self, run, name, config, layout, ceilings):
        self.run, self.layout = run, layout
        self.place = {"dtype": name, "layout": str(layout)}
        self.whole = StepCost(config)
        self.rank = StepCost(config, layout.tensor, layout.data)
        self.read, self.multiply = ceilings or (None, None)
        self.seed = run.seed % 10**6

    def _bench(self, cluster, *shape):
        self.seed += 1  # other prompts, which no prefix cache holds
        return cluster.bench(*shape, seed=self.seed, timeout=600 if self.run.answer_tokens else 120)

    def decode(self, cluster, streams):
        run, tokens = self.run, answer_tokens(self.run, streams)
        self._bench(cluster, streams, streams, 64, 16)  # captures the graphs of these shapes
        got = self._bench(cluster, streams, streams, run.prompt_tokens, tokens)
        step = got["itl_ms"]["p50"] / 1e3
        values = {"step_ms": 1e3 * step, "tok_s": streams / step if step > 0 else 0.0,
                  "whole_run_tok_s": got["output_tokens_per_s"],
                  "ttft_ms": got["ttft_ms"]["p50"], "ttft_p99_ms": got["ttft_ms"]["p99"]}
        if self.read and step > 0:
            whole = self.whole.decode_bytes(streams, run.prompt_tokens)
            rank = self.rank.decode_bytes(streams, run.prompt_tokens)
            values |= {"floor_ms": 1e3 * whole / self.layout.ranks / self.read,
                       "percent_of_floor": 100 * whole / self.layout.ranks / self.read / step,
                       "percent_of_rank_floor": 100 * rank / self.read / step}
        self._add("decode", got, streams=streams, prompt=run.prompt_tokens, tokens=tokens, **values)

    def prefill(self, cluster, prompts):
        length = self.run.prefill_tokens
        self._bench(cluster, prompts, prompts, length, 1)
        got = self._bench(cluster, prompts, prompts * ROUNDS, length, 1)
        rate = got["completed"] * length / got["seconds"]
        values = {"prompt_tok_s": rate, "ttft_ms": got["ttft_ms"]["p50"]}
        if self.multiply:
            flops = self.whole.prompt_flops(length) * rate
            values["percent_of_matmul"] = 100 * flops / self.layout.ranks / self.multiply
        self._add("prefill", got, prompts=prompts, prompt=length, rounds=ROUNDS, **values)

    def _add(self, what, got, **values):
        self.run.report.add("serve", what, **self.place, **values, errors=str(got["errors"] or ""),
                            ok=not got["errors"])

    def all(self, model):
        run = self.run
        flags = ("--load-format", "dummy", *kv_flags(run), "--max-slots", str(max(run.streams)))
        with Cluster(run, model, self.layout, *flags).start_workers() as cluster:
            run.report.add("serve", "start", **self.place, ready_s=cluster.ready_s)
            for streams in run.streams:
                self._try("decode", lambda: self.decode(cluster, streams), streams=streams)
            for prompts in run.prompts:
                self._try("prefill", lambda: self.prefill(cluster, prompts), prompts=prompts)

    def _try(self, what, measure, **values):
        try:
            measure()
        except RuntimeError as error:
            self.run.report.add("serve", what, **self.place, **values, ok=False, error=str(error))


def run_section(run):
    try:
        ceilings = measure_ceilings(run)
    except RuntimeError as error:
        ceilings = None
        run.report.add("serve", "ceilings of one card", ok=False, error=str(error))
    for name, config in configs(run).items():
        model = model_folder(run, f"serve-{name}", config)
        for layout in layouts(run, run.serve_layouts):
            try:
                Serving(run, name, config, layout, ceilings).all(model)
            except (RuntimeError, AssertionError) as error:
                run.report.add("serve", "start", dtype=name, layout=str(layout), ok=False,
                               error=str(error))
            progress(f"{name} in {layout} done")
