"""Ranks that start apart, or with other options than their peers."""

import os
import tempfile
import time
import unittest

from deployment import Deployment, make_model

STEP_TIMEOUT_S = 0.5


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
                time.sleep(4 * STEP_TIMEOUT_S)
                secret.write("only rank 0 needs it\n")
            hadal.wait_ready(True)
            answer = hadal.generate("--prompt", "x", "--max-tokens", "3", "--ignore-eos")
            self.assertEqual(len(answer["token_ids"]), 3)


if __name__ == "__main__":
    unittest.main(verbosity=2)
