"""Section collectives: hadal-comm-bench with a rank on every card."""

import json
import os

from gpus.processes import run as run_command
from gpus.report import progress

SHOWN = ("collective", "model", "tokens", "bytes", "communicator", "us", "graph_us", "bus_GBs",
         "graph_bus_GBs", "of_nccl", "skipped")


def key(line):
    return tuple(line[name] for name in ("collective", "model", "tokens"))


def run_section(run):
    binary = os.path.join(os.environ["HADAL_BIN"], "hadal-comm-bench")
    if not os.path.exists(binary):
        run.report.add("collectives", "times", skipped=f"no {binary}: it is built with NCCL")
        return
    out = run_command(["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(run.gpus), binary],
                      run.clock, 150)
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    plain = {key(line): line for line in lines if line.get("communicator") == "nccl"}
    lines.sort(key=lambda line: key(line) if "collective" in line else ())
    for line in lines:
        if line.get("communicator") == "hadal" and key(line) in plain:
            line["of_nccl"] = line["graph_us"] / plain[key(line)]["graph_us"]
        run.report.add("collectives", "times", show=SHOWN, **line)
    progress(f"{len(lines)} results")
