"""External commands within a deadline, and the end of everything that this run has started."""

import os
import pathlib
import secrets
import signal
import subprocess
import time

# Stands in the environment of every process of this run, whatever session or parent it has.
TAG = "HADAL_MEASURE_GPUS"
_token = secrets.token_hex(8)


class OutOfTime(Exception):
    """The run's time is over."""


class Clock:
    """The time of the whole run."""

    def __init__(self, seconds):
        self._end = time.monotonic() + seconds

    def left(self):
        return self._end - time.monotonic()

    def limit(self, seconds):
        """A timeout of at most `seconds` that ends with the run."""
        if self.left() <= 0:
            raise OutOfTime("the time of the run is over")
        return min(seconds, self.left())


def mark_environment():
    """Call once, before anything is started."""
    os.environ[TAG] = _token


def _started():
    wanted = f"{TAG}={_token}".encode()
    for directory in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            environment = (directory / "environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0") and int(directory.name) != os.getpid():
            yield int(directory.name)


def kill_started():
    """Ends every process of this run; returns how many there were."""
    killed = set()
    for _ in range(50):
        found = list(_started())
        if not found:
            break
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        killed.update(found)
        time.sleep(0.05)
    return len(killed)


def run(command, clock, timeout, **options):
    """The finished process; its group is killed at the timeout. Raises RuntimeError when it fails."""
    name = os.path.basename(command[0])
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, start_new_session=True,
                          **options) as process:
        try:
            out, err = process.communicate(timeout=clock.limit(timeout))
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise RuntimeError(f"{name} ran into its timeout of {error.timeout:.0f} s") from None
            raise
    if process.returncode != 0:
        raise RuntimeError(f"{name} ended with {process.returncode}: {last_lines(err or out)}")
    return out


def last_lines(text, count=6):
    return " | ".join(line.strip() for line in text.strip().splitlines()[-count:])
