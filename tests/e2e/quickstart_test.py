"""quickstart.sh from the point where everything is built: what it says when something does not start."""

import os
import shutil
import subprocess
import tempfile
import unittest

from deployment import BIN, make_model

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def write_script(path, text):
    with open(path, "w", encoding="utf-8") as out:
        out.write("#!/bin/sh\n" + text)
    os.chmod(path, 0o755)


class QuickstartTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="hadal-quickstart-")
        self.addCleanup(directory.cleanup)
        self.root = directory.name
        self.bin = os.path.join(self.root, "build/release/bin")
        os.makedirs(self.bin)
        os.makedirs(os.path.join(self.root, "scripts"))
        for program in ("hadal", "hadal-server", "hadal-worker"):
            os.symlink(os.path.join(BIN, program), os.path.join(self.bin, program))
        write_script(os.path.join(self.root, "build/release/build.ninja"), "")
        shutil.copy(os.path.join(ROOT, "scripts/quickstart.sh"), os.path.join(self.root, "scripts"))
        write_script(os.path.join(self.root, "scripts/install_deps.sh"), "")
        write_script(os.path.join(self.root, "cmake"), "")
        self.model = os.path.join(self.root, "model")
        os.mkdir(self.model)
        make_model(self.model)

    def replace(self, program, text):
        os.remove(os.path.join(self.bin, program))
        write_script(os.path.join(self.bin, program), text)

    def quickstart(self, *flags):
        done = subprocess.run(
            [os.path.join(self.root, "scripts/quickstart.sh"), "--model", self.model, *flags],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
            env=dict(os.environ, PATH=self.root + ":" + os.environ["PATH"]))
        return done.returncode, done.stderr

    def test_the_workers_first_error_is_shown(self):
        code, err = self.quickstart("--ranks", "7", "--prompt", "x")
        self.assertEqual(code, 1)
        self.assertRegex(err, r"error \[worker \d/7\] .*7 does not divide")
        self.assertIn("quickstart: the workers ended; see build/quickstart/workers.log", err)
        self.assertNotIn("MPI", err)

    def test_a_chat_that_is_not_served_is_an_error(self):
        code, err = self.quickstart("--ranks", "1", "--prompt", "x")
        self.assertEqual(code, 1)
        self.assertIn("hadal: FAILED_PRECONDITION", err)  # of a server that became ready

    def test_waiting_has_an_end_and_says_so_meanwhile(self):
        self.replace("hadal-worker", "echo still busy\nexec sleep 60\n")
        code, err = self.quickstart("--ranks", "1", "--wait", "7")
        self.assertEqual(code, 1)
        self.assertRegex(err, r"Loading \S+ on 1 ranks... [56] s\n")
        self.assertIn("no worker group has joined yet", err)
        self.assertIn("still busy", err)
        self.assertIn("quickstart: not ready within --wait 7 s", err)

    def test_a_server_that_ends_is_noticed(self):
        self.replace("hadal-worker", "exec sleep 60\n")
        self.replace("hadal-server", "cat >&2 <<END\nx info [server] serving gRPC on 127.0.0.1:1\n"
                     "x info [server] waiting for workers on 127.0.0.1:2\n"
                     "x error [server] out of luck\nx info [server] bye\nEND\nexec sleep 2\n")
        code, err = self.quickstart("--ranks", "1")
        self.assertEqual(code, 1)
        self.assertIn("x error [server] out of luck\n", err)
        self.assertIn("quickstart: hadal-server ended", err)
        self.assertNotIn("bye", err)


if __name__ == "__main__":
    unittest.main(verbosity=2)
