"""`vitscale predict` and `vitscale validate` as typed: tables, results folders, files written, refusals."""

import json
import re
import shlex
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
        assert set(one["memory_needed_bytes"]) == QUANTILES
        assert one["memory_needed_bytes"]["low95"] > one["memory_bytes"] > 0
        assert one["memory_limit_bytes"] == 80 * 10**9
        assert one["fit_probability"] > 0.99
    assert told["advice"]["suggestions"][0]["layout"]["world_size"] < 64


def test_a_table_is_predicted_for_a_person(vitscale, table):
    ran = vitscale("predict", table, "--world-size", "8,64", "--suggest")
    assert ran.code == 0, ran.err
    for words in (
        "limited by",
        "memory/rank, 95 %",
        "> 99 %",
        "knee: ",
        "pays for itself",
        "assumed  ",
        "half-width",
        "\na\n",
        "\nb\n",
    ):
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
    page = (folder / "report" / "index.html").read_text()
    assert "Predicted, not measured" in page
    assert "Cost of a million images" not in page
    assert vitscale("predict", folder, "--world-size", "4,8", "hardware.price_per_hour=1.5").code == 0
    assert vitscale("report", folder).code == 0
    assert "Cost of a million images" in (folder / "report" / "index.html").read_text()


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


@pytest.fixture
def one_contradicts(table):
    """Series b tells a layout twice, far apart."""
    last = table.read_text().splitlines()[-1]
    assert last.startswith("b,")
    table.write_text(table.read_text() + last.rpartition(",")[0] + ",9\n")
    return table


def test_a_series_that_is_refused_stops_none_of_the_others(vitscale, one_contradicts):
    ran = vitscale("predict", one_contradicts, "--world-size", "8")
    assert ran.code == 0, ran.err
    assert "\na\n" in ran.out
    assert ran.out.count("refused  series `b` tells 4 ranks") == 1
    alone = vitscale("predict", one_contradicts, "--world-size", "8", "--series", "b")
    assert alone.code == 2
    assert "tells 4 ranks" in alone.error
    assert vitscale("predict", one_contradicts, "--world-size", "8", "--series", "a", "--json").code == 0


def test_where_every_series_is_refused_each_reason_is_told(vitscale, one_contradicts):
    lines = one_contradicts.read_text().splitlines()
    one_contradicts.write_text("\n".join([*lines, lines[1].rpartition(",")[0] + ",9"]) + "\n")
    ran = vitscale("predict", one_contradicts, "--world-size", "8")
    assert ran.code == 2
    assert "none of 2 series" in ran.error
    assert "`a`: series `a` tells 1 rank on 1 node" in ran.error
    assert "`b`: series `b` tells 4 ranks" in ran.error


def test_what_was_said_of_a_series_that_is_refused_now_is_taken_away(vitscale, table, one_contradicts, tmp_path):
    folder = tmp_path / "imported"
    sound = tmp_path / "sound.csv"
    sound.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    assert vitscale("import", "table", sound, "--out", folder).code == 0
    assert vitscale("predict", folder, "--world-size", "8").code == 0
    assert {path.stem for path in (folder / "predictions").iterdir()} == {"a", "b"}
    (tmp_path / "more.csv").write_text(
        "\n".join([table.read_text().splitlines()[0], table.read_text().splitlines()[-1]]) + "\n"
    )
    assert vitscale("import", "table", tmp_path / "more.csv", "--out", folder).code == 0
    ran = vitscale("predict", folder, "--world-size", "8")
    assert ran.code == 0, ran.err
    assert {path.stem for path in (folder / "predictions").iterdir()} == {"a"}
    assert set(read_calibration(folder).series) == {"a"}


def test_a_series_that_cannot_answer_this_question_keeps_what_was_predicted_of_it(vitscale, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(GOLDEN, folder)
    assert vitscale("predict", folder, "--world-size", "8").code == 0
    series, told = set(read_calibration(folder).series), {path.name for path in (folder / "predictions").iterdir()}
    ran = vitscale("predict", folder, "--world-size", "128")
    assert ran.code == 0, ran.err
    assert "leaves 128 ranks without an image each" in ran.out
    assert set(read_calibration(folder).series) == series
    assert {path.name for path in (folder / "predictions").iterdir()} == told


def test_energy_and_cost_are_told_or_why_not(vitscale, table):
    words = ("predict", table, "--world-size", "8", "--series", "a")
    plain = vitscale(*words).out
    assert "energy/image" in plain
    assert "at most " in plain
    assert "n/a      cost/million images, cost/epoch: no price is told" in plain
    told = json.loads(vitscale(*words, "price_per_hour=2.5", "--json").out)
    assert told["asked"] == {}
    assert set(told["points"][0]["cost_per_million_images"]) == QUANTILES
    assert told["points"][0]["energy_is_bound"] is True
    assert told["reasons"] == dict.fromkeys(("cost_per_epoch", "training_s"), "the images of an epoch are not told")
    assert "not a number above 0" in vitscale(*words, "price_per_hour=free").error


def test_a_suggestion_for_a_table_is_its_row(vitscale, table):
    words = ("predict", table, "--world-size", "64", "--suggest")
    start = json.loads(vitscale(*words, "--series", "b", "--json").out)["advice"]["suggestions"][0]
    header, row = start["start"]["row"].splitlines()
    cells = dict(zip(header.split(","), row.split(","), strict=True))
    assert header.split(",")[: len(cells) - 1] == table.read_text().splitlines()[0].split(",")[: len(cells) - 1]
    assert (cells["series"], cells["device"], cells["step_s"]) == ("b", "a100-80gb", "")
    assert cells["world_size"] == str(start["layout"]["world_size"])
    table.write_text(table.read_text() + row + "\n")
    assert vitscale(*words).code == 0
    changed = json.loads(vitscale(*words, "precision=fp32", "--series", "b", "--json").out)["advice"]["suggestions"][0]
    assert ",fp32," in changed["start"]["row"]
    assert "b--precision-fp32," in changed["start"]["row"]


def test_a_row_of_a_strong_series_keeps_its_global_batch_and_of_a_weak_one_the_images_of_a_rank(vitscale, tmp_path):
    header = "series,device,world_size,nodes,micro_batch,grad_accum,global_batch,images_per_epoch,protocol,step_s"
    strong = [f"s,T4,{n},1,{64 // n},1,64,1000,,{0.8 / n + 0.01 * n}" for n in (1, 2, 4)]
    weak = [f"w,T4,{n},1,64,1,{64 * n},{1000 * n},weak,{0.8 + 0.01 * n}" for n in (1, 2, 4)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join([header, *strong, *weak]) + "\n")
    for series, batch, images in (("s", lambda n: 64, lambda n: 1000), ("w", lambda n: 64 * n, lambda n: 1000 * n)):
        told = json.loads(
            vitscale("predict", path, "--world-size", "64", "--series", series, "--json", "--suggest").out
        )
        for one in told["advice"]["suggestions"]:
            size = one["layout"]["world_size"]
            head, row = one["start"]["row"].splitlines()
            cells = dict(zip(head.split(","), row.split(","), strict=True))
            assert (cells["global_batch"], cells["images_per_epoch"]) == (str(batch(size)), str(images(size)))


def test_a_suggestion_is_pasted_and_measures_what_is_missing_only(vitscale, simulated):
    def advice():
        ran = vitscale("predict", simulated, "--world-size", "64", "--suggest")
        assert ran.code == 0, ran.err
        width = re.search(r"half-width of the 95 % interval at 64 ranks: ([0-9.]+)%", ran.out)
        return ran.out, float(width[1])

    before = {path: path.read_bytes() for path in simulated.glob("runs/*/launch0/manifest.json")}
    told, width = advice()
    line = next(line for line in told.splitlines() if line.startswith("     vitscale run quick "))
    size = next(line for line in told.splitlines() if line.startswith("run  world_size="))
    assert "--launcher simulate" in line
    assert "hardware.name=h100" in line
    assert vitscale(*shlex.split(line)[1:]).code == 0
    after = {path: path.read_bytes() for path in simulated.glob("runs/*/launch0/manifest.json")}
    assert {path: after[path] for path in before} == before
    added = {path.parts[-3].split("-w")[-1].split("-")[0] for path in after.keys() - before.keys()}
    assert advice()[1] < width / 2
    assert added == {size.split()[1].removeprefix("world_size=")}


def test_a_folder_without_its_study_has_no_command(vitscale, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(GOLDEN, folder)
    ran = vitscale("predict", folder, "--world-size", "16", "--suggest")
    assert ran.code == 0, ran.err
    assert "not here: " in ran.out
    assert "does not hold the study" in ran.out


def test_validate_prints_errors_of_a_table(vitscale, table):
    ran = vitscale("validate", table)
    assert ran.code == 0, ran.err
    for words in ("in 95 %", "noise floor: 10.0%", "worst first:", "assumed  t.csv: intra node link"):
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


def test_runs_to_add_are_told_unasked_where_one_size_is_measured(vitscale, table):
    lines = table.read_text().splitlines()
    assert "run  world_size=" not in vitscale("predict", table, "--world-size", "8").out
    table.write_text("\n".join(lines[:2]) + "\n")
    told = vitscale("predict", table, "--world-size", "8").out
    assert "one world size was measured" in told
    assert "run  world_size=" in told
    table.write_text(table.read_text().replace(",64,1,deepspeed", ",,,deepspeed"))
    assert "(the same batch): then about" in vitscale("predict", table, "--world-size", "8").out


def test_epochs_give_a_training_with_failures(vitscale, table):
    rows = table.read_text().splitlines()
    table.write_text("\n".join([f"{rows[0]},images_per_epoch", *(f"{line},1281167" for line in rows[1:])]) + "\n")
    ran = vitscale("predict", table, "--world-size", "8", "epochs=90")
    assert ran.code == 0, ran.err
    assert "training, 95 %" in ran.out
    assert "90 epochs; failures: " in ran.out
    assert "not a number above 0" in vitscale("predict", table, "--world-size", "8", "epochs=many").error


def test_validate_leaves_out_the_largest_world_size_of_a_study(vitscale):
    ran = vitscale("validate", GOLDEN, "--json")
    assert ran.code == 0, ran.err
    points = json.loads(ran.out)["points"]
    assert points
    assert {(one["fitted"], one["largest"], one["world_size"]) for one in points} == {(1, 1, 2)}
