"""What is written, and that it is the same each time and whatever the study holds."""

import csv
import io
import stat
import struct
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.errors import ResultsError
from vitscale.report.write import write_report

FIGURES = ("efficiency", "loss", "speedup", "split", "throughput", "waterfall")
TABLES = (
    "causes", "costs", "evaluations", "findings", "launches", "losses", "memory", "ranks", "scaling", "shares",
    "skipped", "waterfall",
)  # fmt: skip


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def rows(folder, name):
    return list(csv.DictReader(io.StringIO((folder / "tables" / name).read_text())))


def test_the_files_are_those_of_the_design(report):
    wanted = [f"figures/{name}.{kind}" for name in FIGURES for kind in ("png", "svg")]
    wanted += [f"tables/{name}.csv" for name in TABLES] + ["tables/scaling.tex", "index.html", "report.md"]
    assert files(report) == sorted(wanted)
    assert all(
        stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in (report, report / "figures", report / "tables")
    )


def test_the_same_records_give_the_same_bytes(report, result, tmp_path):
    again = write_report(tmp_path, result).parent
    assert files(again) == files(report)
    assert [name for name in files(report) if (report / name).read_bytes() != (again / name).read_bytes()] == []


def test_figures_are_drawings_with_marks_and_pixels(report):
    for name in FIGURES:
        root = ElementTree.parse(report / "figures" / f"{name}.svg").getroot()
        marks = [
            one for one in root.iter() if one.get("class", "").startswith(("mark-symbol", "mark-line", "mark-rect"))
        ]
        assert sum(len(list(mark)) for mark in marks) >= 3, name
        png = (report / "figures" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        width, _ = struct.unpack(">II", png[16:24])
        assert width == 2 * int(float(root.get("width"))), name


def test_the_scaling_table_has_full_precision(report, result):
    found = {row["run_id"]: row for row in rows(report, "scaling.csv")}
    assert len(found) == len(result.analysis.runs)
    for run in result.analysis.runs:
        row = found[run.run_id]
        assert row["valid"] == str(run.valid).lower()
        for field in ("step_s", "images_per_s", "speedup", "efficiency"):
            value = getattr(run, field)
            for end in ("median", "low", "high"):
                cell = row[f"{field}_{end}"]
                assert (float(cell) if cell else None) == (getattr(value, end) if value else None), (run.run_id, field)


def test_every_launch_and_loss_is_in_a_table(report, result):
    assert len(rows(report, "launches.csv")) == len(result.launches)
    losses = rows(report, "losses.csv")
    assert len(losses) == sum(len(curve.loss) for curve in result.losses)
    assert [float(row["loss"]) for row in losses[:12]] == result.losses[0].loss


def test_latex_is_a_whole_tabular(report, result):
    lines = (report / "tables" / "scaling.tex").read_text().splitlines()
    body = [line for line in lines if line.endswith(r"\\")]
    assert len(body) == 1 + len(result.analysis.runs)
    assert all(line.replace(r"\&", "").count("&") == 5 for line in body)
    assert r"\begin{tabular}{lrrrrr}" in lines
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert r"zero\_stage 0, 2 processes & 2 & 54.9 ms [52.2, 56.8 ms]" in "\n".join(body)
    assert sum("dagger" in line for line in body) == sum(not run.valid for run in result.analysis.runs)


def test_markdown_tells_the_same_and_links_its_figures(report, result):
    text = (report / "report.md").read_text()
    for name in FIGURES:
        assert f"](figures/{name}.svg)" in text
    assert text.startswith("# golden\n")
    assert "1.85x" in text
    assert "| strong, zero_stage 0, 2 processes | 2 | 54.9 ms \\[52.2, 56.8 ms\\] |" in text
    assert text.count("- warning:") == sum(one.severity == "warning" for one in result.analysis.findings)


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(result, tmp_path):
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(ResultsError, match="cannot make folder"):
        write_report(tmp_path, result)


def planned(make, spec):
    return {"run_id": spec.run_id, "series": spec.series, "spec": spec.model_dump(mode="json")}


def page_of(root):
    return write_report(root, analyse(root)).read_text()


def test_a_study_that_was_only_planned_has_a_page_without_scripts(make, tmp_path):
    root = make.write_study(tmp_path, "Anything?", {"runs": [planned(make, make.make_spec(2))]})
    page = page_of(root)
    assert "Not answered: no run has a valid result: not started" in page
    assert "No launch has been started." in page
    assert "script-src &#39;none&#39;" in page
    assert "<script" not in page
    assert files(root / "report") == sorted(
        ["index.html", "report.md", "tables/scaling.tex", *(f"tables/{one}.csv" for one in TABLES)]
    )


def test_a_study_without_any_run_has_a_page(make, tmp_path):
    assert "there is no run" in page_of(make.write_study(tmp_path, "Anything?"))


def test_a_single_run_has_a_page_and_says_that_it_has_no_interval(make, tmp_path):
    root = make.write_study(tmp_path)
    make.write_launch(root, make.make_spec(1))
    page = page_of(root)
    assert "Nothing to compare with" in page
    assert "No bar: too few launches for an interval." in page


def test_without_a_valid_run_the_reasons_are_told_and_points_are_hollow(make, tmp_path):
    root = make.write_study(tmp_path)
    for size in (1, 2):
        make.write_launch(root, make.make_spec(size, oversubscribed=True))
    page = page_of(root)
    assert "Not drawn: no series has a baseline." in page
    assert "Hollow: not valid" in page
    assert "n/a (no baseline)" in page
    assert page.count("more ranks than cores") >= 2
    assert "speedup.svg" not in "".join(files(root / "report"))


@pytest.mark.parametrize("source", ["simulated", "imported"])
def test_what_is_not_measured_carries_a_banner(make, tmp_path, source):
    root = make.write_study(tmp_path)
    make.write_launch(root, make.make_spec(1), source=source)
    page = page_of(root)
    assert f'<p class="banner" role="note">{source.capitalize()}, not measured' in page
    assert f"> {source.capitalize()}, not measured" in (root / "report" / "report.md").read_text()


def test_a_measured_study_has_no_banner(report):
    assert 'class="banner"' not in (report / "index.html").read_text()


def test_figures_of_an_earlier_report_do_not_stay(make, result, tmp_path):
    write_report(tmp_path, result)
    bare = replace(result, losses=())
    write_report(tmp_path, bare)
    assert not (tmp_path / "report" / "figures" / "loss.svg").exists()
    assert (tmp_path / "report" / "figures" / "speedup.svg").exists()
