"""Cut-off records are read as far as they go and flagged; damaged ones are named by file and line."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitscale.errors import ResultsError
from vitscale.records import steps as step_lines
from vitscale.records import writer
from vitscale.records.reader import read_results
from vitscale.records.schema import Manifest, StepRecord


@pytest.fixture
def study(make, tmp_path):
    """One run of two ranks, one `ok` launch of 12 steps."""
    root = make.write_study(tmp_path / "study")
    spec = make.make_spec(2)
    return root, spec, make.write_launch(root, spec)


def rewrite(path, change):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(change(lines)))


def test_columns_are_the_fields_of_a_step_record():
    assert tuple(step_lines.SCHEMA) == StepRecord._fields


def test_a_launch_comes_back_as_written(study):
    root, spec, folder = study
    results = read_results(root)
    (launch,) = results.launches
    assert launch.spec == spec
    assert launch.run_id == spec.run_id
    assert launch.ok
    assert (launch.torn, launch.altered) == ((), ())
    written = [json.loads(line) for path in sorted(folder.glob("steps.*")) for line in path.read_text().splitlines()]
    # `comm_and_wait_s` is written where an importer was told it, and nowhere else.
    assert all(line.keys() == {*StepRecord._fields} - {"comm_and_wait_s"} for line in written)
    read = results.steps.drop("launch_index", "comm_and_wait_s").sort("rank", "step").to_dicts()
    assert read == written
    assert results.steps["comm_and_wait_s"].null_count() == results.steps.height
    assert results.resolved["name"] == "golden"


def test_several_ranks_in_one_file_are_told_apart(make, tmp_path):
    root = make.write_study(tmp_path)
    make.write_launch(root, make.make_spec(4), one_file=True)
    steps = read_results(root).steps
    assert sorted(steps["rank"].unique()) == [0, 1, 2, 3]
    assert steps.height == 48


def test_a_folder_whose_name_is_a_pattern_is_read_by_the_fast_path(make, tmp_path, monkeypatch):
    monkeypatch.setattr(step_lines, "parse_lines", None)
    root = make.write_study(tmp_path / "a[1]*?{b}")
    make.write_launch(root, make.make_spec(1))
    assert read_results(root).steps.height == 12


def test_a_relative_path_is_read_too(study, monkeypatch):
    root, _, _ = study
    monkeypatch.chdir(root.parent)
    assert read_results(root.relative_to(root.parent)).steps.height == 24


def test_launches_are_in_order_of_their_numbers(make, tmp_path):
    root = make.write_study(tmp_path)
    for launch in (10, 2, 0):
        make.write_launch(root, make.make_spec(1), launch)
    assert [one.launch for one in read_results(root).launches] == [0, 2, 10]


def test_other_files_and_folders_are_ignored(study):
    root, spec, folder = study
    (root / "runs" / "README").write_text("mine")
    (root / "runs" / spec.run_id / "launch0.bak").mkdir()
    (folder / "notes.txt").write_text("mine")
    results = read_results(root)
    assert len(results.launches) == 1
    assert results.launches[0].altered == ()


def test_a_folder_that_is_no_results_folder_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ResultsError, match="is not a results folder") as caught:
            read_results(folder)
        assert caught.value.exit_code == 10
        assert "vitscale run" in caught.value.hint


def test_a_study_without_a_launch_is_empty(make, tmp_path):
    results = read_results(make.write_study(tmp_path))
    assert results.launches == ()
    assert results.steps.height == 0


def test_without_a_manifest_a_launch_is_unfinished(make, tmp_path):
    root = make.write_study(tmp_path)
    folder = make.write_launch(root, make.make_spec(1), status=None)
    (launch,) = read_results(root).launches
    assert launch.manifest is None
    assert not launch.ok
    (folder / "run.json").unlink()
    assert read_results(root).launches[0].spec is None


@pytest.mark.parametrize("cut", [1, 2, 40, 150])
def test_a_torn_last_line_is_left_out_and_flagged(study, cut):
    root, _, folder = study
    path = folder / "steps.rank001.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    results = read_results(root)
    assert results.steps.height == 23
    assert results.launches[0].torn == ("steps.rank001.jsonl",)
    assert results.launches[0].altered == ("steps.rank001.jsonl",)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_cut_anywhere_a_steps_file_gives_its_whole_lines(study, data):
    root, _, folder = study
    whole = folder / "steps.rank000.jsonl"
    kept = folder / "kept"
    if not kept.exists():
        shutil.copy(whole, kept)
    text = kept.read_bytes()
    at = data.draw(st.integers(0, len(text)))
    whole.write_bytes(text[:at])
    results = read_results(root)
    read = results.steps.filter(results.steps["rank"] == 0)
    assert read.height == text[:at].count(b"\n")
    ends_within_a_line = at > 0 and text[at - 1 : at] != b"\n"
    assert results.launches[0].torn == (("steps.rank000.jsonl",) if ends_within_a_line else ())
    assert results.launches[0].altered == (() if at == len(text) else ("steps.rank000.jsonl",))


DAMAGE = {
    "cut within": lambda line: line[:50] + b"\n",
    "two glued": lambda line: line[:50] + line,
    "not JSON": lambda line: b"oops\n",
    "zeros": lambda line: b"\0" * 30 + b"\n",
    "not an object": lambda line: b"[1, 2]\n",
    "null": lambda line: b"null\n",
    "not UTF-8": lambda line: line.replace(b"steady", b"st\xffady"),
    "text after": lambda line: line[:-1] + b" x\n",
    "NaN": lambda line: line.replace(b'"step_s":0.1', b'"step_s":NaN'),
    "infinite": lambda line: line.replace(b'"step_s":0.1', b'"step_s":1e999'),
    "zero": lambda line: line.replace(b'"step_s":0.1', b'"step_s":0'),
    "negative": lambda line: line.replace(b'"step_s":0.1', b'"step_s":-0.1'),
    "null step_s": lambda line: line.replace(b'"step_s":0.1', b'"step_s":null'),
    "text for a number": lambda line: line.replace(b'"step_s":0.1', b'"step_s":"0.1"'),
    "half a step": lambda line: line.replace(b'"rank":0', b'"rank":0.5'),
    "no rank": lambda line: line.replace(b'"rank":0,', b""),
    "no window": lambda line: line.replace(b'"window":"steady",', b""),
    "unknown window": lambda line: line.replace(b"steady", b"cooldown"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_that_is_not_the_last_is_named(study, damage):
    root, spec, folder = study
    before = (folder / "steps.rank000.jsonl").read_bytes()
    rewrite(folder / "steps.rank000.jsonl", lambda lines: [*lines[:6], DAMAGE[damage](lines[6]), *lines[7:]])
    assert (folder / "steps.rank000.jsonl").read_bytes() != before
    with pytest.raises(ResultsError) as caught:
        read_results(root)
    assert f"`runs/{spec.run_id}/launch0/steps.rank000.jsonl:7` is damaged" in caught.value.message
    assert caught.value.hint


def test_the_damaged_line_is_named_in_a_torn_file_too(study):
    root, _, folder = study
    rewrite(folder / "steps.rank001.jsonl", lambda lines: [*lines[:3], b"oops\n", *lines[3:-1], lines[-1][:20]])
    with pytest.raises(ResultsError, match=r"steps.rank001.jsonl:4` is damaged"):
        read_results(root)


def test_keys_of_a_newer_writer_and_missing_measures_are_read(study):
    root, _, folder = study
    rewrite(
        folder / "steps.rank000.jsonl",
        lambda lines: [line.replace(b'"wait_s":null', b'"new":{"a":[1]}').replace(b":0.1,", b":1,") for line in lines],
    )
    steps = read_results(root).steps
    mine = steps.filter(steps["rank"] == 0)
    assert mine["wait_s"].null_count() == mine.height == 12
    assert mine["step_s"].to_list() == [1.0] * 12


def test_blank_lines_and_empty_files_hold_no_step(study):
    root, _, folder = study
    rewrite(folder / "steps.rank000.jsonl", lambda lines: [lines[0], b"\n", *lines[1:]])
    (folder / "steps.rank001.jsonl").write_bytes(b"")
    assert read_results(root).steps.height == 12


def test_the_slow_path_reads_what_the_fast_one_reads(study, monkeypatch):
    root, _, _ = study
    fast = read_results(root).steps
    monkeypatch.setattr(step_lines, "_fast", lambda files: None)
    assert read_results(root).steps.equals(fast)


@pytest.mark.parametrize("name", ["manifest.json", "run.json", "resolved.json"])
@pytest.mark.parametrize("content", [b"{", b"", b"[]", b"\xff", b'{"schema_version": 0}'])
def test_a_damaged_document_is_named(study, name, content):
    root, _, folder = study
    path = root / name if name == "resolved.json" else folder / name
    path.write_bytes(content)
    with pytest.raises(ResultsError) as caught:
        read_results(root)
    assert f"`{path.relative_to(root)}` is damaged" in caught.value.message


def test_a_manifest_with_a_field_missing_names_the_field(study):
    root, _, folder = study
    document = json.loads((folder / "manifest.json").read_text())
    del document["status"]
    (folder / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ResultsError, match=r"manifest.json` is damaged: `status`"):
        read_results(root)


@pytest.mark.parametrize("name", ["manifest.json", "run.json", "resolved.json", "plan.json"])
def test_a_newer_format_asks_for_an_upgrade(study, name):
    root, _, folder = study
    path = folder / name if (folder / name).exists() else root / name
    document = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**document, "schema_version": 2}))
    with pytest.raises(ResultsError, match="schema_version 2; this vitscale reads up to 1") as caught:
        read_results(root)
    assert "upgrade" in caught.value.hint


def test_a_manifest_without_its_runspec_is_an_error(study):
    root, _, folder = study
    (folder / "run.json").unlink()
    with pytest.raises(ResultsError, match=r"has a manifest.json but no run.json"):
        read_results(root)


def test_a_changed_or_lost_file_is_flagged(study):
    root, _, folder = study
    rewrite(folder / "steps.rank000.jsonl", lambda lines: [line.replace(b":0.1,", b":0.2,") for line in lines])
    (folder / "steps.rank001.jsonl").unlink()
    assert read_results(root).launches[0].altered == ("steps.rank000.jsonl", "steps.rank001.jsonl")


def test_the_last_evaluation_counts(make, tmp_path):
    root = make.write_study(tmp_path)
    folder = make.write_launch(root, make.make_spec(1), accuracy=0.96)
    assert read_results(root).launches[0].test_accuracy == 0.96
    with (folder / "eval.jsonl").open("a") as file:
        file.write('{"step": 15, "test_acc')
    assert read_results(root).launches[0].test_accuracy == 0.96
    with (folder / "eval.jsonl").open("a") as file:
        file.write("\n{}\n")
    with pytest.raises(ResultsError, match=r"eval.jsonl:3` is damaged"):
        read_results(root)


def test_what_a_launch_would_be_finished_by_stays_until_its_manifest_is_there(study, monkeypatch):
    _root, _spec, folder = study
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    settled = folder / ".settled.json"
    settled.write_text("{}")

    def full(*_):
        raise ResultsError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(writer, "write_json", full)
        with pytest.raises(ResultsError):
            writer.write_manifest(folder, manifest)
    assert settled.exists()
    writer.write_manifest(folder, manifest)
    assert not settled.exists()
