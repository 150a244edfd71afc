"""What a user sees of a healthy server: streamed text, determinism, concurrency, errors, drain."""

import json
import os
import random
import signal
import subprocess
import tempfile
import time
import unittest

from deployment import SEED, Deployment, binary, finish, make_model, wait_for

RANDOM = random.Random(SEED)
ALPHABET = "abcdefghij klmnop\n\u00e4\u00f6\u4f60\u597d\U0001f642{}0123"


def random_text(length):
    return "".join(RANDOM.choice(ALPHABET) for _ in range(length))


class ServingTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory(prefix="hadal-model-")
        cls.model = make_model(cls.directory.name)
        cls.hadal = Deployment(cls.model, "--chat-template", "chatml").start_workers()
        cls.total_blocks = cls.hadal.free_blocks()

    @classmethod
    def tearDownClass(cls):
        cls.hadal.__exit__(None)
        cls.directory.cleanup()

    def wait_idle(self):
        # Cached prompt blocks count as free.
        wait_for(lambda: self.hadal.status()["running_requests"] == 0
                 and self.hadal.free_blocks() == self.total_blocks, "all blocks are free", 10)

    def test_answer_is_consistent(self):
        prompt = random_text(50)
        answer = self.hadal.generate("--prompt", prompt, "--max-tokens", "40", "--ignore-eos",
                                     "--seed", "7", "--prompt-logprobs")
        self.assertEqual(answer["prompt_token_ids"], [259, *prompt.encode()])
        self.assertEqual(len(answer["token_ids"]), 40)
        self.assertEqual(len(answer["logprobs"]), 40)
        self.assertEqual(answer["finish_reason"], "length")
        self.assertEqual(answer["usage"]["prompt_tokens"], len(answer["prompt_token_ids"]))
        self.assertEqual(answer["usage"]["completion_tokens"], 40)
        logprobs = answer["prompt_logprobs"]
        self.assertEqual(len(logprobs), len(answer["prompt_token_ids"]))
        self.assertIsNone(logprobs[0])
        self.assertTrue(all(-50 < x < 0 for x in logprobs[1:] + answer["logprobs"]))
        text = bytes(t for t in answer["token_ids"] if t < 256).decode(errors="replace")
        self.assertEqual(answer["text"], text)

    def test_streamed_text_is_the_whole_text(self):
        flags = ["--prompt", random_text(20), "--max-tokens", "60", "--seed", "3", "--temperature", "1"]
        whole = self.hadal.generate(*flags)["text"]
        code, streamed, err = self.hadal.run(*flags)
        self.assertEqual((code, streamed), (0, whole + "\n"), err)

    def test_stop_string_ends_the_answer(self):
        flags = ["--prompt", random_text(20), "--max-tokens", "200", "--seed", "5", "--ignore-eos",
                 "--temperature", "1"]
        text = self.hadal.generate(*flags)["text"]
        # A random model writes any byte; an argument cannot hold a 0.
        stop = next(text[i:i + 3] for i in range(30, len(text) - 3) if "\0" not in text[i:i + 3])
        answer = self.hadal.generate(*flags, "--stop", stop)
        self.assertEqual(answer["text"], text[:text.index(stop)])
        self.assertEqual(answer["finish_reason"], "stop")
        self.wait_idle()

    def test_chat_uses_the_template(self):
        answer = self.hadal.generate("--chat", "hi <|im_end|>", "--max-tokens", "5")
        ids = answer["prompt_token_ids"]
        # The user's turn and the start of the answer; the user's own <|im_end|> is text.
        self.assertEqual((ids.count(256), ids.count(257)), (2, 1))
        self.assertIn(bytes("<|im_end|>", "ascii"), bytes(i for i in ids if i < 256))

    def test_32_clients_get_what_each_gets_alone(self):
        requests = [["--prompt", random_text(RANDOM.randrange(1, 300)), "--max-tokens",
                     str(RANDOM.randrange(1, 60)), "--seed", str(i), "--temperature",
                     RANDOM.choice(["0", "0.7", "1.3"]), "--ignore-eos"] for i in range(32)]
        alone = [self.hadal.generate(*flags) for flags in requests]
        clients = [self.hadal.start("--json", *flags) for flags in requests]
        together = [finish(client) for client in clients]
        for one, many in zip(alone, together):
            self.assertEqual(one["token_ids"], many["token_ids"])
            self.assertEqual(one["logprobs"], many["logprobs"])
            self.assertEqual(one["text"], many["text"])
        self.wait_idle()

    def test_killed_client_frees_its_blocks(self):
        clients = [self.hadal.start("--prompt", random_text(200), "--max-tokens", "3000",
                                    "--ignore-eos") for _ in range(4)]
        wait_for(lambda: self.hadal.status()["running_requests"] == 4, "4 requests run")
        for client in clients:
            client.kill()
        self.wait_idle()
        for client in clients:
            client.communicate()

    def test_bad_input_names_the_field(self):
        cases = [
            (["--prompt", ""], None, ""),  # the BOS alone is a prompt
            (["--prompt", "x", "--max-tokens", "0"], "INVALID_ARGUMENT", "max_tokens"),
            (["--prompt", "x" * 5000], "INVALID_ARGUMENT", "context length"),
            (["--prompt", "x", "--temperature", "nan"], "INVALID_ARGUMENT", "temperature"),
            (["--prompt", "x", "--top-p", "0"], "INVALID_ARGUMENT", "top_p"),
            (["--prompt", "x", "--top-k", "-1"], "INVALID_ARGUMENT", "top_k"),
            (["--token-ids", "1,2,99999"], "INVALID_ARGUMENT", "token_ids"),
            (["--prompt", "x"] + ["--stop", "y"] * 17, "INVALID_ARGUMENT", "stop"),
            (["--prompt", b"caf\xe9"], "INVALID_ARGUMENT", "text"),
            (["--chat", ""], "INVALID_ARGUMENT", "messages[0].content"),
        ]
        for flags, status, words in cases:
            with self.subTest(flags=str(flags)[:60]):
                code, _, err = self.hadal.run(*flags, *(["--max-tokens", "2"] if status is None else []))
                self.assertEqual(code, 0 if status is None else 1, err)
                if status is not None:
                    self.assertIn(status, err)
                    self.assertIn(words, err)

    def test_chat_session(self):
        chat = subprocess.run([binary("hadal"), "chat", "--server", self.hadal.address],
                              input=b"hello\n/set max_tokens 8\nagain\n/clear\n/exit\n",
                              capture_output=True, timeout=60, check=False)
        self.assertEqual(chat.returncode, 0, chat.stderr)
        chat.stdout.decode()  # valid UTF-8

    def test_text_from_standard_input(self):
        prompt = random_text(40) + "\tx"
        for flag in ("--prompt", "--chat"):
            flags = ["--max-tokens", "5", "--ignore-eos"]
            given = self.hadal.generate(flag, prompt, *flags)
            read = subprocess.run([binary("hadal"), "generate", "--server", self.hadal.address,
                                   "--json", flag, "-", *flags], input=prompt.encode() + b"\n",
                                  capture_output=True, timeout=60, check=True)
            self.assertEqual(json.loads(read.stdout)["prompt_token_ids"], given["prompt_token_ids"])

    def test_bench(self):
        flags = ["--concurrency", "8", "--requests", "16", "--prompt-tokens", "130",
                 "--max-tokens", "10", "--json"]
        first, second = self.run_bench(*flags), self.run_bench(*flags)
        self.assertEqual(first["completed"], 16)
        self.assertEqual(first["errors"], {})
        self.assertNotEqual(first["seed"], second["seed"])
        self.assertEqual((first["cached_tokens"], second["cached_tokens"]), (0, 0))
        again = self.run_bench(*flags, "--seed", str(second["seed"]))
        self.assertEqual(again["seed"], second["seed"])
        self.assertGreater(again["cached_tokens"], 0)

    def run_bench(self, *flags):
        return finish(self.hadal.start(*flags, subcommand="bench"))


class OtherServersTest(unittest.TestCase):
    def test_token_ids_without_tokenizer(self):
        with tempfile.TemporaryDirectory(prefix="hadal-model-") as directory:
            make_model(directory, with_tokenizer=False)
            with Deployment(directory, ranks=1).start_workers() as hadal:
                answer = hadal.generate("--token-ids", "1,2,3", "--max-tokens", "5", "--ignore-eos")
                self.assertEqual((len(answer["token_ids"]), answer["text"]), (5, ""))
                code, out, err = hadal.run("--token-ids", "1,2,3", "--max-tokens", "5",
                                           "--ignore-eos", "--temperature", "0")
                greedy = hadal.generate("--token-ids", "1,2,3", "--max-tokens", "5", "--ignore-eos",
                                        "--temperature", "0")["token_ids"]
                self.assertEqual((code, out), (0, " ".join(map(str, greedy)) + "\n"), err)
                code, _, err = hadal.run("--prompt", "x")
                self.assertEqual(code, 1)
                self.assertIn("FAILED_PRECONDITION", err)

    def test_drain(self):
        with tempfile.TemporaryDirectory(prefix="hadal-model-") as directory:
            make_model(directory)
            with Deployment(directory, "--drain-timeout", "250").start_workers() as hadal:
                client = hadal.start("--json", "--prompt", "x", "--max-tokens", "1500", "--ignore-eos")
                wait_for(lambda: hadal.status()["running_requests"] == 1, "the request runs")
                rank = hadal.rank_pids()[1]
                os.kill(rank, signal.SIGSTOP)  # so that the request is still there when all has been asked
                try:
                    hadal.server.send_signal(signal.SIGTERM)
                    self.check_draining(hadal)
                finally:
                    os.kill(rank, signal.SIGCONT)
                self.assertEqual(len(finish(client)["token_ids"]), 1500)
                self.assertEqual(hadal.server.wait(timeout=20), 0)

    def check_draining(self, hadal):
        wait_for(lambda: hadal.status()["draining"], "the server drains")
        status = hadal.status()
        self.assertFalse(status["ready"])
        self.assertEqual(len(status["worker_groups"]), 1)
        ready = subprocess.run([binary("hadal"), "ready", "--server", hadal.address],
                               capture_output=True, text=True, timeout=20, check=False)
        self.assertEqual(ready.returncode, 1)
        self.assertIn("the server is shutting down", ready.stderr)
        code, _, err = hadal.run("--prompt", "x")
        self.assertEqual(code, 1)
        self.assertIn("UNAVAILABLE", err)

    def test_drain_waits_for_readers(self):
        # GenerateRequest: text "x"; 1500 tokens past any end; 20 log-probabilities of each. More than is
        # under way unread, and less than the server keeps for a reader.
        request = b"\x12\x01x" b"\x22\x05\x30\xdc\x0b\x48\x01" b"\x2a\x02\x08\x14"
        with tempfile.TemporaryDirectory(prefix="hadal-model-") as directory:
            make_model(directory)
            for patient in (True, False):
                with self.subTest(patient=patient), Deployment(directory).start_workers() as hadal:
                    client = subprocess.Popen(
                        [binary("hadal-service-probe"), "late", hadal.address,
                         "/hadal.v1.GenerateService/Generate", request.hex()],
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                    wait_for(lambda: hadal.status()["generated_tokens"] == 1500, "all is generated")
                    hadal.server.send_signal(signal.SIGTERM)
                    time.sleep(2.5)
                    self.assertIsNone(hadal.server.poll())
                    if not patient:
                        hadal.server.send_signal(signal.SIGTERM)
                        self.assertEqual(hadal.server.wait(timeout=10), 0)
                    _, err = client.communicate(timeout=20)
                    self.assertEqual(client.returncode, 0 if patient else 1, err)
                    self.assertEqual(hadal.server.wait(timeout=10), 0)

    def test_queue_is_bounded(self):
        with tempfile.TemporaryDirectory(prefix="hadal-model-") as directory:
            make_model(directory)
            with Deployment(directory, "--max-waiting-requests", "3") as hadal:  # no workers
                waiting = [hadal.start("--prompt", "x") for _ in range(3)]
                wait_for(lambda: hadal.status()["waiting_requests"] == 3, "3 requests wait")
                code, _, err = hadal.run("--prompt", "x")
                self.assertEqual(code, 1)
                self.assertIn("RESOURCE_EXHAUSTED", err)
                code, _, err = hadal.run("--prompt", "x", "--timeout", "0.5")
                self.assertIn("RESOURCE_EXHAUSTED", err)
                waiting[0].kill()
                wait_for(lambda: hadal.status()["waiting_requests"] == 2, "2 requests wait")
                code, _, err = hadal.run("--prompt", "x", "--timeout", "0.5")
                self.assertIn("DEADLINE_EXCEEDED", err)
                for client in waiting:
                    client.kill()
                    client.communicate()


if __name__ == "__main__":
    unittest.main(verbosity=2)
