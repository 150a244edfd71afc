#!/usr/bin/env python3
"""Writes a random checkpoint with DeepSeek-V2-Lite's dimensions and a few layers, for benchmarks.

  scripts/python_env.sh scripts/make_bench_model.py [--layers 6] [--fp8] [--out DIR]

Weights are normal with deviation 0.02, norms are 1. There is no tokenizer: such a checkpoint serves
token ids.
"""

import argparse
import statistics
import sys
import zlib
from pathlib import Path

try:
    import numpy as np
except ImportError:
    sys.exit("numpy is missing; run scripts/python_env.sh scripts/make_bench_model.py")

import checkpoint_output
from reference import number_formats, safetensors_file

_STD = 0.02
_SHARD_BYTES = 2 * 10**9
_BLOCK = 128

_CONFIG = {
    "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "aux_loss_alpha": 0.001, "bos_token_id": 100000, "eos_token_id": 100001,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": _STD, "intermediate_size": 10944, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "model_type": "deepseek_v2", "moe_intermediate_size": 1408,
    "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2,
    "norm_topk_prob": False, "num_attention_heads": 16, "num_experts_per_tok": 6,
    "num_hidden_layers": 27, "num_key_value_heads": 16, "q_lora_rank": None,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707,
                     "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096,
                     "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 1.0, "scoring_func": "softmax",
    "tie_word_embeddings": False, "topk_group": 1, "topk_method": "greedy",
    "torch_dtype": "bfloat16", "use_cache": True, "v_head_dim": 128, "vocab_size": 102400,
}
_FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
        "weight_block_size": [_BLOCK, _BLOCK]}


def _mlp(prefix, width):
    dim = _CONFIG["hidden_size"]
    return {f"{prefix}gate_proj": (width, dim), f"{prefix}up_proj": (width, dim),
            f"{prefix}down_proj": (dim, width)}


def _layer(layer):
    """name without .weight -> shape."""
    c, prefix = _CONFIG, f"model.layers.{layer}."
    dim, heads = c["hidden_size"], c["num_attention_heads"]
    nope, rope, v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    shapes = {
        prefix + "input_layernorm": (dim,),
        prefix + "self_attn.q_proj": (heads * (nope + rope), dim),
        prefix + "self_attn.kv_a_proj_with_mqa": (c["kv_lora_rank"] + rope, dim),
        prefix + "self_attn.kv_a_layernorm": (c["kv_lora_rank"],),
        prefix + "self_attn.kv_b_proj": (heads * (nope + v), c["kv_lora_rank"]),
        prefix + "self_attn.o_proj": (dim, heads * v),
        prefix + "post_attention_layernorm": (dim,),
    }
    if layer < c["first_k_dense_replace"]:
        return shapes | _mlp(prefix + "mlp.", c["intermediate_size"])
    shapes[prefix + "mlp.gate"] = (c["n_routed_experts"], dim)
    for expert in range(c["n_routed_experts"]):
        shapes |= _mlp(f"{prefix}mlp.experts.{expert}.", c["moe_intermediate_size"])
    return shapes | _mlp(prefix + "mlp.shared_experts.",
                         c["n_shared_experts"] * c["moe_intermediate_size"])


def _layout(layers, fp8):
    """name -> (dtype, shape)."""
    table = (_CONFIG["vocab_size"], _CONFIG["hidden_size"])
    shapes = {"model.embed_tokens": table}
    for layer in range(layers):
        shapes |= _layer(layer)
    shapes |= {"model.norm": (_CONFIG["hidden_size"],), "lm_head": table}
    layout = {}
    for name, shape in shapes.items():
        quantised = fp8 and "_proj" in name
        layout[name + ".weight"] = ("F8_E4M3" if quantised else "BF16", shape)
        if quantised:
            blocks = tuple(-(-size // _BLOCK) for size in shape)
            layout[name + ".weight_scale_inv"] = ("F32", blocks)
    return layout


class _Source:
    """Random stored tensors: 16 random bits look up one of 65536 quantiles of the normal."""

    def __init__(self, layout):
        self._layout = layout
        normal = statistics.NormalDist(0, _STD)
        quantiles = [normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)]
        self._scale = np.float32(max(quantiles) / number_formats.FP8_MAX)
        self._bf16 = number_formats.bf16_bits(quantiles)
        self._fp8 = number_formats.fp8_bits(np.float32(quantiles) / self._scale)

    def __call__(self, name):
        dtype, shape = self._layout[name]
        if dtype == "F32":
            return np.full(shape, self._scale)
        if len(shape) == 1:
            return np.full(shape, number_formats.bf16_bits(1.0))
        table = self._fp8 if dtype == "F8_E4M3" else self._bf16
        count = shape[0] * shape[1]
        random = np.random.SFC64(zlib.crc32(name.encode()))
        bits = random.random_raw(-(-count // 4)).view(np.uint16)[:count]
        return table[bits].reshape(shape)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="default models/v2lite-<layers>layer[-fp8]")
    parser.add_argument("--layers", type=int, default=6, help="1 dense layer, the others MoE")
    parser.add_argument("--fp8", action="store_true", help="e4m3 with 128 x 128 scales")
    arguments = parser.parse_args()
    if arguments.layers < 1:
        parser.error("--layers must be at least 1")
    name = f"v2lite-{arguments.layers}layer" + ("-fp8" if arguments.fp8 else "")
    root = Path(__file__).resolve().parent.parent
    out = (arguments.out or root / "models" / name).absolute()
    stamp = {"made_by": "make_bench_model", "version": 1, "layers": arguments.layers,
             "fp8": arguments.fp8}
    if checkpoint_output.is_current(out, stamp):
        print(f"{out} is up to date")
        return
    layout = _layout(arguments.layers, arguments.fp8)
    config = _CONFIG | {"num_hidden_layers": arguments.layers}
    if arguments.fp8:
        config["quantization_config"] = _FP8
    try:
        with checkpoint_output.whole_directory(
                out, stamp, checkpoint_output.total_bytes(layout)) as directory:
            safetensors_file.write_json(directory / "config.json", config)
            checkpoint_output.write_shards(directory, layout, _Source(layout), _SHARD_BYTES, name)
    except checkpoint_output.OutputError as error:
        sys.exit(f"make_bench_model: {error}")
    print(f"{out}: {checkpoint_output.total_bytes(layout) / 1e9:.2f} GB of weights")


if __name__ == "__main__":
    checkpoint_output.run_interruptibly(main)
