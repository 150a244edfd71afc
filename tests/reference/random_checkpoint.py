"""Random checkpoints, bit for bit the same for a seed on every machine.

Values are built from the raw PCG64 stream by integer sums, so neither the numpy version nor the C
library's logarithm matters.
"""

import os
import zlib

import numpy as np

from reference import number_formats, safetensors_file
from reference.safetensors_file import Tensor


def fresh_seed():
    """HADAL_TEST_SEED when set, otherwise a new seed."""
    fixed = os.environ.get("HADAL_TEST_SEED")
    return int(fixed) if fixed else int(np.random.SeedSequence().entropy % 2**32)


class Random:
    def __init__(self, seed, name):
        self._raw = np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))

    def normal(self, shape, std=1.0, mean=0.0):
        """Nearly normal float32: the sum of four 16-bit integers a value."""
        count = int(np.prod(shape, dtype=np.int64))
        raw = self._raw.random_raw(count).astype("<u8").view("<u2").reshape(count, 4)
        centred = raw.sum(axis=1, dtype=np.int64) - 2 * 65535
        unit = np.sqrt(4 * (65536.0**2 - 1) / 12)
        return (centred * (std / unit) + mean).astype(np.float32).reshape(shape)

    def integers(self, below, count):
        return (self._raw.random_raw(count) % np.uint64(below)).astype(np.int64)


def tensor_values(hf, random, small_norms=False):
    """name -> float32 values, in the order of a released checkpoint.

    small_norms: embeddings and latents so small that the epsilon of each kind of norm shows.
    """
    embed_std, latent_gain = (0.01, 0.006) if small_norms else (1.0, 1.0)
    table = (hf["vocab_size"], hf["hidden_size"])
    tensors = {"model.embed_tokens.weight": random.normal(table, embed_std)}
    layers = hf["num_hidden_layers"]
    for layer in range(layers + hf.get("num_nextn_predict_layers", 0)):
        prefix = f"model.layers.{layer}."
        if layer >= layers:
            tensors |= _mtp_tensors(hf, random, prefix)
        tensors |= _attention_tensors(hf, random, prefix, latent_gain)
        tensors |= _feed_forward_tensors(hf, random, prefix + "mlp.", layer)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[prefix + name + ".weight"] = _norm(random, hf["hidden_size"])
    tensors["model.norm.weight"] = _norm(random, hf["hidden_size"])
    tensors["lm_head.weight"] = _matrix(random, hf["vocab_size"], hf["hidden_size"], 1.7)
    return tensors


def _norm(random, size):
    return random.normal((size,), 0.2, 1.0)


def _matrix(random, rows, cols, gain=1.0):
    return random.normal((rows, cols), gain / np.sqrt(cols))


def _attention_tensors(hf, random, prefix, latent_gain):
    prefix += "self_attn."
    dim, heads, kv_rank = hf["hidden_size"], hf["num_attention_heads"], hf["kv_lora_rank"]
    q_rows = heads * (hf["qk_nope_head_dim"] + hf["qk_rope_head_dim"])
    tensors = {}
    if hf["q_lora_rank"]:
        tensors["q_a_proj"] = _matrix(random, hf["q_lora_rank"], dim)
        tensors["q_a_layernorm"] = _norm(random, hf["q_lora_rank"])
        tensors["q_b_proj"] = _matrix(random, q_rows, hf["q_lora_rank"], 1.3)
    else:
        tensors["q_proj"] = _matrix(random, q_rows, dim, 1.3)
    kv_a = _matrix(random, kv_rank + hf["qk_rope_head_dim"], dim)
    kv_a[:kv_rank] *= np.float32(latent_gain)
    tensors["kv_a_proj_with_mqa"] = kv_a
    tensors["kv_a_layernorm"] = _norm(random, kv_rank)
    tensors["kv_b_proj"] = _matrix(random, heads * (hf["qk_nope_head_dim"] + hf["v_head_dim"]),
                                   kv_rank)
    tensors["o_proj"] = _matrix(random, dim, heads * hf["v_head_dim"])
    return {prefix + name + ".weight": value for name, value in tensors.items()}


def _mlp_tensors(hf, random, prefix, width):
    dim = hf["hidden_size"]
    return {prefix + "gate_proj.weight": _matrix(random, width, dim),
            prefix + "up_proj.weight": _matrix(random, width, dim),
            prefix + "down_proj.weight": _matrix(random, dim, width)}


def _feed_forward_tensors(hf, random, prefix, layer):
    if layer < hf["first_k_dense_replace"]:
        return _mlp_tensors(hf, random, prefix, hf["intermediate_size"])
    width, experts = hf["moe_intermediate_size"], hf["n_routed_experts"]
    tensors = {prefix + "gate.weight": _matrix(random, experts, hf["hidden_size"])}
    if hf["topk_method"] == "noaux_tc":
        # Centred below -1/2: with many biased scores negative, an excluded group that scored 0
        # instead of -inf would win.
        tensors[prefix + "gate.e_score_correction_bias"] = random.normal((experts,), 0.3, -0.5)
    for expert in range(experts):
        tensors |= _mlp_tensors(hf, random, f"{prefix}experts.{expert}.", width)
    shared = hf["n_shared_experts"] * width
    return tensors | _mlp_tensors(hf, random, prefix + "shared_experts.", shared)


def _mtp_tensors(hf, random, prefix):
    """What a multi-token-prediction layer adds to an ordinary one; servers skip all of it."""
    dim = hf["hidden_size"]
    return {prefix + "embed_tokens.weight": random.normal((hf["vocab_size"], dim)),
            prefix + "enorm.weight": _norm(random, dim),
            prefix + "hnorm.weight": _norm(random, dim),
            prefix + "eh_proj.weight": _matrix(random, dim, 2 * dim),
            prefix + "shared_head.norm.weight": _norm(random, dim),
            prefix + "shared_head.head.weight": _matrix(random, hf["vocab_size"], dim)}


def _is_fp8(name):
    """Which tensors an FP8 release quantises: every linear layer but the router and the head."""
    kept = ("embed_tokens", "lm_head", "shared_head.head", "eh_proj", "mlp.gate.")
    return "_proj" in name and not any(part in name for part in kept)


def store(hf, values):
    """name -> Tensor as the checkpoint stores it, scales right after their weight."""
    quantisation = hf.get("quantization_config")
    stored = {}
    for name, value in values.items():
        if name.endswith("e_score_correction_bias") or hf["torch_dtype"] == "float32":
            stored[name] = Tensor("F32", value)
        elif quantisation and _is_fp8(name):
            power_of_two = quantisation.get("scale_fmt") == "ue8m0"
            bits, scale = number_formats.quantise_fp8(value, power_of_two=power_of_two)
            stored[name] = Tensor("F8_E4M3", bits)
            stored[name + "_scale_inv"] = Tensor("F32", scale)
        else:
            stored[name] = Tensor("BF16", number_formats.bf16_bits(value))
    return stored


def write(directory, hf, generation, tensors, shard_count):
    """Consecutive tensors a shard; with several, some FP8 scales move to the shard after."""
    per_shard = -(-len(tensors) // shard_count)
    shards = [{} for _ in range(shard_count)]
    for i, (name, tensor) in enumerate(tensors.items()):
        shard = i // per_shard
        if name.endswith("_scale_inv") and i % 3 == 0:
            shard = (shard + 1) % shard_count
        shards[shard][name] = tensor
    safetensors_file.write_checkpoint(directory, shards)
    safetensors_file.write_json(directory / "config.json", hf)
    safetensors_file.write_json(directory / "generation_config.json", generation)
