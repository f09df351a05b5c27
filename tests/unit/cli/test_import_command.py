"""`vitscale import`: counts on standard output, one error line for what is no such file, no torch needed."""

import subprocess
import sys

TABLE = "series,world_size,global_batch,step_s\na,1,8,2.0\na,2,8,1.25\n"


def test_it_says_by_count_what_was_read_and_the_report_opens(vitscale, tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    ran = vitscale("import", "table", tmp_path / "t.csv", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "t.csv: 3 lines: 3 read, 0 damaged, 0 of something else" in ran.out
    assert "2 runs of 1 series, 2 of them new" in ran.out
    shown = vitscale("report", tmp_path / "out")
    assert shown.code == 0, shown.err
    assert "2 ranks trained 1.60x as fast as 1 (a, efficiency 80.0 %), with no interval" in shown.out


def test_a_mistake_is_one_error_line_and_writes_nothing(vitscale, tmp_path):
    (tmp_path / "t.csv").write_text(TABLE.replace("1.25", "fast"))
    ran = vitscale("import", "table", tmp_path / "t.csv", "--out", tmp_path / "out")
    assert ran.code == 2
    assert ran.error == "`t.csv:3`: `step_s` is 'fast', not a number above 0"
    assert not (tmp_path / "out").exists()


def test_it_keeps_out_of_a_folder_that_is_no_results_folder(vitscale, tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    ran = vitscale("import", "table", tmp_path / "t.csv", "--out", tmp_path)
    assert ran.code == 10
    assert "not a results folder" in ran.error


def test_imported_folders_can_be_compared(vitscale, tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    (tmp_path / "u.csv").write_text(TABLE.replace("1.25", "1.5"))
    for name in "tu":
        vitscale("import", "table", tmp_path / f"{name}.csv", "--out", tmp_path / name)
    ran = vitscale("compare", tmp_path / "t", tmp_path / "u")
    assert ran.code == 0, ran.err
    assert "cannot tell" in ran.out
    assert "only in" not in ran.out


def test_it_imports_no_torch(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    program = (
        f"import sys; sys.argv = ['vitscale', 'import', 'table', {str(tmp_path / 't.csv')!r}, '--out', 'out']\n"
        "from vitscale import cli\n"
        "code = cli._status()\n"
        "heavy = {'torch', 'torchvision', 'deepspeed', 'timm', 'sklearn'} & sys.modules.keys()\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else code)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
