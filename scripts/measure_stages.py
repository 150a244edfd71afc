#!/usr/bin/env python3
"""Where the steps of a model go on a GPU: every kernel of one layer of experts, in order.

  scripts/measure_stages.py --model DIR --batch 1 8 64 256 --prompt 2048 --out stages.jsonl
  scripts/measure_stages.py --model DIR --simulate-layout 8,1 --batch 1 8 64 128   # one rank of eight

DIR needs a config.json only; weights are random, and of its layers --layers are run, one of them dense.
Runs hadal-model-bench under Nsight Compute (ncu), which runs one kernel at a time: times are those of
kernels alone, without the overlap and the gaps of a real step, and bytes are what the card counted as read
from its memory. Prints a table for each step, with bytes in percent of --read and operations in percent of
--products where they are given."""

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "scripts"))

from gpus.report import table  # noqa: E402

TIME, READ = "gpu__time_duration.sum", "dram__bytes_read.sum"
PROBES = ("ReadKernel", "FillKernel")  # of the ceilings
# The last of a router; norm and router in one; latent rows, with the absorbed queries in one.
ROUTERS = ("ChooseKernel", "SumAndChooseKernel", "ClusterKernel")
NORM_AND_ROUTER = "ClusterKernel"
TURNS = ("MlaInputKernel", "MlaInputVectorKernel", "AbsorbKernel")
DECODE_ATTENTION = ("ClusterDecodeKernel", "MmaDecodeKernel", "WgmmaDecodeKernel", "GeneralDecodeKernel")


def profile(command, ncu):
    """Rows of (kernel, seconds, bytes read) in the order of their launches."""
    print("+", " ".join(command), file=sys.stderr, flush=True)
    lines, begin, last = [], time.monotonic(), time.monotonic()
    with subprocess.Popen([ncu, "--csv", "--page", "raw", "--print-units", "base",
                           "--clock-control", "none", "--cache-control", "none",
                           "--kernel-name", f"regex:^(?!{'|'.join(PROBES)})",
                           "--metrics", f"{TIME},{READ}", *command],
                          stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout:
            lines.append(line)
            if time.monotonic() - last > 2:
                last = time.monotonic()
                print(f"{last - begin:.0f} s", file=sys.stderr, flush=True)
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if running.returncode != 0 or start is None:
        sys.exit(f"measure_stages: ncu ended with {running.returncode}: {''.join(lines[-20:])}")
    found = []  # (name, seconds, bytes)
    for row in csv.DictReader(lines[start:]):
        if row["ID"].isdigit():
            seconds = float(row[TIME].replace(",", "")) * 1e-9
            found.append((base_name(row["Kernel Name"]), seconds, float(row[READ].replace(",", ""))))
    return found


def base_name(kernel):
    """cuda::FewKernel from void hadal::cuda::FewKernel<...>(...)."""
    for unnamed in ("(anonymous namespace)::", "<unnamed>::"):
        kernel = kernel.replace(unnamed, "")
    return re.split(r"[<(]", kernel, maxsplit=1)[0].split("::")[-1].split()[-1]


def steps(kernels):
    """The kernels of every step; each begins with its embedding. The same kernel gathers the rows of a
    prompt's logits, after all layers."""
    parts = []
    for kernel in kernels:
        if kernel[0] == "EmbedKernel":
            parts.append([])
        if parts:
            parts[-1].append(kernel)
    found = []
    for part in parts:
        if any(name in TURNS for name, _, _ in part):
            found.append(part)
        elif found:
            found[-1] += part
    return found


def is_decode(step):
    return any(name in DECODE_ATTENTION for name, _, _ in step)


def last_decodes(all_steps):
    """The last decode step of each batch: prompts that fill the cache lie between batches."""
    return [step for step, following in zip(all_steps, all_steps[1:] + [None])
            if is_decode(step) and (following is None or not is_decode(following))]


def longest_prompt(all_steps):
    return max((step for step in all_steps if not is_decode(step)), default=[],
               key=lambda step: sum(seconds for _, seconds, _ in step))


def layers(step):
    """The kernels of every layer of experts: from the norm before its attention to that of the next."""
    routers = [i for i, (name, _, _) in enumerate(step) if name in ROUTERS]
    norms = [i for i, (name, _, _) in enumerate(step) if name.startswith("Norm")]
    starts = [next(i for i in norms if i > router) for router in routers]
    within = starts[:-1]  # what follows the last layer is no layer's
    return [step[begin:end] for begin, end in zip(within, within[1:])]


class Stages:
    """Names and operations of a layer's kernels, by where they stand between the known ones."""

    def __init__(self, config, tokens, context, decode, layout=(1, 1)):
        tensor, _ = layout
        c, heads = config, config["n_heads"] // tensor
        nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        latent, dim = c["kv_lora_rank"], c["dim"]
        q_rank = c["q_lora_rank"]
        into = dim * ((q_rank or heads * (nope + rope)) + latent + rope) + q_rank * heads * (nope + rope)
        self.decode = decode
        self.absent = {"keys and values up"} if decode else {"absorbed queries", "values up"}
        pairs = tokens * context if decode else tokens * (context + 1) / 2
        # Experts are spread over all ranks and get the tokens of all groups.
        chosen = (c["n_activated_experts"] + c["n_shared_experts"]) / tensor
        attend = heads * (2 * latent + rope if decode else nope + rope + value)
        self.flops = {"queries, latent": 2 * tokens * into,
                      "absorbed queries": 2 * tokens * heads * nope * latent,
                      "keys and values up": 2 * tokens * heads * (nope + value) * latent,
                      "attention": 2 * pairs * attend,
                      "values up": 2 * tokens * heads * value * latent,
                      "output": 2 * tokens * heads * value * dim,
                      "router": 2 * tokens * dim * c["n_routed_experts"],
                      "experts": 2 * tokens * chosen * 3 * dim * c["moe_inter_dim"]}

    def of_layer(self):
        return sum(flops for name, flops in self.flops.items() if name not in self.absent)

    def name(self, layer, at):
        """Of the kernel at that place."""
        names = [name for name, _, _ in layer]
        find = lambda *parts: next((i for i, n in enumerate(names) if any(p in n for p in parts)), None)
        turn = find(*TURNS)
        attention = find("DecodeKernel", "PrefillKernel")
        router = next(i for i, n in enumerate(names) if n in ROUTERS)
        second_norm = next((i for i, n in enumerate(names) if i > attention and n.startswith("Norm")), router)
        if at > router:
            return "experts"
        if names[at] == NORM_AND_ROUTER:
            return "norm, router"
        if at > second_norm:
            return "router"
        if names[at].startswith("Norm"):
            return "norm"
        if at < turn:
            return "queries, latent"
        if names[at] == "AbsorbKernel":
            return "rope, cache, absorbed queries"
        if at == turn:
            return "rope, cache"
        if at < attention:
            return "absorbed queries" if self.decode else "keys and values up"
        if at == attention or "Merge" in names[at]:
            return "attention"
        first = next(i for i in range(attention + 1, second_norm) if "Merge" not in names[i])
        return "values up" if self.decode and at == first else "output"


def summarise(step, stages, read, products):
    """One row per stage, the mean over the layers; a last row for their sum."""
    all_layers = layers(step)
    totals = {}
    for layer in all_layers:
        for at, (kernel, seconds, read_bytes) in enumerate(layer):
            row = totals.setdefault(stages.name(layer, at), [set(), 0.0, 0.0])
            row[0].add(kernel)
            row[1] += seconds / len(all_layers)
            row[2] += read_bytes / len(all_layers)
    rows = [stage_row(name, *row, stages.flops.get(name), read, products)
            for name, row in totals.items()]
    rows.append(stage_row("a layer", set(), sum(r[1] for r in totals.values()),
                          sum(r[2] for r in totals.values()), stages.of_layer(), read, products))
    return rows


def stage_row(name, kernels, seconds, read_bytes, flops, read, products):
    row = {"stage": name, "us": seconds * 1e6, "MB read": read_bytes / 1e6,
           "% of read": 100 * read_bytes / seconds / (read * 1e9) if read else None,
           "GFLOP": flops / 1e9 if flops else None,
           "% of products": 100 * flops / seconds / (products * 1e12) if flops and products else None,
           "kernels": ", ".join(sorted(kernels))}
    return row


def layout(text):
    """(T, D) of T,D."""
    tensor, data = map(int, text.split(","))
    return tensor, data


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="folder with a config.json")
    parser.add_argument("--bench", default=os.path.join(ROOT, "build/release/bin/hadal-model-bench"))
    parser.add_argument("--ncu", default="ncu")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8, 64, 256], help="decode batches")
    parser.add_argument("--context", type=int, default=512, help="tokens before decoding")
    parser.add_argument("--layers", type=int, default=5, help="that are run, at least 4: the first and the last have other neighbours")
    parser.add_argument("--prompt", type=int, nargs="*", default=[2048], help="prompt lengths")
    parser.add_argument("--simulate-layout", type=layout, default=(1, 1), metavar="T,D",
                        help="the shard of one rank of so many, alone on the card")
    parser.add_argument("--read", type=float, help="GB/s that the card reads at best")
    parser.add_argument("--products", type=float, help="TFLOP/s that it multiplies at best")
    parser.add_argument("--out", help="file for JSON lines")
    args = parser.parse_args()
    if args.layers < 4:
        parser.error("--layers: at least 4")
    for flag, program in (("--ncu", args.ncu), ("--bench", args.bench)):
        if shutil.which(program) is None:
            sys.exit(f"measure_stages: {flag} {program}: there is no such program")
    if not os.path.isfile(os.path.join(args.model, "config.json")):
        sys.exit(f"measure_stages: --model {args.model} holds no config.json")
    with open(os.path.join(args.model, "config.json")) as file:
        config = json.load(file)
    config["n_layers"] = min(config["n_layers"], args.layers)
    config["n_dense_layers"] = min(config["n_dense_layers"], 1)
    with tempfile.TemporaryDirectory() as model:
        with open(os.path.join(model, "config.json"), "w") as file:
            json.dump(config, file)
        runs = profile_steps(args, config, model)
    for name, step, stages in runs:
        rows = summarise(step, stages, args.read, args.products)
        print(f"\n{name}\n{table(rows)}", flush=True)
        if args.out:
            with open(args.out, "a") as file:
                for row in rows:
                    file.write(json.dumps({"step": name, **row}) + "\n")


def profile_steps(args, config, model):
    """(name, kernels, Stages) of every step that is asked for."""
    bench = [args.bench, "--device", "cuda", "--dummy", "--model", model, "--repeats", "1", "--steps", "1"]
    if args.simulate_layout != (1, 1):
        bench += ["--simulate-layout", "{},{}".format(*args.simulate_layout)]
    stages = lambda tokens, context, decode: Stages(config, tokens, context, decode, args.simulate_layout)
    runs = []
    if args.batch:
        found = steps(profile(bench + ["--prompt", "2048", "--prompt-batch", "4", "--context",
                                       str(args.context), "--batch", *map(str, args.batch)], args.ncu))
        for batch, step in zip(args.batch, last_decodes(found)):
            runs.append((f"decode, {batch}", step, stages(batch, args.context, True)))
    for prompt in args.prompt:
        found = steps(profile(bench + ["--prompt", str(prompt), "--context", "64", "--batch", "1"], args.ncu))
        runs.append((f"prompt of {prompt}", longest_prompt(found), stages(prompt, prompt, False)))
    return runs


if __name__ == "__main__":
    main()
