"""Bytes and operations of one step of a model, counted from its configuration.

Field names are those of configs/*.json. What is counted is what every step has to read: weights that
its tokens touch, and the latents of its sequences; activations stay in caches."""


class StepCost:
    def __init__(self, config, tensor_parallel=1, data_parallel=1):
        self.c = config
        self.tensor, self.world = tensor_parallel, tensor_parallel * data_parallel
        self.element = {"fp8": 1 + 4 / config.get("scale_block", 128) ** 2}.get(config["dtype"], 2)

    def _attention(self):
        """Elements of one layer's projections on one rank."""
        c, heads = self.c, self.c["n_heads"] / self.tensor
        latent, q_in = c["kv_lora_rank"], c["q_lora_rank"] or c["dim"]
        query = heads * (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]) * q_in
        down = (c["q_lora_rank"] + latent + c["qk_rope_head_dim"]) * c["dim"]
        up = heads * (c["qk_nope_head_dim"] + c["v_head_dim"]) * latent
        return query + down + up + c["dim"] * heads * c["v_head_dim"]

    def _experts(self, tokens):
        """Elements of the experts of one layer that `tokens` evenly routed tokens touch, on one rank."""
        c = self.c
        experts, chosen = c["n_routed_experts"], c["n_activated_experts"]
        touched = experts * (1 - (1 - chosen / experts) ** tokens)
        one = 3 * c["dim"] * c["moe_inter_dim"]
        return one * (touched + c["n_shared_experts"]) / self.world

    def decode_bytes(self, sequences, context):
        """Of one token for each sequence, on one rank; sequences are those of all D groups."""
        c, groups = self.c, self.world / self.tensor
        moe_layers = c["n_layers"] - c["n_dense_layers"]
        weights = c["n_layers"] * self._attention() + moe_layers * self._experts(sequences)
        weights += c["n_dense_layers"] * 3 * c["dim"] * c["inter_dim"] / self.tensor
        latents = sequences / groups * context * (c["kv_lora_rank"] + c["qk_rope_head_dim"]) * 2
        router = moe_layers * c["n_routed_experts"] * c["dim"] * 4
        head = c["vocab_size"] / self.tensor * c["dim"] * 2
        return weights * self.element + c["n_layers"] * latents + router + head

    def prompt_flops(self, tokens):
        """Of one token of a prompt of `tokens`, on all ranks together, without the head."""
        c = self.c
        chosen = c["n_activated_experts"] + c["n_shared_experts"]
        moe = 3 * c["dim"] * c["moe_inter_dim"] * chosen + c["n_routed_experts"] * c["dim"]
        dense = 3 * c["dim"] * c["inter_dim"]
        products = c["n_layers"] * self._attention() * self.tensor
        products += c["n_dense_layers"] * dense + (c["n_layers"] - c["n_dense_layers"]) * moe
        pair = c["n_heads"] * (c["qk_nope_head_dim"] + c["qk_rope_head_dim"] + c["v_head_dim"])
        return 2 * (products + c["n_layers"] * pair * (tokens + 1) / 2)
