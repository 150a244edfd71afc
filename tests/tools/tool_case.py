"""Runs the checkpoint tools and reads what they wrote, with the safetensors package."""

import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

import numpy as np
import safetensors

from reference import number_formats, random_checkpoint, safetensors_file
from reference.make_cases import make_checkpoint
from reference.shapes import SHAPES

BIN = Path(os.environ["HADAL_BIN"])
SEED = random_checkpoint.fresh_seed()
print(f"HADAL_TEST_SEED={SEED}", flush=True)

DONE, USAGE, BAD_SOURCE, CANNOT_WRITE, DIFFERS = 0, 2, 3, 4, 5
_STORAGE = {"F32": "<f4", "BF16": "<u2", "F8_E4M3": "u1"}


def read_file(path):
    """name -> (dtype, numpy array of the stored bits)."""
    tensors = {}
    for name, entry in safetensors.deserialize(Path(path).read_bytes()):
        values = np.frombuffer(bytes(entry["data"]), _STORAGE[entry["dtype"]])
        tensors[name] = (entry["dtype"], values.reshape(entry["shape"]))
    return tensors


def read_directory(directory):
    """All tensors, and for each the name of its file."""
    tensors, files = {}, {}
    for path in sorted(Path(directory).glob("*.safetensors")):
        for name, tensor in read_file(path).items():
            assert name not in tensors, f"{name} stands in two files"
            tensors[name], files[name] = tensor, path.name
    return tensors, files


def contents(directory):
    """Relative path -> bytes of every file."""
    directory = Path(directory)
    return {path.relative_to(directory).as_posix(): path.read_bytes()
            for path in sorted(directory.rglob("*")) if path.is_file()}


def write_model(directory, shape="v3", dtype="bf16", shards=1, change=None):
    """A random checkpoint with a tokenizer and a few other files. change(hf) edits its config.

    Returns (config.json, name -> reference Tensor).
    """
    directory = Path(directory)
    directory.mkdir(parents=True)
    before = SHAPES[shape]
    try:
        SHAPES[shape] = change(dict(before)) if change else before
        hf, generation, tensors = make_checkpoint(shape, dtype, SEED)
    finally:
        SHAPES[shape] = before
    random_checkpoint.write(directory, hf, generation, tensors, shards)
    (directory / "tokenizer.json").write_text('{"any": "thing"}')
    (directory / "tokenization_kimi.py").write_text("# code\n")
    (directory / "README.md").write_text("# A model\n")
    (directory / "hadal_checkpoint.json").write_text("{}")
    (directory / "assets").mkdir()
    (directory / "assets/benchmark.svg").write_text("<svg/>")
    (directory / ".cache").mkdir()
    (directory / ".cache/lock").write_text("")
    return hf, tensors


def write_tensors(directory, hf, *shards):
    """A checkpoint of given shards: name -> reference Tensor."""
    Path(directory).mkdir(parents=True)
    safetensors_file.write_checkpoint(directory, list(shards))
    safetensors_file.write_json(Path(directory) / "config.json", hf)


def data_bytes(layout):
    """layout: name -> (dtype, shape)."""
    return sum(int(np.prod(shape)) * np.dtype(_STORAGE[dtype]).itemsize
               for dtype, shape in layout.values())


def write_zeros(directory, hf, layout):
    """A checkpoint of one file, all holes: it occupies no disk."""
    Path(directory).mkdir(parents=True)
    header = safetensors_file.header_bytes(layout)
    path = Path(directory) / "model.safetensors"
    path.write_bytes(header)
    os.truncate(path, len(header) + data_bytes(layout))
    safetensors_file.write_json(Path(directory) / "config.json", hf)


def dequantised(codes, scale, block=(128, 128)):
    """bf16 bits of e4m3 x scale: F32 product, ties to even; NaN codes keep their sign."""
    rows, columns = codes.shape
    spread = np.repeat(np.repeat(scale.astype(np.float32), block[0], 0), block[1], 1)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        product = number_formats.FP8_TABLE[codes] * spread[:rows, :columns]
    nan = (codes & 0x7F) == 0x7F
    bits = number_formats.bf16_bits(np.where(nan, np.float32(0), product))
    return np.where(nan, 0x7FC0 | (codes.astype(np.uint16) & 0x80) << 8, bits).astype(np.uint16)


class ToolCase(unittest.TestCase):
    def setUp(self):
        # In memory where that is possible: hundreds of files are synced.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        temporary = tempfile.TemporaryDirectory(prefix="hadal-tools-", dir=memory)
        self.addCleanup(temporary.cleanup)
        self.root = Path(temporary.name)
        self.source, self.out = self.root / "source", self.root / "out"

    def command(self, tool, *flags, source=None, out=None):
        names = {"hadal-convert": ("--hf-ckpt-path", "--save-path"),
                 "hadal-fp8-cast-bf16": ("--input-fp8-hf-path", "--output-bf16-hf-path"),
                 "hadal-bf16-cast-fp8": ("--input-bf16-hf-path", "--output-fp8-hf-path")}[tool]
        return [BIN / tool, names[0], source or self.source, names[1], out or self.out,
                *map(str, flags)]

    def run_tool(self, tool, *flags, expect=DONE, **where):
        """(standard output, standard error) of a run that must end with this exit code."""
        done = subprocess.run(self.command(tool, *flags, **where), capture_output=True, text=True,
                              check=False)
        self.assertEqual(done.returncode, expect, done.stdout + done.stderr)
        if expect != DONE:
            self.assertIn(f"\n{tool}: ", "\n" + done.stderr)  # after notes
        return done.stdout, done.stderr

    def convert(self, experts, ranks, *flags, **more):
        return self.run_tool("hadal-convert", "--n-experts", experts, "--model-parallel", ranks,
                             *flags, **more)

    def read_json(self, name, directory=None):
        return json.loads(((directory or self.out) / name).read_text())

    def assert_tensors(self, found, wanted):
        """Both name -> (dtype, bits)."""
        self.assertEqual(sorted(found), sorted(wanted))
        for name, (dtype, bits) in wanted.items():
            self.assertEqual(found[name][0], dtype, name)
            self.assertEqual(found[name][1].shape, bits.shape, name)
            np.testing.assert_array_equal(
                found[name][1].view(np.uint8), np.ascontiguousarray(bits).view(np.uint8), name)
