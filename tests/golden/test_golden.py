"""The committed study, its committed analysis, and the same figures by a script that shares no code with vitscale."""

import filecmp
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vitscale.analysis.analyse import analyse, write_analysis

HERE = Path(__file__).parent
STUDY = HERE / "study"


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    write_analysis(folder, analyse(STUDY))
    return json.loads((folder / "analysis.json").read_text())


def assert_same(found, wanted, where="analysis"):
    """Everything to the letter, key order too; floats to 1e-12: a CPU's vector log may differ in the last bit."""
    assert type(found) is type(wanted), where
    if isinstance(wanted, dict):
        assert list(found) == list(wanted), where
        for key in wanted:
            assert_same(found[key], wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-12, abs=1e-15), where
    else:
        assert found == wanted, where


def test_the_analysis_is_the_committed_one(analysis):
    assert_same(analysis, json.loads((HERE / "analysis.json").read_text()))


def test_an_independent_script_finds_the_same_figures(analysis):
    script = HERE / "recompute.py"
    assert "import vitscale" not in script.read_text()
    assert "from vitscale" not in script.read_text()
    ran = subprocess.run([sys.executable, "-I", script, STUDY], capture_output=True, text=True, check=True)
    recomputed = json.loads(ran.stdout)
    with_figures = {run["run_id"]: run for run in analysis["runs"] if run["step_s"]}
    assert recomputed.keys() == with_figures.keys()
    assert len(recomputed) == 7
    for run_id, wanted in recomputed.items():
        run = with_figures[run_id]
        for figure in ("step_s", "images_per_s", "speedup", "efficiency"):
            assert run[figure]["median"] == pytest.approx(wanted[figure], rel=1e-9), (run_id, figure)
        shares = {part: share for part, share in run["shares"].items() if share is not None}
        assert shares == pytest.approx(wanted["shares"], rel=1e-9), run_id


def test_the_committed_study_is_what_its_script_writes(make, tmp_path):
    make.golden_study(tmp_path)
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    committed = {path.relative_to(STUDY) for path in STUDY.rglob("*") if path.is_file()}
    assert written == committed
    assert [name for name in written if not filecmp.cmp(tmp_path / name, STUDY / name, shallow=False)] == []


def test_reading_changes_no_file(make, tmp_path):
    make.golden_study(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    analyse(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
