"""What a rank does before its first step."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

IMPORTS = """
import sys
from vitscale.worker.__main__ import _without_trackers

with _without_trackers():
    import timm
    import deepspeed
assert not {name.partition(".")[0] for name in sys.modules} & {"wandb", "mlflow"}
import json
import importlib.util
print(json.dumps([importlib.util.find_spec(name) is not None for name in ("wandb", "mlflow")]))
"""


@pytest.mark.skipif(not (find_spec("wandb") and find_spec("mlflow")), reason="W&B or MLflow is not installed")
def test_a_rank_imports_no_tracker_and_hides_none_afterwards():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[true, true]"
