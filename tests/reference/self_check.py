"""Checks of the reference itself against published numbers, identities and slow obvious code.

  python -m reference.self_check
"""

import unittest

import numpy as np

from reference import make_cases, number_formats, random_checkpoint
from reference.model import (BF16, EXACT, FP8_INPUTS, SINGLE, Model, dense_in_fp8, experts_in_fp8,
                             route)
from reference.model_config import ModelConfig
from reference.shapes import SHAPES

_SEED = random_checkpoint.fresh_seed()

# theta_i of base 1e4, factor 40, length 4096, 64 dimensions.
_DEEPSEEK_THETA = [
    1, 0.74989421, 0.56234133, 0.4216965, 0.31622777, 0.23713737, 0.17782794, 0.13335214, 0.1,
    0.074989421, 0.056234133, 0.039006927, 0.02687936, 0.018378146, 0.012447956, 0.008334509,
    0.0055, 0.0035619975, 0.0022493653, 0.0013705136, 7.9056942e-4, 4.149904e-4, 1.7782794e-4,
    3.3338036e-5, 2.5e-5, 1.8747355e-5, 1.4058533e-5, 1.0542413e-5, 7.9056942e-6, 5.9284343e-6,
    4.4456985e-6, 3.3338036e-6]


def _full_size(shape, **changes):
    dims = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    return ModelConfig.from_hugging_face(SHAPES[shape] | dims | changes)


def _case(shape, dtype="f32", positions=200):
    hf, _, tensors = make_cases.make_checkpoint(shape, dtype, _SEED)
    source = make_cases.PromptSource(hf, shape, dtype, _SEED)
    return ModelConfig.from_hugging_face(hf), tensors, source.draw(positions)


def _logprobs(model, prompts):
    return model.logprobs(np.concatenate(model.forward([model.sequence(p) for p in prompts])))


class PositionTest(unittest.TestCase):
    def test_yarn_frequencies(self):
        np.testing.assert_allclose(_full_size("v3").rope_frequencies(), _DEEPSEEK_THETA, rtol=1e-6)

    def test_kimi_yarn_steps_from_pair_19_to_20(self):
        config = _full_size("kimi-k2")
        plain = 5e4 ** (-np.arange(32) / 32)
        ratio = plain / config.rope_frequencies()
        np.testing.assert_allclose(ratio, np.where(np.arange(32) < 20, 1, 32), rtol=1e-12)

    def test_softmax_scale(self):
        k2_0905 = SHAPES["kimi-k2"]["rope_scaling"] | {"factor": 64.0}
        for config, expected in ((_full_size("v3"), 0.1352338), (_full_size("v2-lite"), 0.1147214),
                                 (_full_size("moonlight"), 0.0721688),
                                 (_full_size("kimi-k2"), 0.1308608),
                                 (_full_size("kimi-k2", rope_scaling=k2_0905), 0.1446796)):
            self.assertAlmostEqual(config.softmax_scale(), expected, delta=1e-7)


class NumberFormatTest(unittest.TestCase):
    def test_bf16_is_the_nearest(self):
        x = np.random.default_rng(_SEED).normal(size=10000).astype(np.float32)
        rounded = number_formats.round_bf16(x)
        spacing = 2.0 ** (np.frexp(x)[1] - 8.0)
        self.assertTrue(np.all(np.abs(rounded.astype(np.float64) - x) <= spacing / 2))
        ties = np.array([1 + 2**-8, 1 + 3 * 2**-8], np.float32)
        np.testing.assert_array_equal(number_formats.round_bf16(ties), [1, 1 + 2**-6])
        np.testing.assert_array_equal(
            number_formats.bf16_values(number_formats.bf16_bits(x)), rounded)

    def test_fp8_is_the_nearest(self):
        codes = np.array([c for c in range(256) if c & 0x7F != 0x7F], np.uint8)
        values = number_formats.fp8_values(codes)
        np.testing.assert_array_equal(number_formats.fp8_bits(values), codes)
        rng = np.random.default_rng(_SEED)
        x = (rng.normal(size=5000) * 2.0 ** rng.integers(-11, 9, 5000)).astype(np.float32)
        x = np.clip(x, -448, 448)
        ours = np.abs(number_formats.fp8_values(number_formats.fp8_bits(x)) - x)
        best = np.abs(values[None, :] - x[:, None]).min(axis=1)
        np.testing.assert_array_equal(ours, best)
        ties = np.array([1.0625, 1.1875, 2.0**-10, 3 * 2.0**-10, 500], np.float32)
        nearest = number_formats.fp8_values(number_formats.fp8_bits(ties))
        np.testing.assert_array_equal(nearest, [1, 1.25, 0, 2.0**-8, 448])

    def test_fp8_blocks(self):
        x = np.random.default_rng(_SEED).normal(size=(300, 130)).astype(np.float32)
        x[256:, 128:] *= 1000
        for power_of_two in (False, True):
            bits, scale = number_formats.quantise_fp8(x, power_of_two=power_of_two)
            self.assertEqual(scale.shape, (3, 2))
            back = number_formats.dequantise_fp8(bits, scale)
            self.assertTrue(np.all(np.abs(back - x) <= np.abs(x) / 16 + scale.max() * 2.0**-10))
            element = number_formats.fp8_values(bits[299:, 129:]) * scale[2, 1]
            np.testing.assert_allclose(back[299:, 129:], element, rtol=1e-7)
            if power_of_two:
                np.testing.assert_array_equal(np.frexp(scale)[0], 0.5)


    def test_fp8_activations(self):
        x = np.zeros((3, 130), np.float32)
        # Scale 1: ties to even among multiples of 2, 32 and 2^-9.
        x[0, :6] = [-448, 17, 19, -432, 2.0**-10, 3 * 2.0**-10]
        x[0, 128:] = [896, 34]    # the next block of columns: scale 2
        x[1, :2] = [0.875, 2**-5]  # scale 2^-9
        x[2, :2] = [5e-5, -1e-6]   # below the least scale: codes of 224 and -4.48
        rounded = number_formats.round_activations_fp8(x)
        expected = np.zeros_like(x)
        expected[0, :6] = [-448, 16, 20, -448, 0, 2.0**-8]
        expected[0, 128:] = [896, 32]
        expected[1, :2] = [0.875, 2**-5]
        expected[2, :2] = np.float32([224, -4.5]) * (np.float32(1e-4) / np.float32(448))
        np.testing.assert_array_equal(rounded, expected)

    def test_fp8_activations_are_near(self):
        x = np.random.default_rng(_SEED).normal(size=(50, 200)).astype(np.float32)
        rounded = number_formats.round_activations_fp8(x)
        for columns in (slice(0, 128), slice(128, 200)):
            largest = np.abs(x[:, columns]).max(axis=1, keepdims=True)
            error = np.abs(rounded[:, columns] - x[:, columns])
            limit = np.maximum(np.abs(x[:, columns]) / 16, largest / 448 * 2.0**-10) * 1.001
            self.assertTrue(np.all(error <= limit))
            np.testing.assert_allclose(np.abs(rounded[:, columns]).max(axis=1), largest[:, 0],
                                       rtol=1e-6)


class Fp8ProductTest(unittest.TestCase):
    def test_which_products_round_their_inputs(self):
        self.assertTrue(dense_in_fp8([1536, 576], 7168))
        self.assertTrue(dense_in_fp8([200], 240))
        self.assertFalse(dense_in_fp8([480, 152], 256))  # kv_a starts inside a scale block
        self.assertFalse(dense_in_fp8([200], 200))
        self.assertTrue(experts_in_fp8([2048, 2048], 7168))
        self.assertFalse(experts_in_fp8([2048, 2048], 7160))
        self.assertFalse(experts_in_fp8([192, 192], 7168))

    def test_rounded_inputs_are_the_larger_error(self):
        config, tensors, prompts = _case("v3", "fp8")
        exact = _logprobs(Model(config, tensors), prompts)
        bf16, fp8 = (np.abs(_logprobs(Model(config, tensors, precision), prompts) - exact).mean()
                     for precision in (BF16, FP8_INPUTS))
        self.assertTrue(1.2 * bf16 < fp8 < 6 * bf16, f"{bf16} {fp8}")

    def test_other_checkpoints_are_not_touched(self):
        config, tensors, prompts = _case("v3", "bf16", 60)
        np.testing.assert_array_equal(_logprobs(Model(config, tensors, FP8_INPUTS), prompts),
                                      _logprobs(Model(config, tensors, BF16), prompts))


class RouterTest(unittest.TestCase):
    def test_against_one_token_at_a_time(self):
        rng = np.random.default_rng(_SEED)
        for shape in SHAPES:
            config = ModelConfig.from_hugging_face(SHAPES[shape])
            logits = rng.normal(size=(200, config.experts))
            bias = rng.normal(-0.5, 0.3, config.experts)
            bias = bias if config.topk_method == "noaux_tc" else None
            ids, weights, _ = route(config, logits, bias)
            for t in range(len(logits)):
                expected = _route_one(config, logits[t], bias)
                self.assertEqual(list(ids[t]), [e for e, _ in expected], shape)
                np.testing.assert_allclose(weights[t], [w for _, w in expected], rtol=1e-12)


def _route_one(config, logits, bias):
    """(expert, weight) of one token, in plain Python."""
    total = sum(np.exp(logits))
    scores = [np.exp(x) / total if config.score == "softmax" else 1 / (1 + np.exp(-x))
              for x in logits]
    biased = [s + (0 if bias is None else bias[e]) for e, s in enumerate(scores)]
    candidates = list(range(config.experts))
    if config.topk_method != "greedy" and config.groups > 1:
        size = config.experts // config.groups
        count = 2 if config.topk_method == "noaux_tc" else 1
        strength = [sum(sorted(biased[g * size:(g + 1) * size])[-count:])
                    for g in range(config.groups)]
        best = sorted(range(config.groups), key=lambda g: -strength[g])[:config.limited_groups]
        candidates = [e for e in candidates if e // size in best]
    chosen = sorted(candidates, key=lambda e: -biased[e])[:config.top_k]
    divisor = sum(scores[e] for e in chosen) if config.norm_topk_prob else 1
    return [(e, scores[e] / divisor * config.route_scale) for e in chosen]


class ModelTest(unittest.TestCase):
    def test_naive_equals_absorbed_attention(self):
        for shape in SHAPES:
            config, tensors, prompts = _case(shape, "fp8")
            naive = _logprobs(Model(config, tensors), prompts)
            absorbed = _logprobs(Model(config, tensors, absorbed=True), prompts)
            np.testing.assert_allclose(naive, absorbed, atol=1e-9, err_msg=shape)

    def test_chunks_and_single_tokens_equal_the_whole(self):
        for absorbed in (False, True):
            config, tensors, prompts = _case("v3", positions=100)
            model = Model(config, tensors, absorbed=absorbed)
            whole = model.forward([model.sequence(p) for p in prompts])[0]
            sequence, parts = model.sequence([]), []
            for begin, end in ((0, 50), (50, 51), (51, 52), (52, len(prompts[0]))):
                sequence.tokens = prompts[0][begin:end]
                parts += model.forward([sequence])
            np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-9)

    def test_rounding_errors_are_those_of_the_precision(self):
        for shape in SHAPES:
            config, tensors, prompts = _case(shape, "f32", 60)
            model = Model(config, tensors, EXACT)
            exact = _logprobs(model, prompts)
            clear = model.routing_margin.min() > 1e-5
            single = np.abs(_logprobs(Model(config, tensors, SINGLE), prompts) - exact)
            rounded = np.abs(_logprobs(Model(config, tensors, BF16), prompts) - exact)
            if clear:
                self.assertLess(single.max(), 2e-4, shape)
            self.assertLess(rounded.mean(), 0.3, shape)
            self.assertGreater(rounded.mean(), 100 * np.median(single), shape)

    def test_logits_have_a_useful_spread(self):
        for shape in SHAPES:
            config, tensors, prompts = _case(shape, "bf16")
            spread = _logprobs(Model(config, tensors), prompts).std(axis=-1).mean()
            self.assertTrue(1 < spread < 3, f"{shape}: {spread}")


if __name__ == "__main__":
    print(f"HADAL_TEST_SEED={_SEED}", flush=True)
    unittest.main()
