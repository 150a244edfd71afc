"""The casts between e4m3 and bf16 against numpy, and the checkpoints they refuse."""

import json
import subprocess
import unittest

import numpy as np

from reference import number_formats, random_checkpoint, safetensors_file
from reference.safetensors_file import Tensor
from reference.shapes import SHAPES
from tools.tool_case import (BAD_SOURCE, BIN, SEED, USAGE, ToolCase, contents, dequantised,
                             read_directory, read_file, write_model, write_tensors)

TO_BF16, TO_FP8 = "hadal-fp8-cast-bf16", "hadal-bf16-cast-fp8"
QUANTISED = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
OTHERS = ["README.md", "assets/benchmark.svg", "generation_config.json", "tokenization_kimi.py",
          "tokenizer.json"]


def cast_to_bf16(tensors, block=(128, 128)):
    """name -> (dtype, bits)."""
    wanted = {}
    for name, tensor in tensors.items():
        if tensor.dtype == "F8_E4M3":
            scale = tensors[name + "_scale_inv"].values()
            wanted[name] = ("BF16", dequantised(tensor.data, scale, block))
        elif not name.endswith("_scale_inv"):
            wanted[name] = (tensor.dtype, tensor.data)
    return wanted


def cast_to_fp8(tensors, power_of_two):
    wanted = {}
    for name, tensor in tensors.items():
        if "_proj" not in name or "eh_proj" in name:
            wanted[name] = (tensor.dtype, tensor.data)
            continue
        values = tensor.values()
        rows, columns = values.shape
        scale = np.zeros((-(-rows // 128), -(-columns // 128)), np.float32)
        codes = np.zeros(values.shape, np.uint8)
        for i, j in np.ndindex(scale.shape):
            tile = np.s_[i * 128:(i + 1) * 128, j * 128:(j + 1) * 128]
            largest = np.abs(values[tile]).max()
            scale[i, j] = largest / np.float32(448) if largest else 1
            if power_of_two:
                scale[i, j] = 2.0 ** np.ceil(np.log2(np.float64(scale[i, j])))
            codes[tile] = number_formats.fp8_bits(values[tile] / scale[i, j])
        wanted[name], wanted[name + "_scale_inv"] = ("F8_E4M3", codes), ("F32", scale)
    return wanted


class CastTest(ToolCase):
    def check_index(self, found, files):
        """weight_map names each tensor's file, total_size counts their bytes."""
        if set(files.values()) == {"model.safetensors"}:
            self.assertFalse((self.out / "model.safetensors.index.json").exists())
            return
        index = self.read_json("model.safetensors.index.json")
        self.assertEqual(index["weight_map"], files)
        self.assertEqual(index["metadata"]["total_size"],
                         sum(bits.nbytes for _, bits in found.values()))

    def check_output(self, wanted):
        found, files = read_directory(self.out)
        self.assert_tensors(found, wanted)
        self.check_index(found, files)
        for name in OTHERS:
            self.assertEqual((self.out / name).read_bytes(), (self.source / name).read_bytes())
        for name in (".cache", "hadal_checkpoint.json"):
            self.assertFalse((self.out / name).exists(), name)

    def test_all_shapes_to_bf16(self):
        for number, shape in enumerate(SHAPES):
            self.source = self.root / shape
            self.out = self.root / f"{shape}-bf16"
            hf, tensors = write_model(self.source, shape, "fp8", shards=1 + 2 * (number % 2))
            self.run_tool(TO_BF16)
            self.check_output(cast_to_bf16(tensors))
            config = self.read_json("config.json")
            del hf["quantization_config"]
            self.assertEqual(config, hf)
            self.assertEqual(list(config), list(hf))
            self.run_tool(TO_BF16, "--verify")

    def test_scales_in_another_shard_and_the_shard_that_vanishes(self):
        _, tensors = write_model(self.root / "model", "v3", "fp8")
        scales = {n: t for n, t in tensors.items() if n.endswith("_scale_inv")}
        rest = {n: t for n, t in tensors.items() if n not in scales}
        names = list(rest)
        halves = [{n: rest[n] for n in names[::2]}, {n: rest[n] for n in names[1::2]}]
        write_tensors(self.source, QUANTISED, halves[0], scales, halves[1])
        self.run_tool(TO_BF16)
        found, files = read_directory(self.out)
        self.assert_tensors(found, cast_to_bf16(tensors))
        self.check_index(found, files)
        self.assertEqual(sorted(set(files.values())), ["model-00001-of-00003.safetensors",
                                                       "model-00003-of-00003.safetensors"])

    def test_every_code_under_every_kind_of_scale(self):
        # Products that are subnormal, round to even, overflow, vanish; NaN codes of both signs.
        codes = np.arange(256, dtype=np.uint8).repeat(3)[None, :].repeat(5, 0)
        random = np.random.default_rng(SEED)
        random.shuffle(codes, axis=1)
        scales = [2.0**-130, 1e-38, 2.0**-126, 3.14159e-5, 0.0, 1.0, -2.5, 1e36, 3e38, np.inf,
                  float(random.uniform(1e-4, 1))]
        tensors = {}
        for i, scale in enumerate(scales):
            tensors[f"m{i}.weight"] = Tensor("F8_E4M3", codes)
            tensors[f"m{i}.weight_scale_inv"] = Tensor("F32", np.full((1, 6), scale))
        write_tensors(self.source, {}, tensors)
        self.run_tool(TO_BF16)
        found = read_file(self.out / "model.safetensors")
        for name, (dtype, wanted) in cast_to_bf16(tensors).items():
            is_nan = (wanted & 0x7FFF) > 0x7F80  # 0 x inf: any NaN will do
            self.assertEqual(dtype, found[name][0])
            np.testing.assert_array_equal((found[name][1] & 0x7FFF) > 0x7F80, is_nan)
            np.testing.assert_array_equal(found[name][1][~is_nan], wanted[~is_nan], name)
        nan = {code: found["m5.weight"][1][codes == code] for code in (0x7F, 0xFF)}
        self.assertTrue((nan[0x7F] == 0x7FC0).all() and (nan[0xFF] == 0xFFC0).all())
        self.assertEqual(found["m5.weight"][1][codes == 1][0], 0x3B00)  # 2^-9, the least subnormal

    def test_ragged_matrices_other_types_and_blocks(self):
        random = random_checkpoint.Random(SEED, "ragged")
        for block in ((128, 128), (64, 32), (7, 300)):
            tensors = {}
            for rows, columns in ((1, 1), (127, 129), (128, 128), (129, 1), (1, 257), (300, 513),
                                  (0, 5)):
                name = f"{rows}x{columns}.weight"
                count = (-(-rows // block[0]), -(-columns // block[1]))
                bits = random.integers(256, rows * columns).reshape(rows, columns)
                tensors[name] = Tensor("F8_E4M3", bits)
                scale = random.normal(count, 1e-3)
                tensors[name + "_scale_inv"] = (
                    Tensor("F32", scale) if rows % 2 else
                    Tensor("BF16", number_formats.bf16_bits(scale)))
            tensors["ids"] = Tensor("I64", np.arange(7))
            tensors["scalar"] = Tensor("F32", np.float32(3))
            tensors["cube"] = Tensor("BF16", np.arange(24).reshape(2, 3, 4))
            name = f"{block[0]}x{block[1]}"
            self.source, self.out = self.root / name, self.root / f"{name}-bf16"
            write_tensors(self.source, {"quantization_config": {
                "quant_method": "fp8", "weight_block_size": list(block)}}, tensors)
            self.run_tool(TO_BF16)
            wanted = cast_to_bf16(tensors, block)
            del wanted["ids"]  # a type the reader here does not store
            read = safetensors_file.read(self.out / "model.safetensors")
            found = {n: (t.dtype, t.data) for n, t in read.items()}
            self.assertEqual(found.pop("ids")[1].tolist(), list(range(7)))
            self.assert_tensors(found, wanted)

    def test_all_missing_scales_are_listed(self):
        _, tensors = write_model(self.source, "v3", "fp8")
        scales = [name for name in tensors if name.endswith("_scale_inv")]
        gone = [scales[1], scales[7], scales[-1]]
        kept = {n: t for n, t in tensors.items() if n not in gone}
        kept[scales[2]] = Tensor("F32", np.zeros((9, 9)))
        kept["stray.weight_scale_inv"] = Tensor("F32", np.zeros((1, 1)))
        write_tensors(self.root / "bad", QUANTISED, kept)
        _, error = self.run_tool(TO_BF16, source=self.root / "bad", expect=BAD_SOURCE)
        for name in gone:
            self.assertIn(f"{name}: missing", error)
        self.assertIn(f"{scales[2]}: [9, 9] instead of", error)
        self.assertIn("stray.weight_scale_inv: scales of no e4m3 matrix", error)
        self.assertEqual(len(error.strip().splitlines()), 1 + len(gone) + 2)
        self.assertFalse(self.out.exists())

    def test_all_shapes_to_fp8(self):
        for number, shape in enumerate(SHAPES):
            power_of_two = number % 2 == 0
            self.source = self.root / shape
            self.out = self.root / f"{shape}-fp8"
            hf, tensors = write_model(self.source, shape, "bf16", shards=1 + 2 * (number % 2))
            flags = ["--scale-fmt", "ue8m0"] if power_of_two else []
            self.run_tool(TO_FP8, *flags)
            self.check_output(cast_to_fp8(tensors, power_of_two))
            quantization = self.read_json("config.json").pop("quantization_config")
            self.assertEqual(quantization["weight_block_size"], [128, 128])
            self.assertEqual(quantization.get("scale_fmt"), "ue8m0" if power_of_two else None)
            self.run_tool(TO_FP8, "--verify", *flags)
            self.check_accepted(self.out)

    def check_accepted(self, directory):
        """hadal-worker's own check of names, shapes and types."""
        done = subprocess.run([BIN / "hadal", "model-info", directory], capture_output=True,
                              text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_edges_of_rounding_to_fp8(self):
        # Every e4m3 value, every midpoint between two, and their bf16 neighbours, under scale 1.
        values = number_formats.FP8_TABLE[:0x7F].astype(np.float64)
        points = np.concatenate([values, (values[1:] + values[:-1]) / 2])
        bits = number_formats.bf16_bits(points.astype(np.float32)).astype(np.int64)
        bits = np.unique(np.clip(np.concatenate([bits - 1, bits, bits + 1]), 0, 0x43E0))
        bits = np.concatenate([bits, bits | 0x8000]).astype(np.uint16)
        matrix = np.zeros((128, 128), np.uint16)
        matrix.flat[:bits.size] = bits
        matrix.flat[-1] = 0x43E0  # 448: the scale is 1
        _, tensors = write_model(self.root / "model", "v2-lite", "bf16")
        name = "model.layers.0.mlp.down_proj.weight"
        stored = np.zeros(tensors[name].data.shape, np.uint16)
        rows = matrix.reshape(-1)[:stored.size // 2]
        tile = stored[:72, :128]
        tile.flat = np.resize(rows[:bits.size], tile.size)
        tile[0, 0] = 0x43E0
        tensors[name] = Tensor("BF16", stored)
        hf = json.loads((self.root / "model/config.json").read_text())
        write_tensors(self.source, hf, tensors)
        self.run_tool(TO_FP8)
        found = read_file(self.out / "model.safetensors")
        self.assertEqual(found[name + "_scale_inv"][1][0, 0], 1)
        self.assertEqual(found[name + "_scale_inv"][1][0, 1], 1)  # a block of zeros
        exact = number_formats.bf16_values(tile).astype(np.float64)
        table = number_formats.FP8_TABLE[:0x7F].astype(np.float64)
        distance = np.abs(np.abs(exact)[..., None] - table)
        nearest = distance == distance.min(-1, keepdims=True)
        even = np.where(nearest, np.arange(0x7F) % 2 * 1000 + np.arange(0x7F), 10**6).argmin(-1)
        wanted = even | np.where(np.signbit(exact), 0x80, 0)
        np.testing.assert_array_equal(found[name][1][:72, :128], wanted)

    def test_there_and_back_loses_no_more_than_e4m3_does(self):
        _, tensors = write_model(self.source, "v3", "bf16", 2)
        fp8, back = self.root / "fp8", self.root / "back"
        self.run_tool(TO_FP8, out=fp8)
        self.run_tool(TO_BF16, source=fp8, out=back)
        found, _ = read_directory(back)
        for name, tensor in tensors.items():
            values = tensor.values()
            again = Tensor(*found[name]).values()
            error = np.abs(again - values)
            self.assertTrue((error <= np.abs(values) * 0.07 + np.abs(values).max() / 1e5).all())

    def test_values_that_cannot_be_scaled(self):
        hf, tensors = write_model(self.root / "model", "v2-lite", "bf16")
        name = "model.layers.1.self_attn.o_proj.weight"
        for number, bits in enumerate((0x7F80, 0xFFC1)):
            tensors[name].data[70, 3] = bits
            source = self.root / f"bad{number}"
            write_tensors(source, hf, tensors)
            _, error = self.run_tool(TO_FP8, source=source, expect=BAD_SOURCE)
            self.assertIn(f"tensor {name} holds a NaN or an infinity", error)
            self.assertEqual([p for p in contents(self.out) if p.endswith("safetensors")], [])
            self.assertEqual([p for p in contents(self.out) if p.endswith("partial")], [])

    def test_sources_that_cannot_be_used(self):
        hf, tensors = write_model(self.source, "v3", "fp8")
        path = self.source / "model.safetensors"
        good = path.read_bytes()

        def refused(what, tool=TO_BF16, expect=BAD_SOURCE, source=None):
            _, error = self.run_tool(tool, expect=expect, source=source)
            self.assertIn(what, error)
            self.assertFalse(self.out.exists())

        refused("config.json says F8_E4M3; only BF16", TO_FP8)
        for cut in (0, 7, 100, len(good) // 2, len(good) - 1):
            path.write_bytes(good[:cut])
            refused("model.safetensors: ")
        path.unlink()
        path.mkdir()
        refused("not a regular file")
        path.rmdir()
        refused("no *.safetensors file")
        path.write_bytes(good)
        for text in ("{", "[]", '{"quantization_config": {"quant_method": "awq"}}',
                     '{"quantization_config": 3}', '{"quantization_config": {"quant_method": "fp8",'
                     ' "weight_block_size": [128]}}'):
            (self.source / "config.json").write_text(text)
            refused("config.json: ")
        (self.source / "config.json").unlink()
        refused("config.json: no such file")
        refused("no such file", source=self.root / "nowhere")
        write_tensors(self.root / "plain", {}, {"a": tensors["model.norm.weight"]})
        refused("no e4m3 tensor", source=self.root / "plain")

    def test_the_source_is_not_overwritten(self):
        write_model(self.source, "v2-lite", "fp8")
        before = contents(self.source)
        for out in (self.source, self.source / ".", self.root / "x/../source"):
            (self.root / "x").mkdir(exist_ok=True)
            _, error = self.run_tool(TO_BF16, out=out, expect=USAGE)
            self.assertIn("is the source itself", error)
        self.assertEqual(contents(self.source), before)

    def test_an_output_within_the_source_is_no_part_of_it(self):
        write_model(self.source, "v2-lite", "fp8")
        before = contents(self.source)
        self.run_tool(TO_BF16)
        within = self.source / "casts/bf16"
        for flags in ((), (), ("--verify",)):
            self.run_tool(TO_BF16, *flags, out=within)
            self.assertEqual(contents(within), contents(self.out))
        within.rename(self.root / "moved")
        self.assertEqual(contents(self.source), before)


if __name__ == "__main__":
    unittest.main()
