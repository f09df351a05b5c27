"""Tables of other people's runs: the published figures come out, and a row that cannot be meant is named."""

import json
from pathlib import Path

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.errors import ResultsError, UsageError
from vitscale.importers.write import TABLE, import_files
from vitscale.report.write import write_report

PUBLISHED = Path(__file__).parents[3] / "docs" / "guides" / "published.csv"
"""Figures of the logs beside arXiv 2602.21081, as the guide replays them."""


def of(result, series, world_size):
    (run,) = [one for one in result.analysis.runs if (one.series, one.world_size) == (series, world_size)]
    return run


def kinds(result):
    return {finding.kind for finding in result.analysis.findings}


def test_the_published_figures_come_out(imported):
    result, _ = imported("table", PUBLISHED)
    t4, rtx, weak = (of(result, *key) for key in (("t4-b64-full", 8), ("rtx3070-b16-full", 2), ("rtx3070-b16-weak", 2)))
    assert t4.speedup.median == pytest.approx(7.71, abs=0.005)
    assert t4.efficiency.median == pytest.approx(0.963, abs=0.0005)
    assert rtx.speedup.median == pytest.approx(0.77, abs=0.005)
    assert weak.shares.comm_and_wait == pytest.approx(0.60, abs=0.005)
    assert (t4.protocol, rtx.protocol, weak.protocol) == ("strong_fixed_micro", "strong_fixed_micro", "weak")


def test_the_findings_say_that_the_batch_grew_and_that_nothing_overlaps(imported):
    result, _ = imported("table", PUBLISHED)
    evidence = {finding.kind: finding.evidence for finding in result.analysis.findings}
    assert "in 2 series" in evidence["global_batch_grows"]
    assert "64 at world size 1 to 512 at 8" in evidence["global_batch_grows"]
    assert "does not overlap" in evidence["no_overlap"]
    assert "59.9 %" in evidence["no_overlap"]
    shares = [finding for finding in result.analysis.findings if finding.kind == "communication_share"]
    assert [finding.severity for finding in shares] == ["warning", "note"]


def test_the_report_opens_and_carries_the_banner(imported, tmp_path):
    result, _ = imported("table", PUBLISHED)
    page = write_report(tmp_path / "out", result).read_text()
    assert "Imported, not measured by vitscale" in page
    assert "published.csv (table: 7 lines, 7 read, 0 damaged)" in page
    assert "communication and wait" in page


def test_what_a_source_does_not_tell_is_null(table, imported):
    result, _ = imported("table", table({"world_size": 4, "micro_batch": "", "global_batch": 64, "step_s": 0.5}))
    (run,) = result.analysis.runs
    assert (run.device, run.precision, run.optimizer, run.micro_batch, run.memory_peak_bytes) == (None,) * 5
    assert run.shares.model_dump() == dict.fromkeys(run.shares.model_dump())
    assert (run.images_per_s.median, run.images_per_s.low, run.step_s.low) == (128.0, None, None)
    assert result.launches[0].steps is None


def test_the_epoch_comes_before_the_step(table, imported):
    row = {"images_per_epoch": 1000, "epoch_s": 10.0, "global_batch": 64, "step_s": 0.5}
    result, _ = imported("table", table(row))
    assert result.analysis.runs[0].images_per_s.median == 100.0


def test_without_images_there_is_no_throughput_and_the_run_is_not_valid(table, imported):
    result, _ = imported("table", table({"epoch_s": 10.0}, {"world_size": 2, "epoch_s": 6.0}))
    for run in result.analysis.runs:
        assert run.images_per_s is None
        assert not run.valid
        assert "does not tell how many images" in run.invalid_reasons[0]
    assert "baseline_missing" not in kinds(result)


def test_repeated_measurements_are_runs_of_their_own_without_an_interval(table, imported):
    rows = [{"world_size": size, "global_batch": 64, "step_s": step} for size, step in ((1, 1.0), (2, 0.6), (2, 0.5))]
    result, outcome = imported("table", table(*rows))
    assert len(result.analysis.runs) == outcome.runs == 3
    assert [run.speedup.low for run in result.analysis.runs] == [None] * 3
    assert len(set(result.labels.values())) == len(result.labels)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"step_s": "fast"}, "`step_s` is 'fast'"),
        ({"step_s": "nan"}, "`step_s` is 'nan'"),
        ({"step_s": "inf"}, "`step_s` is 'inf'"),
        ({"step_s": "0"}, "`step_s` is '0'"),
        ({"epoch_s": "-3"}, "`epoch_s` is '-3'"),
        ({"forward_s": "-0.1"}, "`forward_s` is '-0.1'"),
        ({"world_size": "0"}, "`world_size` is '0'"),
        ({"world_size": "2.5"}, "`world_size` is '2.5'"),
        ({"world_size": ""}, "`world_size` is blank"),
        ({"series": ""}, "`series` is blank"),
        ({"zero_stage": "7"}, "`zero_stage` is 7"),
        ({"global_batch": "٣"}, "`global_batch` is '٣'"),
        ({"world_size": "9" * 400}, "`world_size`"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named_by_line(table, tmp_path, row, words):
    path = table({"step_s": 1, "global_batch": 8}, {"world_size": 2, **row})
    with pytest.raises(UsageError) as raised:
        import_files("table", [path], tmp_path / "out")
    assert "table.csv:3`" in raised.value.message
    assert words in raised.value.message
    assert not (tmp_path / "out").exists()


def test_a_row_twice_is_refused_with_both_lines(table, tmp_path):
    row = {"step_s": 1, "global_batch": 8}
    with pytest.raises(UsageError, match=r"table.csv:4` repeats line 2"):
        import_files("table", [table(row, {**row, "world_size": 2}, row)], tmp_path / "out")


def test_a_missing_column_is_named_with_what_may_be_meant(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("series,worldsize,step_s\na,1,2\n")
    with pytest.raises(UsageError, match="no column `world_size`") as raised:
        import_files("table", [path], tmp_path / "out")
    assert raised.value.hint == "is `worldsize` meant?"


def test_a_torn_row_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("series,world_size,step_s\na,1,2\na,2\n")
    with pytest.raises(UsageError, match=r"t.csv:3` has 2 cells, the header 3"):
        import_files("table", [path], tmp_path / "out")


def test_further_columns_are_kept_and_named(table, imported):
    path = table(
        {"step_s": 1, "global_batch": 8, "note": "warm room"}, columns=("series", "world_size", "note", "step_s")
    )
    _, outcome = imported("table", path)
    assert "kept as words, not read as figures: note" in outcome.tallies[0].words()
    (launch,) = [json.loads(one.read_text()) for one in (path.parent / "out" / "runs").glob("*/launch0/run.json")]
    assert launch["row"]["note"] == "warm room"


def test_the_run_id_holds_series_and_row(table, imported):
    rows = [{"series": name, "step_s": 1.0, "global_batch": 8} for name in ("a", "b")]
    result, _ = imported("table", table(*rows, {"series": "a", "step_s": 2.0, "global_batch": 8}))
    assert len({run.run_id for run in result.analysis.runs}) == 3


def test_importing_again_changes_nothing_and_other_files_are_added(table, imported, tmp_path):
    first = table({"step_s": 1, "global_batch": 8})
    imported("table", first)
    before = {path: path.read_bytes() for path in (tmp_path / "out" / "runs").rglob("*") if path.is_file()}
    _, again = imported("table", first)
    assert again.new == 0
    result, more = imported("table", table({"world_size": 2, "step_s": 1, "global_batch": 8}, name="more.csv"))
    assert more.new == 1
    assert [run.world_size for run in result.analysis.runs] == [1, 2]
    assert {path: path.read_bytes() for path in before} == before
    assert [entry["file"] for entry in result.resolved["imported"]] == ["table.csv", "more.csv"]


def test_the_table_written_beside_can_be_imported(table, imported, tmp_path):
    result, _ = imported("table", PUBLISHED)
    again, _ = imported("table", tmp_path / "out" / TABLE, out="again")
    shown = [
        {(run.series, run.world_size, run.speedup.median, run.shares.comm_and_wait) for run in one.analysis.runs}
        for one in (result, again)
    ]
    assert shown[0] == shown[1]


def test_records_of_another_source_are_not_mixed_with_imported_ones(make, table, tmp_path):
    root = make.write_study(tmp_path / "out")
    make.write_launch(root, make.make_spec(1))
    with pytest.raises(ResultsError, match="never in one folder"):
        import_files("table", [table({"step_s": 1, "global_batch": 8})], root)


def test_the_same_file_twice_is_refused(table, tmp_path):
    path = table({"step_s": 1, "global_batch": 8})
    copy = tmp_path / "copy.csv"
    copy.write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match="byte for byte"):
        import_files("table", [path, copy], tmp_path / "out")


def test_no_record_names_the_folders_above_the_files(table, imported, tmp_path):
    imported("table", table({"step_s": 1, "global_batch": 8}))
    for path in (tmp_path / "out").rglob("*.json"):
        assert str(tmp_path) not in path.read_text()


def test_an_altered_aggregate_is_found(table, imported, tmp_path):
    imported("table", table({"step_s": 1, "global_batch": 8}))
    (path,) = (tmp_path / "out" / "runs").glob("*/launch0/aggregate.json")
    path.write_text(path.read_text().replace("1.0", "0.5"))
    assert "altered_records" in kinds(analyse(tmp_path / "out"))


def test_a_source_that_calls_it_strong_is_contradicted(table, imported):
    rows = [
        {"world_size": n, "images_per_epoch": 100, "global_batch": 16 * n, "epoch_s": 9.0 / n, "protocol": "strong"}
        for n in (1, 2)
    ]
    columns = ("series", "world_size", "images_per_epoch", "micro_batch", "global_batch", "epoch_s", "protocol")
    result, _ = imported("table", table(*rows, columns=columns))
    (finding,) = [one for one in result.analysis.findings if one.kind == "global_batch_grows"]
    assert "which their source calls `strong`" in finding.evidence
    assert "strong_fixed_micro" in finding.evidence
