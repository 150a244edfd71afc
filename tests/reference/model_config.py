"""Shape of a model, read from a Hugging Face config.json."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Yarn:
    factor: float
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float
    original_length: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    vocab: int
    dim: int
    layers: int
    dense_layers: int
    heads: int
    experts: int
    shared_experts: int
    top_k: int
    groups: int
    limited_groups: int
    score: str  # softmax | sigmoid
    topk_method: str  # greedy | group_limited_greedy | noaux_tc
    norm_topk_prob: bool
    route_scale: float
    q_rank: int  # 0: plain q projection
    kv_rank: int
    nope: int
    rope: int
    v: int
    rope_theta: float
    yarn: Yarn | None
    eps: float
    latent_eps: float = 1e-6  # q_a_layernorm and kv_a_layernorm ignore rms_norm_eps

    @staticmethod
    def from_hugging_face(hf):
        scaling = hf.get("rope_scaling")
        yarn = None
        if scaling:
            if scaling["type"] != "yarn" or scaling["mscale"] != scaling["mscale_all_dim"]:
                raise ValueError(f"rope_scaling not covered by the reference: {scaling}")
            yarn = Yarn(scaling["factor"], scaling["beta_fast"], scaling["beta_slow"],
                        scaling["mscale"], scaling["mscale_all_dim"],
                        scaling["original_max_position_embeddings"])
        return ModelConfig(
            vocab=hf["vocab_size"], dim=hf["hidden_size"], layers=hf["num_hidden_layers"],
            dense_layers=hf["first_k_dense_replace"], heads=hf["num_attention_heads"],
            experts=hf["n_routed_experts"], shared_experts=hf["n_shared_experts"] or 0,
            top_k=hf["num_experts_per_tok"], groups=hf["n_group"], limited_groups=hf["topk_group"],
            score=hf["scoring_func"], topk_method=hf["topk_method"],
            norm_topk_prob=hf["norm_topk_prob"], route_scale=hf["routed_scaling_factor"],
            q_rank=hf["q_lora_rank"] or 0, kv_rank=hf["kv_lora_rank"], nope=hf["qk_nope_head_dim"],
            rope=hf["qk_rope_head_dim"], v=hf["v_head_dim"], rope_theta=hf["rope_theta"],
            yarn=yarn, eps=hf["rms_norm_eps"])

    def softmax_scale(self):
        scale = (self.nope + self.rope) ** -0.5
        if self.yarn:
            scale *= (0.1 * self.yarn.mscale_all_dim * math.log(self.yarn.factor) + 1) ** 2
        return scale

    def rope_frequencies(self):
        """theta_i, i in [0, rope / 2), float64."""
        i = np.arange(self.rope // 2)
        theta = self.rope_theta ** (-2 * i / self.rope)
        if not self.yarn:
            return theta

        def correction(rotations):
            turns = self.yarn.original_length / (2 * math.pi * rotations)
            return self.rope * math.log(turns) / (2 * math.log(self.rope_theta))

        low = max(math.floor(correction(self.yarn.beta_fast)), 0)
        high = min(math.ceil(correction(self.yarn.beta_slow)), self.rope - 1)
        span = (high - low) or 0.001
        ramp = np.clip((i - low) / span, 0, 1)
        return theta / self.yarn.factor * ramp + theta * (1 - ramp)
