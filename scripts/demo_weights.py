"""The demo model's weights: a llama-style model written as a DeepSeek-V3 one.

The source has 9 query heads in 3 groups that share a KV head; head h uses KV head h // 3. Its norm
weight before attention is folded into what reads the normed state:
- Latent: kv_a_proj is the identity and kv_a_layernorm the source's norm weight, so the latent is
  what Wk and Wv read in the source. kv_b_proj holds Wv; its key rows are 0.
- Rotary part, 192 wide: slot j turns with base^(-2j/192), so slot 3i turns as the source's pair i.
  KV head g lives in the slots 3i + g; for g = 1 and 2 these turn 11 % and 21 % slower than trained,
  which is the only approximation. The query undoes the wider head's softmax scale.
- Feed-forward: the first 512 hidden neurons are the 4 shared experts, the other 1024 are 8 slices
  of 128. Experts 2k and 2k + 1 both hold slice k and their router rows are r_k and -r_k, tiny:
  every token takes one copy of every slice, each with weight 1/8 x 8; which copy depends on the
  token.
"""

import gguf
import numpy as np

from reference import number_formats

VERSION = 2

_DIM, _LAYERS, _VOCAB, _FFN = 576, 30, 49152, 1536
_SOURCE_HEADS, _HEADS, _KV_HEADS, _HEAD = 9, 12, 3, 64
_NOPE, _ROPE = 64, 192
_EXPERTS, _SLICES, _WIDTH, _SHARED = 16, 8, 128, 4
_BLOCK = 128
# Tried per FP8 block: the grid of e4m3 repeats with every factor of 2.
_STRETCHES = (1.0, 1.15, 1.3, 1.5, 1.75)


def hugging_face_config(fp8):
    """(config.json, generation_config.json)."""
    config = {
        "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False,
        "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "ep_size": 1,
        "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": _DIM,
        "initializer_range": 0.02, "intermediate_size": _FFN, "kv_lora_rank": _DIM,
        "max_position_embeddings": 8192, "model_type": "deepseek_v3",
        "moe_intermediate_size": _WIDTH, "moe_layer_freq": 1, "n_group": 1,
        "n_routed_experts": _EXPERTS, "n_shared_experts": _SHARED, "norm_topk_prob": True,
        "num_attention_heads": _HEADS, "num_experts_per_tok": _SLICES,
        "num_hidden_layers": _LAYERS, "num_key_value_heads": _HEADS,
        "num_nextn_predict_layers": 0, "q_lora_rank": None, "qk_nope_head_dim": _NOPE,
        "qk_rope_head_dim": _ROPE, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "rope_theta": 100000, "routed_scaling_factor": float(_SLICES), "scoring_func": "sigmoid",
        "tie_word_embeddings": False, "topk_group": 1, "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16", "use_cache": True, "v_head_dim": _HEAD, "vocab_size": _VOCAB,
    }
    if fp8:
        config["quantization_config"] = {
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
            "weight_block_size": [_BLOCK, _BLOCK]}
    generation = {"bos_token_id": 1, "do_sample": True, "eos_token_id": 2, "temperature": 0.2,
                  "top_p": 0.9}
    return config, generation


class Source:
    """float32 tensors of the GGUF, matrices as [out, in]."""

    def __init__(self, reader):
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def __call__(self, name):
        tensor = self._tensors[name + ".weight"]
        shape = [int(size) for size in reversed(tensor.shape)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        return np.asarray(values, np.float32).reshape(shape)


def _slots(group):
    """Rows of the rotary part that hold the 64 rows of a KV head, in the source's order."""
    pairs = 3 * np.arange(_HEAD // 2) + group
    return np.stack([2 * pairs, 2 * pairs + 1], axis=1).reshape(-1)


def _attention(source, block):
    """Attention matrices of one layer by their last name."""
    norm = source(block + "attn_norm")
    wq = source(block + "attn_q").reshape(_SOURCE_HEADS, _HEAD, _DIM) * norm
    wk = source(block + "attn_k").reshape(_KV_HEADS, _HEAD, _DIM)
    wv = source(block + "attn_v").reshape(_KV_HEADS, _HEAD, _DIM)
    rescale = np.float32(np.sqrt((_NOPE + _ROPE) / _HEAD))
    q = np.zeros((_HEADS, _NOPE + _ROPE, _DIM), np.float32)
    kv_a = np.zeros((_DIM + _ROPE, _DIM), np.float32)
    kv_a[:_DIM] = np.eye(_DIM, dtype=np.float32)
    kv_b = np.zeros((_HEADS, _NOPE + _HEAD, _DIM), np.float32)
    for group in range(_KV_HEADS):
        kv_a[_DIM + _slots(group)] = wk[group] * norm
    for head in range(_SOURCE_HEADS):
        group = head // (_SOURCE_HEADS // _KV_HEADS)
        q[head, _NOPE + _slots(group)] = wq[head] * rescale
        kv_b[head, _NOPE:] = wv[group]
    o = np.zeros((_DIM, _HEADS * _HEAD), np.float32)
    o[:, :_SOURCE_HEADS * _HEAD] = source(block + "attn_output")
    return {"q_proj": q.reshape(-1, _DIM), "kv_a_proj_with_mqa": kv_a,
            "kv_a_layernorm": norm, "kv_b_proj": kv_b.reshape(-1, _DIM), "o_proj": o}


def _mlp(prefix, gate, up, down):
    return {prefix + "gate_proj": gate, prefix + "up_proj": up, prefix + "down_proj": down}


def _router(layer):
    """Rows r_0, -r_0, r_1, -r_1, ...: sigmoid scores of a pair lie on either side of one half."""
    random = np.random.Generator(np.random.PCG64([1, layer]))
    rows = random.standard_normal((_SLICES, _DIM)) * (1e-3 / np.sqrt(_DIM))
    return np.stack([rows, -rows], axis=1).reshape(_EXPERTS, _DIM).astype(np.float32)


def _feed_forward(source, block, layer):
    gate, up, down = (source(block + name) for name in ("ffn_gate", "ffn_up", "ffn_down"))
    if layer == 0:
        return _mlp("mlp.", gate, up, down)
    tensors = {"mlp.gate": _router(layer),
               "mlp.gate.e_score_correction_bias": np.zeros(_EXPERTS, np.float32)}
    shared = _SHARED * _WIDTH
    for k in range(_SLICES):
        rows = slice(shared + k * _WIDTH, shared + (k + 1) * _WIDTH)
        matrices = gate[rows], up[rows], down[:, rows]
        tensors |= _mlp(f"mlp.experts.{2 * k}.", *matrices)
        tensors |= _mlp(f"mlp.experts.{2 * k + 1}.", *matrices)
    return tensors | _mlp("mlp.shared_experts.", gate[:shared], up[:shared], down[:, :shared])


def _layer(source, layer):
    """name within the layer, without .weight -> float32 values."""
    block = f"blk.{layer}."
    tensors = {"input_layernorm": np.ones(_DIM, np.float32)}
    tensors |= {"self_attn." + name: value for name, value in _attention(source, block).items()}
    tensors["post_attention_layernorm"] = source(block + "ffn_norm")
    return tensors | _feed_forward(source, block, layer)


class Producer:
    """Stored tensors of the checkpoint, a layer at a time. layout: name -> (dtype, shape)."""

    def __init__(self, source, fp8):
        self._source, self._fp8 = source, fp8
        self._ready = {}
        self.layout = self._plan()

    def __call__(self, name):
        if name not in self._ready:
            self._ready = self._stored(self._group(name))
        return self._ready.pop(name)

    @staticmethod
    def _group(name):
        parts = name.split(".")
        return int(parts[2]) if parts[1] == "layers" else name.removesuffix(".weight")

    def _values(self, group):
        """group: a layer, or a tensor outside of the layers."""
        if isinstance(group, int):
            return {f"model.layers.{group}.{name}": value
                    for name, value in _layer(self._source, group).items()}
        table = "output_norm" if group == "model.norm" else "token_embd"
        return {group: self._source(table)}

    def _stored(self, group):
        stored, quantised = {}, {}
        values = self._values(group)
        for name, value in values.items():
            if name.endswith("bias"):
                stored[name] = value
            elif self._fp8 and "_proj" in name:
                key = id(value)  # Two experts share each slice.
                if key not in quantised:
                    quantised[key] = number_formats.quantise_fp8(value, stretches=_STRETCHES)
                bits, scale = quantised[key]
                stored |= {name + ".weight": bits, name + ".weight_scale_inv": scale}
            else:
                stored[name + ".weight"] = number_formats.bf16_bits(value)
        return stored

    def _plan(self):
        """Layers 1 and up have the same shapes, so two layers tell them all."""
        dtypes = {np.dtype(np.uint8): "F8_E4M3", np.dtype(np.uint16): "BF16",
                  np.dtype(np.float32): "F32"}
        layers = [{name.split(".", 3)[3]: (dtypes[value.dtype], value.shape)
                   for name, value in self._stored(layer).items()} for layer in (0, 1)]
        table = ("BF16", (_VOCAB, _DIM))
        layout = {"model.embed_tokens.weight": table}
        for layer in range(_LAYERS):
            for name, entry in layers[min(layer, 1)].items():
                layout[f"model.layers.{layer}.{name}"] = entry
        return layout | {"model.norm.weight": ("BF16", (_DIM,)), "lm_head.weight": table}
