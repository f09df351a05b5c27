"""The guide's example of an engine: one file and one line, put into a copy of the package, is an engine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import launches, overrides

import vitscale

pytest.importorskip("torch")

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "engines.md"


@pytest.fixture
def extended(tmp_path):
    """A folder with a copy of the package that has the guide's engine."""
    package = tmp_path / "lib" / "vitscale"
    shutil.copytree(Path(vitscale.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    file, line = re.findall(r"```python\n(.*?)```", GUIDE.read_text().partition("## Adding an engine")[2], re.DOTALL)
    (package / "worker" / "engines" / "flat.py").write_text(file)
    study = package / "config" / "study.py"
    text, count = re.subn(r"^EngineName = .*\n", lambda _: line, study.read_text(), flags=re.MULTILINE)
    assert count == 1
    study.write_text(text)
    return package.parent


def test_the_guides_engine_is_planned_run_and_follows_the_plain_loop(extended, store, tmp_path):
    environ = {**os.environ, "VITSCALE_DATA": str(store), "PYTHONPATH": str(extended)}
    words = overrides("engine=ddp,flat", "world_size=2", "steps=2")
    command = [sys.executable, "-m", "vitscale", "run", "quick", *words, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (manifest,) = launches(tmp_path / "out", "flat").values()
    assert manifest["status"] == "ok"
    assert manifest["parity"]["ok"], manifest["parity"]


def test_the_line_of_the_guide_has_every_engine_there_is():
    from typing import get_args

    from vitscale.config.study import EngineName

    line = GUIDE.read_text().partition("EngineName = Literal[")[2].partition("]")[0]
    assert re.findall(r'"(\w+)"', line) == [*get_args(EngineName), "flat"]
