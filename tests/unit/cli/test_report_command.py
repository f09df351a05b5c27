"""`vitscale report` on a folder of several results folders."""

import gc
import shutil


def test_a_page_over_several_studies_and_an_error_for_what_cannot_be_read(vitscale, simulated, tmp_path):
    root = tmp_path / "several"
    for name in ("one", "two"):
        shutil.copytree(simulated, root / name)
    (root / "doctor").mkdir()
    (root / "doctor" / ".lock").touch()  # looked at by `vitscale doctor`, never measured
    ran = vitscale("report", root)
    assert ran.code == 0
    lines = [line.split() for line in ran.out.splitlines()]
    assert [words[1:3] for words in lines if words[:1] == ["quick"]] == [["4", "runs"], ["4", "runs"]]
    assert ran.out.rstrip().endswith(f"report  {root}/report/index.html")

    (root / "two" / "resolved.json").write_text("{")
    page = (root / "report" / "index.html").read_bytes()
    ran = vitscale("report", root)
    assert ran.code == 10
    assert ran.error == "1 of 2 studies cannot be read: two"
    assert (root / "report" / "index.html").read_bytes() != page


def test_a_study_of_a_folder_has_its_results_in_a_folder(vitscale, tmp_path):
    words = ("hardware.name=h100", "--launcher", "simulate")
    assert vitscale("run", "paper/fig08_09_cpu", *words).code == 0
    assert (tmp_path / "work" / "results" / "paper" / "fig08_09_cpu" / "report" / "index.html").is_file()


def test_cycles_are_collected_again_after_a_report(vitscale, simulated):
    assert vitscale("report", simulated).code == 0
    assert gc.isenabled()
    (simulated / "plan.json").write_text("{")
    assert vitscale("report", simulated).code != 0
    assert gc.isenabled()
