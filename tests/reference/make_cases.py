"""Writes random checkpoints of every model family with the results a correct engine gets on them.

  python -m reference.make_cases --out DIR [--seed N] [--shapes v2,v3] [--dtypes bf16]
"""

import argparse
import shutil
import time
from pathlib import Path

import numpy as np

from reference import random_checkpoint, safetensors_file
from reference.model import BF16, EXACT, FP8_INPUTS, Model
from reference.model_config import ModelConfig
from reference.safetensors_file import Tensor
from reference.shapes import SHAPES, WIDE_SHAPES, hugging_face_config

DTYPES = ("f32", "bf16", "fp8")
# Below, at and above one and two KV blocks of 64 tokens, and what no block divides.
_LENGTHS = (131, 2, 65, 197, 33, 129, 64, 128, 259, 17, 130, 66, 193, 99, 192, 127)
GREEDY_TOKENS = 8
F32_POSITIONS = 400
# F32 prompts keep this relative distance from a different choice of experts, so that an F32 engine,
# whose scores are off by about 1e-6, has the same experts to the last token.
_CLEAR_ROUTING = 1e-5


def make_checkpoint(shape, dtype, seed):
    """(config.json, generation_config.json, name -> Tensor) of one case."""
    hf, generation = hugging_face_config(shape, dtype)
    random = random_checkpoint.Random(seed, f"{shape}-{dtype}")
    values = random_checkpoint.tensor_values(hf, random, small_norms=shape == "moonlight")
    tensors = random_checkpoint.store(hf, values)
    if shape == "v2-lite":
        # Known junk of old checkpoints, to be ignored: so these are no frequencies at all.
        for layer in range(hf["num_hidden_layers"]):
            name = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
            tensors[name] = Tensor("F32", random.normal((hf["qk_rope_head_dim"] // 2,)))
    return hf, generation, tensors


class PromptSource:
    """Random prompts of one case, each of a new length and new tokens."""

    def __init__(self, hf, shape, dtype, seed):
        self._random = random_checkpoint.Random(seed, f"{shape}-{dtype}-prompts")
        self._vocab = hf["vocab_size"]

    def draw(self, positions):
        """Prompts that together have at least `positions` tokens to predict."""
        prompts, total = [], 0
        while total < positions:
            length = _LENGTHS[len(prompts) % len(_LENGTHS)]
            prompts.append(self.redraw(length))
            total += length - 1
        return prompts

    def redraw(self, length):
        return self._random.integers(self._vocab, length)


class Results:
    """What the reference computes for some prompts."""

    def __init__(self, model, prompts, greedy_tokens=GREEDY_TOKENS):
        sequences = [model.sequence(prompt) for prompt in prompts]
        hidden = model.forward(sequences)
        ends = np.cumsum([len(prompt) for prompt in prompts])[:-1]
        self.margin = np.array([m.min() for m in np.split(model.routing_margin, ends)])
        logprobs = np.split(model.logprobs(np.concatenate(hidden)), ends)
        # log p(token j + 1 | tokens ..j).
        self.logprobs = [rows[np.arange(len(prompt) - 1), prompt[1:]]
                         for rows, prompt in zip(logprobs, prompts)]
        if greedy_tokens:
            last = np.stack([rows[-1] for rows in logprobs])
            self._continue(model, sequences, last, greedy_tokens)

    def _continue(self, model, sequences, logprobs, count):
        """greedy, gap: [sequences, count], tokens and the lead of each over the second best."""
        tokens, gaps = [], []
        for step in range(count):
            ordered = np.sort(logprobs, axis=-1)
            tokens.append(logprobs.argmax(axis=-1))
            gaps.append(ordered[:, -1] - ordered[:, -2])
            if step + 1 < count:
                for sequence, token in zip(sequences, tokens[-1]):
                    sequence.tokens = np.array([token])
                logprobs = model.logprobs(np.concatenate(model.forward(sequences)))
                self.margin = np.minimum(self.margin, model.routing_margin)
        self.greedy, self.gap = np.stack(tokens, axis=1), np.stack(gaps, axis=1)


def _clear_results(model, source, positions):
    """(prompts, Results) without near ties in routing: prompts that have one are drawn again."""
    prompts = source.draw(positions)
    while True:
        results = Results(model, prompts)
        unclear = np.nonzero(results.margin < _CLEAR_ROUTING)[0]
        if not len(unclear):
            return prompts, results
        for i in unclear:
            prompts[i] = source.redraw(len(prompts[i]))


def expected_results(hf, tensors, source, dtype, positions):
    """The tensors of expected.safetensors."""
    config = ModelConfig.from_hugging_face(hf)
    exact = Model(config, tensors, EXACT)
    emulated = {}
    if dtype == "f32":
        prompts, results = _clear_results(exact, source, min(positions, F32_POSITIONS))
    else:
        prompts = source.draw(positions)
        results = Results(exact, prompts)
        precisions = {"emulated_logprobs": BF16}
        if dtype == "fp8":
            precisions["emulated_fp8_inputs_logprobs"] = FP8_INPUTS
        emulated = {name: Results(Model(config, tensors, precision), prompts, greedy_tokens=0)
                    for name, precision in precisions.items()}
    expected = {}
    for i, prompt in enumerate(prompts):
        key = f"prompt.{i}."
        expected[key + "tokens"] = Tensor("I32", prompt)
        expected[key + "logprobs"] = Tensor("F32", results.logprobs[i])
        for name, rounded in emulated.items():
            expected[key + name] = Tensor("F32", rounded.logprobs[i])
        expected[key + "greedy"] = Tensor("I32", results.greedy[i])
        expected[key + "greedy_gap"] = Tensor("F32", results.gap[i])
    return expected


def write_case(directory, shape, dtype, seed, positions):
    hf, generation, tensors = make_checkpoint(shape, dtype, seed)
    source = PromptSource(hf, shape, dtype, seed)
    expected = expected_results(hf, tensors, source, dtype, positions)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    case = list(SHAPES | WIDE_SHAPES).index(shape) + DTYPES.index(dtype)
    random_checkpoint.write(directory, hf, generation, tensors, shard_count=1 + case % 4)
    metadata = {"seed": str(seed), "shape": shape, "dtype": dtype}
    safetensors_file.write(directory / "expected.safetensors", expected, metadata)
    return expected


def _summary(expected):
    exact = _joined(expected, ".logprobs")
    line = f"{len(exact)} positions, mean log p {exact.mean():.3f}"
    if any(name.endswith(".emulated_logprobs") for name in expected):
        error = np.abs(_joined(expected, ".emulated_logprobs") - exact)
        line += (f", bf16 emulation off by {error.mean():.4f} in mean,"
                 f" {np.quantile(error, 0.99):.4f} at p99")
    return line


def _joined(expected, suffix):
    return np.concatenate([t.data for name, t in expected.items() if name.endswith(suffix)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, help="default: HADAL_TEST_SEED, or fresh; printed")
    parser.add_argument("--shapes", default=",".join(SHAPES | WIDE_SHAPES))
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--positions", type=int, default=2000,
                        help=f"per case at least; at most {F32_POSITIONS} in f32 (default 2000)")
    arguments = parser.parse_args()
    seed = arguments.seed
    if seed is None:
        seed = random_checkpoint.fresh_seed()
    print(f"HADAL_TEST_SEED={seed}", flush=True)
    for shape in arguments.shapes.split(","):
        for dtype in arguments.dtypes.split(","):
            if shape in WIDE_SHAPES and dtype == "f32":
                continue  # the fast kernels are not for F32
            start = time.monotonic()
            expected = write_case(arguments.out / f"{shape}-{dtype}", shape, dtype, seed,
                                  arguments.positions)
            print(f"{shape}-{dtype}: {_summary(expected)} ({time.monotonic() - start:.1f} s)",
                  flush=True)


if __name__ == "__main__":
    main()
