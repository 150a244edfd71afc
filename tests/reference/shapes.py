"""config.json of tiny models with the settings and odd dimensions of each released family.

12 heads and experts in multiples of 4 load on 1, 2 and 4 ranks; no other dimension divides a tile.
WIDE_SHAPES instead have what the fast kernels of GPUs are made for.
"""

_COMMON = {
    "attention_bias": False, "attention_dropout": 0.0, "aux_loss_alpha": 0.001, "ep_size": 1,
    "hidden_act": "silu", "initializer_range": 0.02, "moe_layer_freq": 1, "pretraining_tp": 1,
    "num_attention_heads": 12, "num_key_value_heads": 12, "seq_aux": True,
    "tie_word_embeddings": False, "use_cache": True,
    "qk_nope_head_dim": 24, "qk_rope_head_dim": 16, "v_head_dim": 20,
}


def _yarn(factor, beta_fast, beta_slow, mscale):
    return {"type": "yarn", "factor": factor, "beta_fast": beta_fast, "beta_slow": beta_slow,
            "mscale": mscale, "mscale_all_dim": mscale, "original_max_position_embeddings": 4096}


def _auto_map(version):
    return {"AutoConfig": f"configuration_deepseek.Deepseek{version}Config",
            "AutoModel": f"modeling_deepseek.Deepseek{version}Model",
            "AutoModelForCausalLM": f"modeling_deepseek.Deepseek{version}ForCausalLM"}


_V2 = {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
       "auto_map": _auto_map("V2"), "transformers_version": "4.33.1",
       "bos_token_id": 500, "eos_token_id": 501, "scoring_func": "softmax",
       "norm_topk_prob": False, "rope_theta": 10000, "max_position_embeddings": 163840,
       "rms_norm_eps": 1e-06}
_V3 = {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
       "auto_map": _auto_map("V3"), "transformers_version": "4.33.1", "scoring_func": "sigmoid",
       "topk_method": "noaux_tc", "norm_topk_prob": True}

SHAPES = {
    "v2-lite": _COMMON | _V2 | {
        "vocab_size": 515, "hidden_size": 72, "intermediate_size": 130,
        "moe_intermediate_size": 67, "num_hidden_layers": 4, "first_k_dense_replace": 1,
        "q_lora_rank": None, "kv_lora_rank": 40, "n_routed_experts": 16, "n_shared_experts": 2,
        "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
        "routed_scaling_factor": 1.0, "rope_scaling": _yarn(40, 32, 1, 0.707)},
    "v2": _COMMON | _V2 | {
        "vocab_size": 1037, "hidden_size": 136, "intermediate_size": 130,
        "moe_intermediate_size": 50, "num_hidden_layers": 3, "first_k_dense_replace": 1,
        "q_lora_rank": 56, "kv_lora_rank": 40, "n_routed_experts": 24, "n_shared_experts": 2,
        "num_experts_per_tok": 6, "n_group": 8, "topk_group": 3,
        "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0,
        "rope_scaling": _yarn(40, 32, 1, 0.707)},
    "v3": _COMMON | _V3 | {
        "vocab_size": 515, "hidden_size": 136, "intermediate_size": 130,
        "moe_intermediate_size": 67, "num_hidden_layers": 4, "first_k_dense_replace": 2,
        "q_lora_rank": 56, "kv_lora_rank": 40, "n_routed_experts": 32, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5,
        "rope_theta": 10000, "rope_scaling": _yarn(40, 32, 1, 1.0), "rms_norm_eps": 1e-06,
        "max_position_embeddings": 163840, "num_nextn_predict_layers": 1,
        "bos_token_id": 0, "eos_token_id": 1},
    "moonlight": _COMMON | _V3 | {
        "vocab_size": 1037, "hidden_size": 72, "intermediate_size": 130,
        "moe_intermediate_size": 67, "num_hidden_layers": 3, "first_k_dense_replace": 1,
        "q_lora_rank": None, "kv_lora_rank": 40, "n_routed_experts": 8, "n_shared_experts": 2,
        "num_experts_per_tok": 3, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.446,
        "rope_theta": 50000.0, "rope_scaling": None, "rms_norm_eps": 1e-05,
        "max_position_embeddings": 8192, "num_nextn_predict_layers": 0,
        "bos_token_id": 1030, "eos_token_id": 1032},
    "kimi-k2": _COMMON | _V3 | {
        "model_type": "kimi_k2", "vocab_size": 515, "hidden_size": 136, "intermediate_size": 130,
        "moe_intermediate_size": 67, "num_hidden_layers": 3, "first_k_dense_replace": 1,
        "q_lora_rank": 56, "kv_lora_rank": 40, "n_routed_experts": 24, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827,
        "rope_theta": 50000.0, "rope_scaling": _yarn(32.0, 1.0, 1.0, 1.0), "rms_norm_eps": 1e-06,
        "max_position_embeddings": 131072, "num_nextn_predict_layers": 0,
        "bos_token_id": 508, "eos_token_id": 509},
}

# Heads and latents as released, everything else in blocks of 128 that 2 ranks split at whole blocks.
WIDE_SHAPES = {
    "v3-wide": SHAPES["v3"] | {
        "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 256,
        "num_hidden_layers": 2, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0,
        "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 256,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2},
}

# Several 128 x 128 scale blocks a matrix, the last of each row and column cut short.
_FP8_DIMENSIONS = {"hidden_size": 200, "intermediate_size": 330, "moe_intermediate_size": 150,
                   "kv_lora_rank": 136}
_TORCH_DTYPE = {"f32": "float32", "bf16": "bfloat16", "fp8": "bfloat16"}


def hugging_face_config(shape, dtype):
    """(config.json, generation_config.json) of one case."""
    config = (SHAPES | WIDE_SHAPES)[shape] | {"torch_dtype": _TORCH_DTYPE[dtype]}
    if dtype == "fp8":
        if shape in SHAPES:
            config |= _FP8_DIMENSIONS
            if config["q_lora_rank"]:
                config["q_lora_rank"] = 140
        config["quantization_config"] = {
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
            "weight_block_size": [128, 128]}
        if shape == "v3":
            config["quantization_config"]["scale_fmt"] = "ue8m0"
    generation = {"bos_token_id": config["bos_token_id"], "do_sample": True,
                  "eos_token_id": config["eos_token_id"], "temperature": 0.6, "top_p": 0.95}
    if shape == "kimi-k2":
        generation = {"eos_token_id": config["eos_token_id"] + 1, "max_length": 131072}
    return config, generation
