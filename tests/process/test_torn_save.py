"""Being killed in the middle of a save: the checkpoint before it, or the new one, and nothing between."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(60)]


def test_killed_at_any_touch_of_the_file_system_a_whole_checkpoint_is_left(tmp_path):
    """Fault 24: killed while saving a checkpoint."""
    script = Path(__file__).with_name("torn_save.py")
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    steps = [int(line) for line in done.stdout.splitlines()]
    assert len(steps) > 20
    assert steps == sorted(steps), "once the new checkpoint counts, it counts"
    assert set(steps) == {1, 2}
