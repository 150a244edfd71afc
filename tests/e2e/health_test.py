"""What gRPC tools ask every server: health, which follows the worker group, and reflection."""

import os
import re
import signal
import subprocess
import tempfile
import unittest

from deployment import Deployment, binary, make_model, wait_for

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROTOS = os.path.join(ROOT, "proto/hadal/v1")
PUBLIC = ["chat", "generate", "model", "tokenizer"]


def probe(command, address, *more):
    done = subprocess.run([binary("hadal-service-probe"), command, address, *more],
                          capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def declared_methods():
    """SERVICE/METHOD of every public service, as the proto files declare them."""
    methods = []
    for name in PUBLIC:
        with open(os.path.join(PROTOS, name + ".proto"), encoding="utf-8") as proto:
            text = proto.read()
        for service, body in re.findall(r"^service (\w+) \{(.*?)^\}", text, re.M | re.S):
            methods += [f"hadal.v1.{service}/{m}" for m in re.findall(r"^  rpc (\w+)", body, re.M)]
    assert len(methods) >= len(PUBLIC)
    return sorted(methods)


class HealthTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory(prefix="hadal-model-")
        cls.model = make_model(cls.directory.name)

    @classmethod
    def tearDownClass(cls):
        cls.directory.cleanup()

    def wait_health(self, hadal, health):
        wait_for(lambda: probe("check", hadal.address) == [health], f"health is {health}", 30,
                 alive=hadal.server)

    def test_health_follows_the_worker_group(self):
        with Deployment(self.model) as hadal:
            self.assertEqual(probe("check", hadal.address), ["NOT_SERVING"])
            for service in {method.split("/")[0] for method in declared_methods()}:
                self.assertEqual(probe("check", hadal.address, service), ["NOT_SERVING"])
            unknown = subprocess.run([binary("hadal-service-probe"), "check", hadal.address, "nobody"],
                                     capture_output=True, text=True, timeout=20, check=False)
            self.assertEqual(unknown.returncode, 1)
            self.assertIn("service:", unknown.stderr)
            with subprocess.Popen([binary("hadal-service-probe"), "watch", hadal.address],
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                  text=True) as watch:
                hadal.start_workers()
                self.wait_health(hadal, "SERVING")
                os.kill(hadal.rank_pids()[1], signal.SIGKILL)
                self.wait_health(hadal, "NOT_SERVING")
                wait_for(lambda: hadal.workers.poll() is not None, "mpirun ends", 20)
                self.assertEqual(probe("check", hadal.address), ["NOT_SERVING"])
                hadal.start_workers()
                self.wait_health(hadal, "SERVING")
                # A server that stops says so first, and does not wait for those who watch.
                hadal.server.send_signal(signal.SIGTERM)
                self.assertEqual(hadal.server.wait(timeout=20), 0)
                told, _ = watch.communicate(timeout=20)
            self.assertEqual(told.split(), ["NOT_SERVING", "SERVING", "NOT_SERVING", "SERVING",
                                            "NOT_SERVING"])

    def test_reflection_lists_the_public_services(self):
        with Deployment(self.model) as hadal:
            listed = probe("methods", hadal.address)
            ours = sorted(m for m in listed if m.startswith("hadal."))
            self.assertEqual(ours, declared_methods())


if __name__ == "__main__":
    unittest.main(verbosity=2)
