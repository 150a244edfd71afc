"""hadal-convert against a second computation of the layout, and what it refuses."""

import json
import re
import unittest

import numpy as np

from reference import safetensors_file
from reference.safetensors_file import Tensor
from reference.shapes import SHAPES
from tools.tool_case import (BAD_SOURCE, USAGE, ToolCase, read_file, write_model)

# HF component -> (name in the converted files, dimension that is split).
MAPPING = {
    "embed_tokens": ("embed", 0), "input_layernorm": ("attn_norm", None),
    "post_attention_layernorm": ("ffn_norm", None), "q_proj": ("wq", 0), "q_a_proj": ("wq_a", None),
    "q_a_layernorm": ("q_norm", None), "q_b_proj": ("wq_b", 0),
    "kv_a_proj_with_mqa": ("wkv_a", None), "kv_a_layernorm": ("kv_norm", None),
    "kv_b_proj": ("wkv_b", 0), "o_proj": ("wo", 1), "gate": ("gate", None), "gate_proj": ("w1", 0),
    "down_proj": ("w2", 1), "up_proj": ("w3", 0), "norm": ("norm", None), "lm_head": ("head", 0)}


def renamed(name):
    """(new name, split dimension), by the rules of DeepSeek's script."""
    name = name.removeprefix("model.")
    for old, new in (("self_attn", "attn"), ("mlp", "ffn"), ("weight_scale_inv", "scale"),
                     ("e_score_correction_bias", "bias")):
        name = name.replace(old, new)
    key = name.split(".")[-2]
    new_key, dimension = MAPPING[key]
    return name.replace(key, new_key), dimension


def used(name, hf):
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return not name.endswith("inv_freq") and not (
        layer and int(layer[1]) >= hf["num_hidden_layers"])


def exact_split(tensors, hf, ranks):
    """[rank] name -> (dtype, bits): DeepSeek's script, which wants every size to divide."""
    experts = hf["n_routed_experts"]
    files = [{} for _ in range(ranks)]
    for name, tensor in tensors.items():
        if not used(name, hf):
            continue
        new_name, dimension = renamed(name)
        routed = "experts" in new_name and "shared_experts" not in new_name
        for rank in range(ranks):
            bits = tensor.data
            if routed:
                if int(new_name.split(".")[-3]) // (experts // ranks) != rank:
                    continue
            elif dimension is not None:
                size = bits.shape[dimension]
                assert size % ranks == 0, name
                bits = np.take(bits, range(rank * size // ranks, (rank + 1) * size // ranks),
                               dimension)
            files[rank][new_name] = (tensor.dtype, bits)
    return files


def nearly_equal_split(tensors, hf, ranks, block=128):
    """The same for any size: piece i of n is [n i / M, n (i + 1) / M), scales are every block that
    the piece of their weight touches."""
    experts = hf["n_routed_experts"]
    files = [{} for _ in range(ranks)]
    for name, tensor in tensors.items():
        if not used(name, hf):
            continue
        new_name, dimension = renamed(name)
        routed = "experts" in new_name and "shared_experts" not in new_name
        is_scale = name.endswith("_scale_inv")
        whole = tensors[name.removesuffix("_scale_inv")].data.shape
        for rank in range(ranks):
            bits = tensor.data
            if routed:
                if int(new_name.split(".")[-3]) * ranks // experts != rank:
                    continue
            elif dimension is not None:
                size = whole[dimension]
                first, last = size * rank // ranks, size * (rank + 1) // ranks
                if is_scale:
                    first, last = first // block, -(-last // block)
                bits = bits[first:last] if dimension == 0 else bits[:, first:last]
            files[rank][new_name] = (tensor.dtype, bits)
    return files


def sixteen_heads(hf):
    return hf | {"num_attention_heads": 16, "num_key_value_heads": 16}


def released_proportions(hf):
    """Every size divides by 8 ranks, scale blocks included, as in the released models."""
    return sixteen_heads(hf) | {
        "vocab_size": 512, "hidden_size": 256, "intermediate_size": 1024,
        "moe_intermediate_size": 1024, "n_shared_experts": 1, "n_routed_experts": 8,
        "num_experts_per_tok": 2, "num_hidden_layers": 2, "first_k_dense_replace": 1, "n_group": 1,
        "topk_group": 1, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "bos_token_id": 0, "eos_token_id": 1}


class ConvertTest(ToolCase):
    def check_files(self, wanted):
        ranks = len(wanted)
        names = sorted(path.name for path in self.out.glob("*.safetensors"))
        self.assertEqual(names, sorted(f"model{i}-mp{ranks}.safetensors" for i in range(ranks)))
        for rank, tensors in enumerate(wanted):
            self.assert_tensors(read_file(self.out / f"model{rank}-mp{ranks}.safetensors"), tensors)

    def check_all_ranks(self, shape, dtype, shards, split, change, note):
        hf, tensors = write_model(self.source, shape, dtype, shards, change)
        for ranks in (1, 2, 4, 8):
            with self.subTest(shape=shape, dtype=dtype, ranks=ranks):
                self.out = self.root / f"mp{ranks}"
                _, notes = self.convert(hf["n_routed_experts"], ranks)
                self.check_files(split(tensors, hf, ranks))
                self.assertEqual("DeepSeek's own code would not" in notes, note and ranks > 1)
                self.convert(hf["n_routed_experts"], ranks, "--verify")

    def test_odd_sizes_of_all_shapes(self):
        for shape in SHAPES:
            for dtype, shards in (("bf16", 1), ("fp8", 3)):
                self.source = self.root / f"{shape}-{dtype}"
                self.check_all_ranks(shape, dtype, shards, nearly_equal_split, sixteen_heads, True)

    def test_released_proportions_are_cut_as_the_reference_cuts(self):
        # Sizes of FP8 cases are set after a shape is chosen, so a BF16 one is cast.
        for shape in ("v3", "moonlight"):
            self.source, bf16 = self.root / f"{shape}-fp8", self.root / f"{shape}-bf16"
            hf, _ = write_model(bf16, shape, "bf16", 2, released_proportions)
            self.run_tool("hadal-bf16-cast-fp8", source=bf16, out=self.source)
            tensors = {}
            for path in sorted(self.source.glob("*.safetensors")):
                tensors |= {name: Tensor(*value) for name, value in read_file(path).items()}
            self.assertTrue(any(t.dtype == "F8_E4M3" for t in tensors.values()))
            for ranks in (1, 2, 4, 8):
                self.out = self.root / f"{shape}-mp{ranks}"
                _, notes = self.convert(8, ranks)
                self.check_files(exact_split(tensors, hf, ranks))
                self.assertNotIn("DeepSeek's own code", notes)

    def test_config_and_tokenizer(self):
        hf, _ = write_model(self.source, "kimi-k2")
        self.convert(hf["n_routed_experts"], 2)
        config = self.read_json("config.json")
        for ours, theirs in (("dim", "hidden_size"), ("inter_dim", "intermediate_size"),
                             ("moe_inter_dim", "moe_intermediate_size"),
                             ("n_layers", "num_hidden_layers"), ("n_heads", "num_attention_heads"),
                             ("n_dense_layers", "first_k_dense_replace"),
                             ("n_routed_experts", "n_routed_experts"),
                             ("n_activated_experts", "num_experts_per_tok"),
                             ("n_expert_groups", "n_group"),
                             ("route_scale", "routed_scaling_factor"),
                             ("score_func", "scoring_func"), ("q_lora_rank", "q_lora_rank"),
                             ("vocab_size", "vocab_size"), ("rope_theta", "rope_theta"),
                             ("max_seq_len", "max_position_embeddings")):
            self.assertEqual(config[ours], hf[theirs], ours)
        self.assertEqual(config["rope_factor"], hf["rope_scaling"]["factor"])
        self.assertEqual(config["dtype"], "bf16")
        self.assertEqual(config["eos_ids"], [hf["eos_token_id"] + 1])  # generation_config.json's
        self.assertEqual(
            sorted(path.name for path in self.out.iterdir()),
            ["config.json", "generation_config.json", "model0-mp2.safetensors",
             "model1-mp2.safetensors", "tokenization_kimi.py", "tokenizer.json"])

    def test_mtp_layers_follow_from_the_config(self):
        # The layer after the last is multi-token prediction, whatever its number.
        hf, tensors = write_model(self.source, "v3")
        self.assertTrue(any(name.startswith("model.layers.4.") for name in tensors))
        _, notes = self.convert(hf["n_routed_experts"], 1)
        names = read_file(self.out / "model0-mp1.safetensors")
        self.assertFalse(any(name.startswith("layers.4.") for name in names))
        self.assertIn("tensors that inference does not use", notes)

    def test_a_tied_head_becomes_one_of_its_own(self):
        hf, tensors = write_model(self.source, "v3")
        path = self.source / "model.safetensors"
        safetensors_file.write(path, {n: t for n, t in tensors.items() if n != "lm_head.weight"})
        self.convert(hf["n_routed_experts"], 2, expect=BAD_SOURCE)
        (self.source / "config.json").write_text(json.dumps(hf | {"tie_word_embeddings": True}))
        self.convert(hf["n_routed_experts"], 2)
        tied = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
        self.check_files(nearly_equal_split(tied, hf, 2))

    def test_options_that_do_not_fit(self):
        hf, _ = write_model(self.source, "v2")  # 12 heads, 24 experts
        _, error = self.convert(25, 2, expect=USAGE)
        self.assertIn("--n-experts 25 does not match the 24 routed experts", error)
        _, error = self.convert(24, 5, expect=USAGE)
        self.assertIn("--n-experts 24 is not divisible by --model-parallel 5", error)
        _, error = self.convert(24, 8, expect=USAGE)
        self.assertIn("8 does not divide 12 heads", error)
        self.convert(24, 0, expect=USAGE)
        self.run_tool("hadal-convert", expect=USAGE)
        self.assertFalse(self.out.exists())

    def test_tensors_that_do_not_fit_are_all_listed(self):
        hf, tensors = write_model(self.source, "moonlight")
        changed = dict(tensors)
        del changed["model.norm.weight"], changed["model.layers.1.mlp.experts.3.up_proj.weight"]
        changed["model.layers.0.self_attn.k_proj.weight"] = Tensor("F32", np.zeros((2, 2)))
        safetensors_file.write(self.source / "model.safetensors", changed)
        _, error = self.convert(hf["n_routed_experts"], 2, expect=BAD_SOURCE)
        self.assertIn("missing: model.norm.weight", error)
        self.assertIn("missing: model.layers.1.mlp.experts.3.up_proj.weight", error)
        self.assertIn("extra: model.layers.0.self_attn.k_proj.weight", error)
        self.assertFalse(self.out.exists())

    def test_a_converted_directory_is_not_converted_again(self):
        hf, _ = write_model(self.source)
        self.convert(hf["n_routed_experts"], 2)
        _, error = self.convert(hf["n_routed_experts"], 2, expect=BAD_SOURCE, source=self.out,
                                out=self.root / "again")
        self.assertIn("converted already", error)

    def test_two_conversions_do_not_mix(self):
        hf, _ = write_model(self.source)
        self.convert(hf["n_routed_experts"], 2)
        _, error = self.convert(hf["n_routed_experts"], 4, expect=USAGE)
        self.assertIn("give an empty directory", error)


if __name__ == "__main__":
    unittest.main()
