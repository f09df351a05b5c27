"""Saves a checkpoint over and over, each time ended by SIGKILL one touch of the file system later than the time before.

Prints one line for each kill: the step of the newest checkpoint that is left, every file of it held against its sha256.
The last line is of the save that came to its end.
"""

import os
import signal
import sys
from pathlib import Path

import torch

from vitscale.records import checkpoint as on_disk
from vitscale.records.checkpoint import Checkpoint
from vitscale.worker import checkpoint
from vitscale.worker.distributed import Ranks

TOUCHES = {"open", "os.mkdir", "os.rename", "os.chmod", "os.remove", "os.rmdir", "os.scandir", "os.listdir"}
ALONE = Ranks(0, 0, 1, 1, torch.device("cpu"))


class Engine:
    """Writes two files, as an engine of one rank does."""

    def save(self, folder):
        (folder / "part").mkdir()
        torch.save({"weight": torch.ones(9)}, folder / "part" / "weights.pt")
        torch.save({"step": torch.ones(9)}, folder / "optimizer.pt")


def save(root, step):
    saver = checkpoint.Saver(root, 1, ALONE)
    saver.save(Checkpoint(run_id="a", spec={}, step=step, seconds=0.0), Engine())
    saver.settle()


def save_until(touch, root):
    """In a process of its own: SIGKILL before this touch of the file system; whether it came that far."""
    child = os.fork()
    if child == 0:
        left = touch

        def count(event, _arguments):
            nonlocal left
            if event in TOUCHES:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        save(root, 2)
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def main(folder):
    checkpoint.barrier = lambda: None
    os.fsync = lambda _: None  # it takes time and matters to a power cut only
    touch, killed = 0, True
    while killed:
        root = folder / str(touch)
        save(root, 1)
        killed = save_until(touch, root)
        sys.stdout.write(f"{on_disk.inspect(on_disk.newest(root)).step}\n")
        save(root, 3)
        assert [path.name for path in root.iterdir()] == ["step00000003"], "what was torn is cleared away"
        touch += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
