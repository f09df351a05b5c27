"""A rank that stands in a library still says where it stands."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = """
import ctypes, sys
from vitscale.worker import hang

hang.answer(3)
hang.BEGUN.count += 5
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(mutex)
print("ready", flush=True)
libc.pthread_mutex_lock(mutex)  # for ever, and no handler of Python's runs
"""


def wait_until_asleep(pid, looks=5):
    """Until its main thread sleeps whenever it is looked at: then it stands in the lock."""
    asleep, deadline = 0, time.monotonic() + 20
    while asleep < looks:
        assert time.monotonic() < deadline
        state = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        asleep = asleep + 1 if state == "S" else 0
        time.sleep(0.02)


def test_a_rank_that_stands_in_a_library_tells_its_stacks_and_how_many_collectives_it_has_begun():
    command = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            wait_until_asleep(process.pid)
            os.kill(process.pid, signal.SIGQUIT)
            told = []
            while not told or "collectives" not in told[-1]:
                told.append(process.stderr.readline())
            assert process.poll() is None
        finally:
            process.kill()
    assert told[-1] == "rank 3 has begun 5 collectives\n"
    assert '  File "<string>", line 10 in <module>\n' in told
