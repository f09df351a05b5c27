"""`python forking.py TURNS`: ranks that are forked of one process, which has imported what takes seconds of each start.

TURNS is a JSON file, a list: of each turn the `script` whose `main` every rank calls with `words`, the number of ranks
(`world_size`), and what their environment (`environ`) has besides. A turn begins when the one before is over, and its
ranks are new processes: nothing of the turns before is in them. They begin and end as a worker does, without trackers,
which take 5 s, and leave what gloo's threads hold to the kernel.
"""

import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path

import psutil

from vitscale.hardware.position import Position
from vitscale.worker.__main__ import _without_trackers


def take(turn, main):
    """Fork the ranks of a turn and wait for their ends; the first that failed ends all turns."""
    world_size = turn["world_size"]
    for rank in range(world_size):
        if os.fork() == 0:
            os.environ |= turn["environ"] | Position(rank, rank, world_size, world_size, "forking").variables()
            be_rank(main, turn["words"])
    for _ in range(world_size):
        _, status = os.wait()
        if status:
            sys.exit(f"a rank of {turn['script']} ended with status {os.waitstatus_to_exitcode(status)}")


def be_rank(main, words):
    """Run `main(*words)` and end."""
    status = 1
    try:
        main(*words)
        status = 0
    except BaseException:  # noqa: BLE001 (whatever it is, it is printed and ends this rank at once)
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    turns = json.loads(Path(sys.argv[1]).read_text())
    with _without_trackers():
        mains = {turn["script"]: import_module(turn["script"]).main for turn in turns}
        assert psutil.Process().num_threads() == 1, "a fork has no thread but its own"
        for turn in turns:
            take(turn, mains[turn["script"]])
