"""The end of a round is the end of everything its ranks have started."""

import subprocess
import sys
import time

import psutil

from vitscale.launch.processes import end_sessions

# A rank that compiles: ninja gives each compiler a process group of its own.
RANK = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_compiler_in_a_process_group_of_its_own_ends_with_its_rank():
    rank = subprocess.Popen(
        [sys.executable, "-c", RANK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    child = psutil.Process(int(rank.stdout.readline()))
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        end_sessions([rank])
        deadline = time.monotonic() + 5
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        rank.stdout.close()
