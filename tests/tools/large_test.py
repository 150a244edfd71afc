"""Checkpoints larger than the memory that the tools may use, and what is printed on the way.

Sources are holes, which occupy no disk. The output goes to a disk, as it is too much for /dev/shm.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

import numpy as np

from reference import random_checkpoint
from reference.shapes import hugging_face_config
from tools.tool_case import DONE, ToolCase, data_bytes, write_zeros

GIB = 1 << 30
NEEDED = 6 * GIB
# As many as memory is bounded for: each has a job's buffers, whether or not there are cores.
THREADS = 128
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
PROGRESS = re.compile(r"([\d.]+ \w+) of ([\d.]+ \w+) \((\d+) %\), ([\d.]+) GB/s, (\d+) s left")


class Zeros:
    """Stands in for a source of random values when only shapes are wanted; pages are not touched."""

    @staticmethod
    def normal(shape, *_):
        return np.zeros(shape, np.float32)


def bf16_model(layers):
    """config.json and layout of a model with V2-Lite's matrices, fewer experts and layers."""
    hf, _ = hugging_face_config("v2-lite", "bf16")
    hf |= {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 10944,
           "moe_intermediate_size": 1408, "num_hidden_layers": layers, "n_routed_experts": 24,
           "num_attention_heads": 16, "num_key_value_heads": 16, "kv_lora_rank": 512,
           "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    shapes = {name: value.shape
              for name, value in random_checkpoint.tensor_values(hf, Zeros).items()}
    return hf, {name: ("BF16", shape) for name, shape in shapes.items()}


def quantised(layout):
    """The same model in FP8."""
    fp8 = {}
    for name, (dtype, shape) in layout.items():
        fp8[name] = ("F8_E4M3" if "_proj" in name else dtype, shape)
        if "_proj" in name:
            fp8[name + "_scale_inv"] = ("F32", tuple(-(-size // 128) for size in shape))
    return fp8


def byte_count(text):
    number, unit = text.split()
    return float(number) * UNITS[unit]


class LargeTest(ToolCase):
    def setUp(self):
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if free < NEEDED:
            reason = (f"large_test: skipped, {tempfile.gettempdir()} has {free / GIB:.1f} GiB free"
                      f" and {NEEDED / GIB:.0f} are needed; TMPDIR names another directory")
            print(reason, flush=True)
            self.skipTest(reason)
        temporary = tempfile.TemporaryDirectory(prefix="hadal-large-")
        self.addCleanup(temporary.cleanup)
        self.root = Path(temporary.name)
        self.source, self.out = self.root / "source", self.root / "out"

    def measure(self, tool, *flags, while_running=lambda _: None):
        """(standard output, standard error, largest resident memory in bytes) of a run.

        The kernel counts from the fork on, so the memory is never less than that of this process.
        """
        command = self.command(tool, *flags, "--threads", THREADS)
        with open(self.root / "said", "w+") as said, open(self.root / "errors", "w+") as errors:
            process = subprocess.Popen(command, stdout=said, stderr=errors)
            while_running(process)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            said.seek(0)
            errors.seek(0)
            output, error = said.read(), errors.read()
        self.assertEqual(process.returncode, DONE, error)
        return output, error, usage.ru_maxrss * 1024

    def check_memory(self, peak):
        """More than 1 GiB was written, and no more than that was ever resident."""
        written = sum(path.stat().st_size for path in self.out.glob("*.safetensors"))
        self.assertGreater(written, GIB)
        self.assertLessEqual(peak, GIB)
        print(f"{written / GIB:.2f} GiB written, at most {peak / GIB:.3f} GiB resident", flush=True)

    def test_a_conversion(self):
        hf, layout = bf16_model(layers=3)
        write_zeros(self.source, hf, layout)
        *_, peak = self.measure("hadal-convert", "--n-experts", 24, "--model-parallel", 2)
        self.check_memory(peak)

    def test_a_cast_to_fp8(self):
        hf, layout = bf16_model(layers=5)
        write_zeros(self.source, hf, layout)
        *_, peak = self.measure("hadal-bf16-cast-fp8")
        self.check_memory(peak)

    def test_a_cast_to_bf16_and_its_progress(self):
        hf, layout = bf16_model(layers=3)
        total = data_bytes(layout)
        write_zeros(self.source, hf, quantised(layout))
        start = time.monotonic()
        _, errors, peak = self.measure("hadal-fp8-cast-bf16",
                                       while_running=lambda p: self.pause(p, total * 0.3, 2.5))
        elapsed = time.monotonic() - start
        self.check_memory(peak)
        lines = [match for match in map(PROGRESS.fullmatch, errors.splitlines()) if match]
        self.assertGreaterEqual(len(lines), 1, errors)
        for line in lines:
            self.check_progress(line, total, elapsed)

    def pause(self, process, written, seconds):
        """Stops the process when it has written so much, so that any disk is slow enough."""
        counters = Path(f"/proc/{process.pid}/io")
        while int(re.search(r"wchar: (\d+)", counters.read_text())[1]) < written:
            self.assertIsNone(process.poll(), "ended before it had written its output")
            time.sleep(0.002)
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    def check_progress(self, line, total, elapsed):
        done, of = byte_count(line[1]), byte_count(line[2])
        rate, left = float(line[4]) * 1e9, int(line[5])
        self.assertLess(abs(of - total), 0.01 * GIB)
        self.assertTrue(0 < done <= of)
        self.assertLess(abs(100 * done / of - int(line[3])), 1.5)
        # Figures are rounded: rates to 0.01 GB/s, times down to seconds.
        slow, fast = max(rate - 0.006e9, 1e6), rate + 0.006e9
        self.assertLessEqual(2, done / slow)
        self.assertLessEqual(done / fast, elapsed)
        self.assertLessEqual((of - done) / fast - 1.1, left)
        self.assertLessEqual(left, (of - done) / slow + 0.1)


if __name__ == "__main__":
    unittest.main()
