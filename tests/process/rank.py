"""`python rank.py SCRIPT WORD…`: a script of ranks that begins and ends as a worker does.

It imports no trackers, which take 5 s, and leaves what gloo's threads hold to the kernel.
"""

import os
import runpy
import sys

from vitscale.worker.__main__ import _without_trackers

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    with _without_trackers():
        runpy.run_path(sys.argv[0], run_name="__main__")
    sys.stdout.flush()
    os._exit(0)
