"""From bf16 to FP8, back, and to two ranks: each directory is served, and the tools change no token
but by what e4m3 rounds."""

import random
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from deployment import SEED, Deployment, binary, make_model

RANDOM = random.Random(SEED)
EXPERTS = 8  # of make_model


class CheckpointsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory(prefix="hadal-checkpoints-")
        cls.addClassCleanup(temporary.cleanup)
        cls.root = Path(temporary.name)
        (cls.root / "bf16").mkdir()
        make_model(str(cls.root / "bf16"))
        cls.tool("hadal-bf16-cast-fp8",
                 "--input-bf16-hf-path", "bf16", "--output-fp8-hf-path", "fp8")
        cls.tool("hadal-fp8-cast-bf16",
                 "--input-fp8-hf-path", "fp8", "--output-bf16-hf-path", "back")
        for source in ("fp8", "back"):
            cls.convert(source, 2)
        cls.prompts = ["".join(RANDOM.choices("abcdefgh ", k=n)) for n in (3, 70)]

    @classmethod
    def tool(cls, name, *flags):
        subprocess.run([binary(name), *flags], cwd=cls.root, check=True, stdout=subprocess.DEVNULL)

    @classmethod
    def convert(cls, source, ranks):
        cls.tool("hadal-convert", "--hf-ckpt-path", source, "--save-path", f"{source}-mp{ranks}",
                 "--n-experts", str(EXPERTS), "--model-parallel", str(ranks))

    def greedy(self, name):
        """Token ids of each prompt's greedy continuation."""
        model = str(self.root / name)
        with Deployment(model, "--chat-template", "chatml").start_workers() as hadal:
            return [hadal.generate("--prompt", prompt, "--temperature", "0", "--max-tokens", "24",
                                   "--ignore-eos")["token_ids"] for prompt in self.prompts]

    def test_converted_bf16_answers_like_its_source(self):
        self.assertEqual(self.greedy("back-mp2"), self.greedy("back"))

    def test_converted_fp8_answers_like_its_source(self):
        self.assertEqual(self.greedy("fp8-mp2"), self.greedy("fp8"))

    def start_refused(self, model, ranks):
        done = subprocess.run(
            ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(ranks),
             binary("hadal-worker"), "--model", model, "--kv-blocks", "64"],
            capture_output=True, text=True, check=False, timeout=60)
        self.assertNotEqual(done.returncode, 0)
        return done.stdout + done.stderr

    def test_another_number_of_ranks_is_refused(self):
        self.assertIn("was converted for 2 tensor-parallel ranks",
                      self.start_refused(self.root / "back-mp2", 1))

    def test_an_incomplete_conversion_is_refused(self):
        partial = self.root / "partial"
        shutil.copytree(self.root / "back-mp2", partial)
        (partial / "model1-mp2.safetensors").unlink()
        self.assertIn("model1-mp2.safetensors is missing", self.start_refused(partial, 2))


if __name__ == "__main__":
    unittest.main(verbosity=2)
