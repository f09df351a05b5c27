import importlib.util
import json
from pathlib import Path

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.report.write import write_report

GOLDEN = Path(__file__).parents[2] / "golden"
HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>{{7*7}}|`[a](b)`\x1b[31m\u202e"


@pytest.fixture(scope="session")
def make():
    """`tests/golden/make_study.py`: writes launches with the real schema and writer."""
    spec = importlib.util.spec_from_file_location("golden_make_study", GOLDEN / "make_study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def result():
    """The golden study, analysed."""
    return analyse(GOLDEN / "study")


@pytest.fixture(scope="session")
def report(result, tmp_path_factory):
    """Folder of the golden study's report."""
    return write_report(tmp_path_factory.mktemp("golden"), result).parent


@pytest.fixture(scope="session")
def hostile(make, tmp_path_factory):
    """Folder of the report of a study whose every name is an attack, and what was analysed."""
    root = make.write_study(tmp_path_factory.mktemp("hostile") / "study", HOSTILE)
    resolved = json.loads((root / "resolved.json").read_text())
    (root / "resolved.json").write_text(json.dumps({**resolved, "name": HOSTILE, "deepspeed": {HOSTILE: "\ud800"}}))
    for value in (HOSTILE, '=HYPERLINK("http://x")'):
        for size in (1, 2):
            spec = make.make_spec(size, deepspeed={"note": value})
            make.write_launch(root, spec, 0, 0.1, device=HOSTILE)
            make.write_launch(root, spec, 1, 0.1, status="failed", reason="=1+1 " + HOSTILE)
    found = analyse(root)
    return write_report(root, found).parent, found
