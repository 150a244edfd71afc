"""Runs that are killed, run out of space, meet damage or each other; and what they may cost."""

import fcntl
import os
import random
import resource
import shutil
import signal
import subprocess
import time
import unittest

from tools.tool_case import (BAD_SOURCE, CANNOT_WRITE, DIFFERS, DONE, SEED, ToolCase, contents,
                             write_model, write_zeros)

KILLS = 50
RANDOM = random.Random(SEED)


def roomy(hf):
    """A few megabytes, so that a run takes longer than its start."""
    return hf | {"vocab_size": 5000, "moe_intermediate_size": 300, "bos_token_id": 0,
                 "eos_token_id": 1}


class CrashTest(ToolCase):
    def expected(self, tool, *flags):
        """The files of a run that nothing disturbs."""
        whole = self.root / "whole"
        self.run_tool(tool, *flags, out=whole)
        return contents(whole)

    def check_state(self, expected, complete):
        """Every file that has its name has its content; without config.json nothing loads."""
        found = contents(self.out)
        for name, content in found.items():
            if not name.endswith(".partial"):
                self.assertEqual(content, expected[name], name)
        if "config.json" in found:
            missing = set(expected) - set(found) - {"model.safetensors.index.json"}
            self.assertEqual(missing, set())
        if complete:
            self.assertEqual(found, expected)

    def kill_at_random(self, tool, *flags):
        expected = self.expected(tool, *flags)
        start = time.monotonic()
        self.run_tool(tool, *flags)
        duration = time.monotonic() - start
        shutil.rmtree(self.out)
        kills = resumed = 0
        while kills < KILLS // 2:
            process = subprocess.Popen(self.command(tool, *flags), stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
            time.sleep(RANDOM.uniform(0, duration))
            process.send_signal(signal.SIGKILL)
            code = process.wait()
            if self.out.exists():
                self.check_state(expected, complete=code == DONE)
            if code == DONE:
                shutil.rmtree(self.out)
                continue
            kills += 1
            resumed += self.out.exists() and any(self.out.glob("*.safetensors"))
        self.run_tool(tool, *flags)
        self.check_state(expected, complete=True)
        return resumed

    def test_killed_casts_go_on(self):
        write_model(self.source, "v3", "fp8", 5, roomy)
        self.assertGreater(self.kill_at_random("hadal-fp8-cast-bf16"), 0)

    def test_killed_conversions_go_on(self):
        hf, _ = write_model(self.source, "v3", "bf16", 3, roomy)
        self.assertGreater(self.kill_at_random("hadal-convert", "--model-parallel", 4,
                                               "--n-experts", hf["n_routed_experts"]), 0)

    def test_what_is_finished_is_kept_and_what_is_damaged_is_written_again(self):
        write_model(self.source, "v2", "fp8", 3)
        expected = self.expected("hadal-fp8-cast-bf16")
        self.run_tool("hadal-fp8-cast-bf16")
        shards = sorted(self.out.glob("*.safetensors"))
        inodes = [path.stat().st_ino for path in shards]
        said, _ = self.run_tool("hadal-fp8-cast-bf16")
        self.assertIn("0 shards written, 3 kept", said)
        self.assertEqual([path.stat().st_ino for path in shards], inodes)
        damaged = bytearray(shards[1].read_bytes())
        damaged[RANDOM.randrange(len(damaged))] ^= 1 << RANDOM.randrange(8)
        shards[1].write_bytes(damaged)
        _, error = self.run_tool("hadal-fp8-cast-bf16", "--verify", expect=DIFFERS)
        self.assertIn(shards[1].name, error)
        self.assertNotIn(shards[0].name, error)
        self.assertEqual(shards[1].read_bytes(), damaged)  # --verify writes nothing
        said, _ = self.run_tool("hadal-fp8-cast-bf16")
        self.assertIn("1 shard written, 2 kept", said)
        self.assertEqual(contents(self.out), expected)

    def test_verify_misses_nothing(self):
        write_model(self.source, "moonlight", "fp8", 2)
        self.run_tool("hadal-fp8-cast-bf16", "--verify", expect=DIFFERS)  # nothing there
        self.assertFalse(self.out.exists())
        self.run_tool("hadal-fp8-cast-bf16")
        for name, content in contents(self.out).items():
            (self.out / name).write_bytes(content + b"\n")
            _, error = self.run_tool("hadal-fp8-cast-bf16", "--verify", expect=DIFFERS)
            self.assertIn(name, error)
            (self.out / name).unlink()
            self.run_tool("hadal-fp8-cast-bf16", "--verify", expect=DIFFERS)
            (self.out / name).write_bytes(content)
        self.run_tool("hadal-fp8-cast-bf16", "--verify")

    def test_another_model_in_the_same_place_leaves_no_mixture(self):
        write_model(self.source, "v3", "fp8", 3)
        other = self.root / "other"
        write_model(other, "kimi-k2", "fp8", 3)
        self.run_tool("hadal-fp8-cast-bf16", source=other)
        expected = self.expected("hadal-fp8-cast-bf16")
        # The second shard cannot be written: a directory has its temporary name.
        second = sorted(self.out.glob("*.safetensors"))[1]
        blocked = self.out / (second.name + ".partial")
        blocked.mkdir()
        _, error = self.run_tool("hadal-fp8-cast-bf16", expect=CANNOT_WRITE)
        self.assertIn("Is a directory", error)
        self.assertFalse((self.out / "config.json").exists())
        self.assertFalse((self.out / "model.safetensors.index.json").exists())
        blocked.rmdir()
        self.run_tool("hadal-fp8-cast-bf16")
        self.assertEqual(contents(self.out), expected)

    def test_one_run_at_a_time(self):
        write_model(self.source, "v2-lite", "fp8")
        self.out.mkdir()
        descriptor = os.open(self.out, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _, error = self.run_tool("hadal-fp8-cast-bf16", expect=CANNOT_WRITE)
        self.assertIn("another run is writing", error)
        os.close(descriptor)
        self.run_tool("hadal-fp8-cast-bf16")

    def test_a_dry_run_writes_nothing(self):
        hf, _ = write_model(self.source, "v3", "fp8", 2)
        for tool, *flags in (("hadal-fp8-cast-bf16",),
                             ("hadal-convert", "--model-parallel", 2, "--n-experts",
                              hf["n_routed_experts"])):
            said, _ = self.run_tool(tool, *flags, "--dry-run")
            self.assertFalse(self.out.exists())
            self.run_tool(tool, *flags)
            for name in contents(self.out):
                self.assertIn(f"{self.out}/{name}", said)
            self.assertIn("to write,", said)
            shutil.rmtree(self.out)

    def test_a_file_that_cannot_grow(self):
        write_model(self.source, "v3", "fp8", 3, roomy)
        expected = self.expected("hadal-fp8-cast-bf16")
        limit = max(len(c) for c in expected.values()) // 2

        def limited():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        done = subprocess.run(self.command("hadal-fp8-cast-bf16"), capture_output=True, text=True,
                              preexec_fn=limited, check=False)
        self.assertEqual(done.returncode, CANNOT_WRITE, done.stderr)
        self.assertIn("File too large", done.stderr)
        self.assertEqual([n for n in contents(self.out) if n.endswith(".partial")], [])
        self.check_state(expected, complete=False)
        self.run_tool("hadal-fp8-cast-bf16")
        self.check_state(expected, complete=True)

    def on_tmpfs(self, options, script):
        """Runs `script` with $1 the mounted directory, in a mount namespace of its own."""
        mount = self.root / "disk"
        mount.mkdir(exist_ok=True)
        setup = f'mount -t tmpfs -o {options} none "$1" || exit 77\n'
        as_root = [] if os.geteuid() == 0 else ["-r"]
        done = subprocess.run(["unshare", *as_root, "-m", "sh", "-c", setup + script, "sh", mount,
                               *map(str, self.command("hadal-fp8-cast-bf16", out=f"{mount}/out"))],
                              capture_output=True, text=True, check=False)
        if done.returncode == 77 or "unshare failed" in done.stderr:
            self.skipTest(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
        return done

    def test_too_little_space_is_seen_before_the_first_byte(self):
        write_model(self.source, "v3", "fp8", 3)
        done = self.on_tmpfs("size=1m", 'd=$1; shift; "$@"; echo "exit $?"; ls -A "$d"')
        self.assertEqual(done.stdout.split(), ["exit", str(CANNOT_WRITE)])
        self.assertRegex(done.stderr, r"has 1\.00 MiB free, but \d.* are needed; free .* there")

    def test_a_disk_that_fills_up_midway(self):
        # A disk without room for another name fails like one without room for a byte.
        write_model(self.source, "v3", "fp8", 3)
        self.expected("hadal-fp8-cast-bf16")
        done = self.on_tmpfs("size=64m,nr_inodes=4", f"""d=$1; shift
            "$@"; echo "exit $?"; ls -A "$d/out"
            mount -o remount,nr_inodes=100 "$d"; "$@"; echo "exit $?"
            diff -r "$d/out" {self.root}/whole && echo same""")
        lines = done.stdout.splitlines()
        self.assertEqual(lines[:2], [f"exit {CANNOT_WRITE}", "model-00001-of-00003.safetensors"],
                         done.stdout + done.stderr)
        self.assertIn("No space left on device; what was finished stays", done.stderr)
        self.assertRegex(lines[-3], r"(2 shards|1 shard) written, [12] kept")
        self.assertEqual(lines[-2:], ["exit 0", "same"])

    def test_a_shard_that_may_not_be_read(self):
        write_model(self.source, "v3", "fp8", 3)
        shard = self.source / "model-00002-of-00003.safetensors"
        shard.chmod(0)
        # To root everything is readable, but for a capability that can be dropped.
        drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
        done = subprocess.run([*(drop if os.geteuid() == 0 else []),
                               *map(str, self.command("hadal-fp8-cast-bf16"))],
                              capture_output=True, text=True, check=False)
        if "setpriv" in done.stderr:
            self.skipTest(f"capabilities cannot be dropped here: {done.stderr.strip()}")
        self.assertEqual(done.returncode, BAD_SOURCE, done.stderr)
        self.assertRegex(done.stderr, rf"{shard}: .*[Pp]ermission")
        self.assertFalse(self.out.exists())

    def test_memory_stays_far_below_the_size_of_the_checkpoint(self):
        # 1 GiB of zeros that occupy no disk, in one tensor and in many; the output, which is zero
        # too, is there already: both are read whole.
        codes = {"big.weight": (16384, 32768)}
        codes |= {f"m{i}.weight": (2048, 4096) for i in range(64)}
        layout = {name + "_scale_inv": ("F32", (rows // 128, columns // 128))
                  for name, (rows, columns) in codes.items()}
        layout |= {name: ("F8_E4M3", shape) for name, shape in codes.items()}
        write_zeros(self.source, {}, layout)
        write_zeros(self.out, {}, {name: ("BF16", shape) for name, shape in codes.items()})
        with open(self.root / "said", "w+") as said:
            process = subprocess.Popen(self.command("hadal-fp8-cast-bf16"), stdout=said)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            said.seek(0)
            self.assertIn("0 shards written, 1 kept", said.read())
        self.assertEqual(process.returncode, DONE)
        # Sanitizers keep books of their own.
        limit = 1 << 30 if "asan" in self.command("hadal-convert")[0].parts else 256 << 20
        self.assertLess(usage.ru_maxrss * 1024, limit)


if __name__ == "__main__":
    unittest.main()
