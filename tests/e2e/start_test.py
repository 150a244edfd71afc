"""Ranks that start apart, or with other options than their peers."""

import os
import tempfile
import time
import unittest

from deployment import SEED, Deployment, make_model

STEP_TIMEOUT_S = 2


class StartTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory(prefix="hadal-model-")
        cls.addClassCleanup(directory.cleanup)
        cls.model = make_model(directory.name)

    def test_a_slow_rank_is_waited_for(self):
        flags = ("--threads", "1", "--kv-blocks", "64", "--step-timeout", str(STEP_TIMEOUT_S))
        # Opening a pipe for reading takes until another opens it for writing.
        pipe = os.path.join(self.model, "pipe")
        os.mkfifo(pipe)
        with Deployment(self.model, worker_flags=flags) as hadal:
            hadal.start_workers(wait=False, last_rank_flags=("--join-secret-file", pipe))
            with open(pipe, "w", encoding="utf-8") as secret:
                time.sleep(2 * STEP_TIMEOUT_S)
                secret.write("only rank 0 needs it\n")
            hadal.wait_ready(True)
            answer = hadal.generate("--prompt", "x", "--max-tokens", "3", "--ignore-eos")
            self.assertEqual(len(answer["token_ids"]), 3)

    def refusal(self, *last_rank_flags, model=None):
        """What workers say that end at once because the last of them has other flags."""
        with Deployment(self.model) as hadal:
            hadal.start_workers(wait=False, last_rank_flags=last_rank_flags, last_rank_model=model)
            code = hadal.workers.wait(timeout=30)
            hadal.workers = None
            self.assertNotEqual(code, 0)
            with open(hadal.worker_log, encoding="utf-8") as log:
                return log.read()

    def test_ranks_with_other_options_are_refused(self):
        self.assertIn("rank 1 has --max-slots 7, rank 0 has 128", self.refusal("--max-slots", "7"))
        said = self.refusal("--tensor-parallel", "1", "--data-parallel", "2")
        self.assertIn("rank 1 has --tensor-parallel 1, rank 0 has 2", said)
        self.assertIn("rank 1 has --data-parallel 2, rank 0 has 1", said)

    def test_ranks_with_other_weights_are_refused(self):
        with tempfile.TemporaryDirectory(prefix="hadal-model-") as directory:
            make_model(directory, seed=SEED + 1)
            self.assertRegex(self.refusal(model=directory),
                             r"rank 1 has model fingerprint \w+, rank 0 has \w+")


if __name__ == "__main__":
    unittest.main(verbosity=2)
