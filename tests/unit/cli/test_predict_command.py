"""`vitscale predict` and `vitscale validate` as typed: tables, results folders, files written, refusals."""

import json
import shutil
from pathlib import Path

import pytest

from vitscale.cost.calibrated import read_calibration
from vitscale.errors import ResultsError

GOLDEN = Path(__file__).parents[2] / "golden" / "study"
QUANTILES = {"median", "low80", "high80", "low95", "high95"}


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "t.csv"
    header = "series,device,nodes,world_size,model,micro_batch,grad_accum,engine,zero_stage,precision,step_s"
    rows = [
        f"{name},a100-80gb,1,{size},vit_base_patch16_224,64,1,deepspeed,1,bf16,{step_s}"
        for name, scale in (("a", 1), ("b", 1.1))
        for size, step_s in ((1, 0.16 * scale), (2, 0.165 * scale), (4, 0.167 * scale))
    ]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_table_is_predicted_as_json(vitscale, table):
    ran = vitscale("predict", table, "--world-size", "8,64", "--series", "a", "--json", "--suggest")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["schema_version"] == 1
    assert [one["world_size"] for one in told["points"]] == [8, 64]
    assert [one["nodes"] for one in told["points"]] == [1, 8]
    for one in told["points"]:
        assert all(set(one[name]) == QUANTILES for name in ("step_s", "images_per_s", "speedup", "efficiency"))
        assert one["memory_bytes"] > 0
    assert told["advice"]["suggestions"][0]["layout"]["world_size"] < 64


def test_a_table_is_predicted_for_a_person(vitscale, table):
    ran = vitscale("predict", table, "--world-size", "8,64", "--suggest")
    assert ran.code == 0, ran.err
    for words in ("limited by", "at least", "knee: ", "pays for itself", "assumed  ", "half-width", "\na\n", "\nb\n"):
        assert words in ran.out
    assert not list(table.parent.glob("predictions"))


def test_an_imported_table_is_predicted_as_the_table_is(vitscale, table, tmp_path):
    folder = tmp_path / "imported"
    assert vitscale("import", "table", table, "--out", folder).code == 0
    words = ("--world-size", "8", "--series", "a", "--json")
    first, second = (json.loads(vitscale("predict", path, *words).out)["points"][0] for path in (table, folder))
    assert second["step_s"] == pytest.approx(first["step_s"])
    assert second["images_per_s"] == pytest.approx(first["images_per_s"])


def test_overrides_change_what_is_asked(vitscale, table):
    words = ("predict", table, "--world-size", "16", "--series", "a", "--json")
    own = json.loads(vitscale(*words).out)["points"][0]
    half = json.loads(vitscale(*words, "micro_batch=32", "--ranks-per-node", "4").out)
    assert half["asked"] == {"micro_batch": 32}
    assert half["points"][0]["nodes"] == 4
    assert half["points"][0]["step_s"]["median"] < own["step_s"]["median"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--world-size", "8", "--json"), "has 2 series"),
        (("--world-size", "many"), "not a whole number above 0"),
        (("--world-size", "0"), "not a whole number above 0"),
        (("--world-size", "8", "--series", "c"), "there is no series `c`"),
        (("--world-size", "8", "device=abacus"), "no device of the catalog"),
        (("--world-size", "8", "colour=red"), "no key that a prediction knows"),
        (("--world-size", "8", "micro_batch=-1"), "not a whole number"),
        (("--world-size", "8", "link=fast"), "`link` is 'fast'"),
        (("--world-size", "1_000_000_000_000"), "is not predicted"),
    ],
)
def test_what_cannot_be_meant_is_refused(vitscale, table, words, error):
    ran = vitscale("predict", table, *words)
    assert ran.code == 2
    assert error in ran.error


def test_nothing_there_is_refused(vitscale, tmp_path):
    assert vitscale("predict", tmp_path / "none.csv", "--world-size", "8").code == 2


def test_a_study_keeps_its_calibration_and_its_report_draws_the_prediction(vitscale, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(GOLDEN, folder)
    ran = vitscale("predict", folder, "--world-size", "4,8,16,64")
    assert ran.code == 0, ran.err
    fitted = read_calibration(folder)
    assert fitted.series
    for one in fitted.series.values():
        assert one.micro_step_s.low95 <= one.micro_step_s.median <= one.micro_step_s.high95
        assert (one.sizes["img_size"], one.sizes["patch_size"], one.optimizer) == (32, 4, "adamw")
    assert {path.suffix for path in (folder / "predictions").iterdir()} == {".json"}
    assert vitscale("report", folder).code == 0
    assert "<path" in (folder / "report" / "figures" / "prediction.svg").read_text()
    assert "Predicted, not measured" in (folder / "report" / "index.html").read_text()


def test_one_series_is_fitted_beside_the_others(vitscale, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(GOLDEN, folder)
    assert vitscale("predict", folder, "--world-size", "4").code == 0
    whole = read_calibration(folder).series
    name = next(iter(whole))
    assert vitscale("predict", folder, "--world-size", "4", "--series", name).code == 0
    assert read_calibration(folder).series == whole
    (folder / "calibration.json").unlink()
    assert vitscale("predict", folder, "--world-size", "4", "--series", name).code == 0
    assert set(read_calibration(folder).series) == {name}


def test_a_calibration_that_is_none_is_named(tmp_path):
    with pytest.raises(ResultsError, match="cannot read"):
        read_calibration(tmp_path / "calibration.json")
    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises(ResultsError, match="is no calibration"):
        read_calibration(tmp_path)


def test_validate_prints_errors_of_a_table(vitscale, table):
    ran = vitscale("validate", table)
    assert ran.code == 0, ran.err
    for words in ("in 95 %", "noise floor: 10.0%", "worst first:"):
        assert words in ran.out
    told = json.loads(vitscale("validate", table, "--json").out)
    assert told["summary"]["points"] == 2
    assert [(one["shown"], one["points"]) for one in told["by_shown"]] == [(1, 4), (2, 2)]
    assert told["from_sheets"]["points"] == 6


def test_tables_of_one_name_are_both_validated(vitscale, table):
    other = table.parent / "other" / table.name
    other.parent.mkdir()
    shutil.copy(table, other)
    told = json.loads(vitscale("validate", table, other, "--json").out)
    assert set(told["tables"]) == {str(table), str(other)}
    assert told["summary"]["points"] == 4


def test_validate_leaves_out_the_largest_world_size_of_a_study(vitscale):
    ran = vitscale("validate", GOLDEN, "--json")
    assert ran.code == 0, ran.err
    points = json.loads(ran.out)["points"]
    assert points
    assert {(one["fitted"], one["largest"], one["world_size"]) for one in points} == {(1, 1, 2)}
