"""What a user is told when flags are wrong, when there is no server, and when it has no workers."""

import json
import os
import subprocess
import tempfile
import time
import unittest

from deployment import Deployment, binary, make_model

PROGRAMS = ["hadal", "hadal-server", "hadal-worker", "hadal-convert", "hadal-fp8-cast-bf16",
            "hadal-bf16-cast-fp8"]


def run(*command, stdin=b"", **environment):
    start = time.monotonic()
    done = subprocess.run([binary(command[0]), *command[1:]], input=stdin, capture_output=True,
                          timeout=60, check=False,
                          # How AddressSanitizer finds that it is OpenMPI which keeps what it allocated.
                          env=dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1",
                                   OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                                   ASAN_OPTIONS="fast_unwind_on_malloc=0",
                                   LSAN_OPTIONS="print_suppressions=0", **environment))
    done.seconds = time.monotonic() - start
    done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
    return done


class FlagsTest(unittest.TestCase):
    def test_wrong_flags_are_named(self):
        cases = [
            ("hadal chta --prompt x", "chta"),
            ("hadal model-info --frob", "--frob"),
            ("hadal-server --frob", "--frob"),
            ("hadal-worker --frob", "--frob"),
            ("hadal-convert --frob", "--frob"),
            ("hadal-server", "--model"),
            ("hadal generate", "--prompt, --chat or --token-ids"),
            ("hadal generate --prompt x --seed -1", "--seed: -1"),
            ("hadal bench --seed 18446744073709551616", "--seed: 18446744073709551616"),
            ("hadal ready --wait nan", "--wait: nan"),
            ("hadal ready --wait -5", "--wait: -5"),
            ("hadal generate --prompt x --timeout 1e300", "--timeout: 1e300"),
            ("hadal ready --server localhost", "--server: 'localhost'"),
            ("hadal-worker --model x --server localhost:0", "--server: 'localhost:0'"),
            ("hadal-server --model x --listen 127.0.0.1", "--listen: '127.0.0.1'"),
            ("hadal-server --model x --worker-listen 127.0.0.1:99999", "--worker-listen: '127.0.0.1:99999'"),
            ("hadal-server --model x --drain-timeout nan", "--drain-timeout: nan"),
            ("hadal-worker --model x --step-timeout nan", "--step-timeout: nan"),
        ]
        for command, words in cases:
            with self.subTest(command=command):
                done = run(*command.split())
                self.assertNotIn(done.returncode, (0, 1))
                self.assertEqual(done.stdout, "")
                self.assertIn(words, done.stderr)
                self.assertLessEqual(len(done.stderr.splitlines()), 2)

    def test_every_program_says_its_version(self):
        for program in PROGRAMS:
            done = run(program, "--version")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertRegex(done.stdout, rf"^{program} \d+\.\d+\.\d+\n$")

    def test_a_server_that_is_not_there(self):
        done = run("hadal", "status", "--server", "127.0.0.1:1")
        self.assertEqual(done.returncode, 1)
        self.assertIn("no hadal-server answers at 127.0.0.1:1", done.stderr)
        done = run("hadal", "ready", "--server", "127.0.0.1:1", "--wait", "1")
        self.assertEqual(done.returncode, 1)
        self.assertIn("the server does not answer", done.stderr)


class WaitingTest(unittest.TestCase):
    """A server without workers."""

    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory(prefix="hadal-model-")
        cls.hadal = Deployment(make_model(cls.directory.name), "--chat-template", "chatml")

    @classmethod
    def tearDownClass(cls):
        cls.hadal.__exit__(None)
        cls.directory.cleanup()

    def client(self, subcommand, *flags, **kwargs):
        return run("hadal", subcommand, "--server", self.hadal.address, *flags, **kwargs)

    def test_proxies_are_passed_by(self):
        done = self.client("status", http_proxy="http://127.0.0.1:1", no_proxy="")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("not ready: no worker group has joined yet", done.stdout)

    def test_a_call_says_what_it_waits_for(self):
        done = self.client("generate", "--prompt", "x", "--timeout", "3")
        self.assertEqual(done.returncode, 1)
        waiting, ended = done.stderr.splitlines()
        self.assertEqual(waiting, "waiting: no worker group has joined yet")
        self.assertIn("DEADLINE_EXCEEDED", ended)
        self.assertIn("--timeout 3 s: no worker group has joined yet", ended)

    def test_bench_fails_with_what_its_requests_were_told(self):
        flags = ["--requests", "3", "--concurrency", "3", "--timeout", "3"]
        done = self.client("bench", "--json", *flags)
        self.assertEqual(done.returncode, 1)
        report = json.loads(done.stdout)
        self.assertEqual((report["completed"], report["errors"]), (0, {"DEADLINE_EXCEEDED": 3}))
        self.assertIn("no worker group", report["error_samples"]["DEADLINE_EXCEEDED"])
        self.assertIn("waiting: no worker group has joined yet\n", done.stderr)
        self.assertIn("0 of 3 requests done, 0 tokens\n", done.stderr)
        self.assertIn("3 x DEADLINE_EXCEEDED: not answered within --timeout 3 s", done.stderr)
        self.assertIn("hadal: DEADLINE_EXCEEDED: 3 of 3 requests failed", done.stderr)

    def test_a_scripted_chat_fails(self):
        done = self.client("chat", "--timeout", "0.5", stdin=b"hello\n/exit\n")
        self.assertEqual(done.returncode, 1)
        self.assertIn("DEADLINE_EXCEEDED", done.stderr)
        for line in (b"/frob", b"/set temperature hot"):
            done = self.client("chat", stdin=line + b"\n")
            self.assertEqual(done.returncode, 1)
            self.assertIn("INVALID_ARGUMENT: " + line.decode(), done.stderr)

    def test_the_workers_port_says_so(self):
        for command in (["status"], ["ready", "--wait", "30"], ["generate", "--prompt", "x"]):
            done = run("hadal", *command, "--server", self.hadal.worker_address)
            self.assertEqual(done.returncode, 1)
            self.assertLess(done.seconds, 10)
            self.assertIn("its --worker-listen address is for hadal-worker", done.stderr)

    def test_a_port_in_use_is_one_sentence(self):
        done = run("hadal-server", "--model", self.directory.name, "--listen", self.hadal.address)
        self.assertEqual(done.returncode, 1)
        errors = [line for line in done.stderr.splitlines() if "[server]" not in line]
        self.assertEqual(errors, [])
        self.assertIn(f"--listen {self.hadal.address}: cannot listen there", done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
