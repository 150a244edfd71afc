"""Section collectives: what ranks exchange for one layer, with a rank on every card."""

import json
import os

from gpus.processes import run as run_command
from gpus.report import progress
from gpus.serve import model_folder

SHOWN = ("collective", "model", "tokens", "bytes", "communicator", "us", "graph_us", "bus_GBs",
         "graph_bus_GBs", "of_nccl")
LARGE = "configs/config_671B.json"


def bench(run, name, *flags):
    """The JSON lines that ranks of a program print; none, and a record, when it is missing or fails."""
    binary = os.path.join(os.environ["HADAL_BIN"], name)
    try:
        if not os.path.exists(binary):
            raise RuntimeError(f"{binary} is missing; it is built with the CUDA parts and NCCL")
        out = run_command(["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(run.gpus),
                           binary, *flags], run.clock, 120)
        lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    except (RuntimeError, ValueError) as error:
        run.report.add("collectives", name, ok=False, error=str(error))
        return []
    if lines and "skipped" in lines[0]:
        run.report.add("collectives", name, **lines[0])
        return []
    progress(f"{name}: {len(lines)} results")
    return lines


def key(line):
    return tuple(line[name] for name in ("collective", "model", "tokens"))


def measure_collectives(run):
    lines = bench(run, "hadal-comm-bench")
    plain = {key(line): line for line in lines if line["communicator"] == "nccl"}
    for line in sorted(lines, key=key):
        if line["communicator"] == "hadal" and key(line) in plain:
            line["of_nccl"] = line["graph_us"] / plain[key(line)]["graph_us"]
        run.report.add("collectives", "times", show=SHOWN, **line)


def measure_exchange(run):
    """One layer of --config, and on cards one of the 671B model, which has FP8 weights."""
    models, few = {run.config.stem: run.config}, ("--tokens", "1", "64", "--iterations", "2")
    if run.backend == "cuda":
        few = ()
        models["config_671B"] = run.root / LARGE
    for name, path in models.items():
        folder = model_folder(run, f"exchange-{name}", json.loads(path.read_text()))
        for line in bench(run, "hadal-exchange-bench", "--backend", run.backend, "--model", str(folder),
                          *few):
            line["beside_experts_us"] = line["us"] - line["experts_us"]
            run.report.add("collectives", "a layer's experts and their exchange", model=name, **line)


def run_section(run):
    measure_collectives(run)
    measure_exchange(run)
