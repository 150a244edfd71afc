"""Forward pass of the DeepSeek-V2/V3 family in numpy, many sequences at a time.

EXACT computes in float64 and rounds nothing, SINGLE in float32. BF16 computes in float32 and rounds
where a correct bf16 engine does: the output of every op, but not router, softmax and logits.
FP8_INPUTS also rounds what the FP8 products of a GPU read.
"""

import dataclasses
from typing import Callable

import numpy as np

from reference import number_formats


@dataclasses.dataclass(frozen=True)
class Precision:
    dtype: type
    round: Callable
    fp8_inputs: bool = False


EXACT = Precision(np.float64, lambda x: x)
SINGLE = Precision(np.float32, lambda x: x)
BF16 = Precision(np.float32, number_formats.round_bf16)
FP8_INPUTS = Precision(np.float32, number_formats.round_bf16, fp8_inputs=True)


# Which FP8 matrices, stacked in one product, an engine on a GPU multiplies in FP8 when there are many
# rows: [outputs] of each matrix, and their inputs. All others are widened, their inputs not rounded.
def dense_in_fp8(outputs, inputs):
    return (inputs % 16 == 0 and sum(outputs) % 4 == 0 and
            all(n % 128 == 0 for n in outputs[:-1]))  # scale blocks of the stack are whole


def experts_in_fp8(outputs, inputs):
    return all(n % 128 == 0 for n in (*outputs, inputs))


def never_in_fp8(outputs, inputs):
    return False


class Weights:
    """Checkpoint tensors by name, in the precision's type, FP8 dequantised without rounding."""

    def __init__(self, tensors, dtype, block=128):
        self._tensors = tensors
        self._dtype = dtype
        self._block = block
        self._ready = {}

    def __call__(self, name):
        if name not in self._ready:
            self._ready[name] = self._load(name)
        return self._ready[name]

    def is_fp8(self, name):
        return self._tensors[name].dtype == "F8_E4M3"

    def _load(self, name):
        tensor = self._tensors[name]
        if not self.is_fp8(name):
            return tensor.values().astype(self._dtype)
        scale = self._tensors[name + "_scale_inv"].values()
        return number_formats.dequantise_fp8(tensor.data, scale, self._block).astype(self._dtype)


class Sequence:
    """Tokens to run next, and the keys and values of those that ran before."""

    def __init__(self, tokens, layers):
        self.tokens = np.asarray(tokens, np.int64)
        self.length = 0
        self.keys = [None] * layers  # [tokens, heads, nope + rope]
        self.values = [None] * layers  # [tokens, heads, v]


class Model:
    def __init__(self, config, tensors, precision=EXACT, absorbed=False):
        self.config = config
        self.weights = Weights(tensors, precision.dtype)
        self.precision = precision
        self.absorbed = absorbed
        self.routing_margin = None  # [tokens] of the last forward(): see route()
        self._theta = config.rope_frequencies()

    def sequence(self, tokens):
        return Sequence(tokens, self.config.layers)

    def forward(self, sequences):
        """Runs the tokens of every sequence; returns the normed state of each, [tokens, dim]."""
        config, rnd = self.config, self.precision.round
        ends = np.cumsum([len(s.tokens) for s in sequences])
        spans = [slice(end - len(s.tokens), end) for s, end in zip(sequences, ends)]
        positions = np.concatenate([s.length + np.arange(len(s.tokens)) for s in sequences])
        angles = positions[:, None] * self._theta
        turns = (np.cos(angles).astype(self.precision.dtype),
                 np.sin(angles).astype(self.precision.dtype))
        tokens = np.concatenate([s.tokens for s in sequences])
        self.routing_margin = np.full(len(tokens), np.inf)
        h = self.weights("model.embed_tokens.weight")[tokens]
        for layer in range(config.layers):
            prefix = f"model.layers.{layer}."
            x = self._norm(h, prefix + "input_layernorm", config.eps)
            h = rnd(h + self._attention(layer, x, sequences, spans, turns))
            x = self._norm(h, prefix + "post_attention_layernorm", config.eps)
            h = rnd(h + self._feed_forward(layer, x))
        for sequence in sequences:
            sequence.length += len(sequence.tokens)
        hidden = self._norm(h, "model.norm", config.eps)
        return [hidden[span] for span in spans]

    def logprobs(self, hidden):
        """log softmax over the vocabulary of rows [rows, dim], float64."""
        logits = (hidden @ self.weights("lm_head.weight").T).astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    def _linear(self, x, name, in_fp8=dense_in_fp8):
        return self._linears(x, [name], in_fp8)[0]

    def _linears(self, x, names, in_fp8=dense_in_fp8):
        """x times each of the matrices, which an engine stacks."""
        names = [name + ".weight" for name in names]
        weights = [self.weights(name) for name in names]
        if self.precision.fp8_inputs and all(self.weights.is_fp8(name) for name in names):
            if in_fp8([len(w) for w in weights], x.shape[-1]):
                x = number_formats.round_activations_fp8(x)
        return [self.precision.round(x @ w.T) for w in weights]

    def _norm(self, x, name, eps):
        scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.precision.dtype(eps))
        return self.precision.round(x * scale * self.weights(name + ".weight"))

    def _rotate(self, x, turns):
        """Pairs (2i, 2i + 1) of the last axis; x is [tokens, heads, rope]."""
        cos, sin = (t[:, None, :] for t in turns)
        even, odd = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2] = even * cos - odd * sin
        out[..., 1::2] = even * sin + odd * cos
        return self.precision.round(out)

    def _attention(self, layer, x, sequences, spans, turns):
        config = self.config
        prefix = f"model.layers.{layer}.self_attn."
        tokens = len(x)
        first = "q_a_proj" if config.q_rank else "q_proj"
        q, latent = self._linears(x, [prefix + first, prefix + "kv_a_proj_with_mqa"])
        if config.q_rank:
            q = self._norm(q, prefix + "q_a_layernorm", config.latent_eps)
            q = self._linear(q, prefix + "q_b_proj")
        q = q.reshape(tokens, config.heads, config.nope + config.rope)
        q_nope, q_rope = q[..., :config.nope], self._rotate(q[..., config.nope:], turns)
        k_rope = self._rotate(latent[:, None, config.kv_rank:], turns)
        latent = self._norm(latent[:, :config.kv_rank], prefix + "kv_a_layernorm",
                            config.latent_eps)
        if self.absorbed:
            out = self._attend_absorbed(layer, q_nope, q_rope, latent, k_rope, sequences, spans)
        else:
            out = self._attend(layer, q_nope, q_rope, latent, k_rope, sequences, spans)
        return self._linear(out.reshape(tokens, config.heads * config.v), prefix + "o_proj")

    def _attend(self, layer, q_nope, q_rope, latent, k_rope, sequences, spans):
        """Keys and values of every head made and cached."""
        config = self.config
        kv = self._linear(latent, f"model.layers.{layer}.self_attn.kv_b_proj", never_in_fp8)
        kv = kv.reshape(len(latent), config.heads, config.nope + config.v)
        k_rope = np.broadcast_to(k_rope, (len(latent), config.heads, config.rope))
        q = np.concatenate([q_nope, q_rope], axis=-1)
        k = np.concatenate([kv[..., :config.nope], k_rope], axis=-1)
        v = kv[..., config.nope:]
        out = np.empty(v.shape, v.dtype)
        for sequence, span in zip(sequences, spans):
            keys = _append(sequence.keys, layer, k[span])
            values = _append(sequence.values, layer, v[span])
            scores = q[span].transpose(1, 0, 2) @ keys.transpose(1, 2, 0)
            probs = self._softmax(scores, sequence.length)
            out[span] = (probs @ values.transpose(1, 0, 2)).transpose(1, 0, 2)
        return self.precision.round(out)

    def _attend_absorbed(self, layer, q_nope, q_rope, latent, k_rope, sequences, spans):
        """Scores against the latent itself; the cache holds [latent ; k_rope] only."""
        config = self.config
        up = self.weights(f"model.layers.{layer}.self_attn.kv_b_proj.weight")
        up = up.reshape(config.heads, config.nope + config.v, config.kv_rank)
        up_key, up_value = up[:, :config.nope], up[:, config.nope:]
        q_latent = q_nope.transpose(1, 0, 2) @ up_key
        q = np.concatenate([q_latent, q_rope.transpose(1, 0, 2)], axis=-1)
        rows = np.concatenate([latent, k_rope[:, 0]], axis=-1)
        out = np.empty((len(latent), config.heads, config.v), latent.dtype)
        for sequence, span in zip(sequences, spans):
            cache = _append(sequence.keys, layer, rows[span])
            probs = self._softmax(q[:, span] @ cache.T, sequence.length)
            context = probs @ cache[:, :config.kv_rank]
            out[span] = (context @ up_value.transpose(0, 2, 1)).transpose(1, 0, 2)
        return self.precision.round(out)

    def _softmax(self, scores, start):
        """Causal softmax of [heads, queries, keys]; query i stands at position start + i."""
        scores = scores * self.precision.dtype(self.config.softmax_scale())
        queries, keys = scores.shape[1:]
        visible = np.arange(keys) <= start + np.arange(queries)[:, None]
        scores = np.where(visible, scores, -np.inf)
        probs = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return self.precision.round(probs / probs.sum(axis=-1, keepdims=True))

    def _mlp(self, x, prefix, in_fp8=dense_in_fp8):
        gate, up = self._linears(x, [prefix + "gate_proj", prefix + "up_proj"], in_fp8)
        return self._linear(self.precision.round(gate / (1 + np.exp(-gate)) * up),
                            prefix + "down_proj", in_fp8)

    def _feed_forward(self, layer, x):
        prefix = f"model.layers.{layer}.mlp."
        if layer < self.config.dense_layers:
            return self._mlp(x, prefix)
        ids, weights, margin = route(self.config, x @ self.weights(prefix + "gate.weight").T,
                                     self._router_bias(prefix))
        self.routing_margin = np.minimum(self.routing_margin, margin)
        out = np.zeros_like(x)
        for expert in np.unique(ids):
            rows, slots = np.nonzero(ids == expert)
            result = self._mlp(x[rows], f"{prefix}experts.{expert}.", experts_in_fp8)
            out[rows] += result * weights[rows, slots, None]
        if self.config.shared_experts:
            out += self._mlp(x, prefix + "shared_experts.", experts_in_fp8)
        return self.precision.round(out)

    def _router_bias(self, prefix):
        if self.config.topk_method != "noaux_tc":
            return None
        return self.weights(prefix + "gate.e_score_correction_bias")


def _append(cache, layer, rows):
    before = cache[layer]
    cache[layer] = rows if before is None else np.concatenate([before, rows])
    return cache[layer]


def route(config, logits, bias):
    """Chosen experts [tokens, top_k], best first, ties to the lower index; their weights; and the
    margin [tokens] by which the last chosen expert or group beat the next, relative to its score.
    """
    if config.score == "softmax":
        scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
    else:
        scores = 1 / (1 + np.exp(-logits))
    choice = scores if bias is None else scores + bias
    margin = np.inf
    if config.topk_method != "greedy" and config.groups > 1:
        choice, margin = _limit_groups(config, choice)
    order = np.argsort(-choice, axis=-1, kind="stable")
    ids = order[:, :config.top_k]
    if config.top_k < config.experts:
        edge = np.take_along_axis(choice, order[:, config.top_k - 1:config.top_k + 1], axis=-1)
        margin = np.minimum(margin, edge[:, 0] - edge[:, 1])
    weights = np.take_along_axis(scores, ids, axis=-1)
    margin = margin / weights.min(axis=-1)
    if config.norm_topk_prob:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    return ids, weights * scores.dtype.type(config.route_scale), margin


def _limit_groups(config, choice):
    """`choice` with -inf outside the best groups, and the margin of the last kept group."""
    grouped = choice.reshape(len(choice), config.groups, -1)
    if config.topk_method == "noaux_tc":
        group_score = np.sort(grouped, axis=-1)[..., -2:].sum(axis=-1)
    else:
        group_score = grouped.max(axis=-1)
    order = np.argsort(-group_score, axis=-1, kind="stable")
    allowed = np.zeros(group_score.shape, bool)
    np.put_along_axis(allowed, order[:, :config.limited_groups], True, axis=-1)
    masked = np.where(allowed[..., None], grouped, -np.inf).reshape(choice.shape)
    limit = config.limited_groups
    if limit == config.groups:
        return masked, np.inf
    edge = np.take_along_axis(group_score, order[:, limit - 1:limit + 1], axis=-1)
    return masked, edge[:, 0] - edge[:, 1]
