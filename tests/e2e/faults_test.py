"""Workers that die or hang: the server stays up, and the streams go on where they stood."""

import os
import signal
import tempfile
import time
import unittest

from deployment import Deployment, finish, make_model, wait_for

STREAMS = 8
TOKENS = 1200


class FaultsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory(prefix="hadal-model-")
        cls.model = make_model(cls.directory.name)
        with Deployment(cls.model).start_workers() as hadal:
            cls.expected = [finish(client) for client in cls.start_streams(hadal)]

    @classmethod
    def tearDownClass(cls):
        cls.directory.cleanup()

    @staticmethod
    def start_streams(hadal):
        return [hadal.start("--json", "--prompt", f"stream {i} " * (i + 1), "--max-tokens",
                            str(TOKENS), "--ignore-eos", "--seed", str(i), "--temperature", "0.8")
                for i in range(STREAMS)]

    def start_and_wait(self, hadal):
        before = hadal.status()["generated_tokens"]
        clients = self.start_streams(hadal)
        wait_for(lambda: hadal.status()["running_requests"] == STREAMS
                 and hadal.status()["generated_tokens"] > before + 20 * STREAMS, "all streams run")
        return clients

    def check_streams(self, clients):
        for client, expected in zip(clients, self.expected):
            answer = finish(client)
            self.assertEqual(answer["token_ids"], expected["token_ids"])
            self.assertEqual(answer["text"], expected["text"])
            self.assertEqual(answer["usage"]["completion_tokens"], TOKENS)

    def kill_a_rank(self, rank):
        with Deployment(self.model).start_workers() as hadal:
            clients = self.start_and_wait(hadal)
            os.kill(hadal.rank_pids()[rank], signal.SIGKILL)
            hadal.wait_ready(False)
            wait_for(lambda: hadal.workers.poll() is not None, "mpirun ends", 20)
            self.assertTrue(all(client.poll() is None for client in clients))
            hadal.start_workers()
            self.check_streams(clients)
            self.assertEqual(hadal.status()["worker_groups"][0]["epoch"], 2)

    def test_rank_1_is_killed(self):
        self.kill_a_rank(1)

    def test_rank_0_is_killed(self):
        self.kill_a_rank(0)

    def test_rank_hangs(self):
        with Deployment(self.model, "--step-deadline", "2").start_workers() as hadal:
            clients = self.start_and_wait(hadal)
            os.kill(hadal.rank_pids()[1], signal.SIGSTOP)
            hadal.wait_ready(False)
            self.assertTrue(all(client.poll() is None for client in clients))
            hadal.stop_workers()
            hadal.start_workers()
            self.check_streams(clients)

    def test_a_standby_group_takes_over(self):
        with Deployment(self.model).start_workers() as hadal:
            first, first_pids = hadal.workers, hadal.rank_pids()
            hadal.start_workers(wait=False)
            clients = self.start_and_wait(hadal)
            os.kill(first_pids[0], signal.SIGKILL)
            self.check_streams(clients)
            self.assertEqual(hadal.status()["worker_groups"][0]["epoch"], 2)
            wait_for(lambda: first.poll() is not None, "the first mpirun ends", 20)

    def test_workers_outlive_the_server(self):
        with Deployment(self.model).start_workers() as hadal:
            port = hadal.worker_address
            hadal.server.kill()
            hadal.server.wait()
            time.sleep(0.5)
            self.assertEqual(len(hadal.rank_pids()), 2)
            with Deployment(self.model, worker_listen=port) as again:
                again.wait_ready(True)
                answer = again.generate("--prompt", "x", "--max-tokens", "3", "--ignore-eos")
                self.assertEqual(len(answer["token_ids"]), 3)


if __name__ == "__main__":
    unittest.main(verbosity=2)
