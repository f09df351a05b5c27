import json
import math
import threading
from pathlib import Path

import pytest

from vitscale.records.schema import Manifest
from vitscale.records.writer import write_manifest
from vitscale.trackers import Follower, catch_up, lines
from vitscale.trackers.follow import settings


class Remembers:
    """A tracker in memory. `deduplicates` False: like one that only ever adds."""

    name = "remembers"
    extra = "nothing"
    needs = ()
    deduplicates = False

    def __init__(self, name="remembers", broken_at=None):
        self.name, self.broken_at = name, broken_at
        self.opened, self.points, self.closed = [], [], []
        self.heard = threading.Event()

    def open(self, run):
        self.break_at("open")
        self.opened.append(run)

    def log(self, points):
        self.points += points
        self.heard.set()
        self.break_at("log")

    def close(self, status):
        self.break_at("close")
        self.closed.append(status)

    def break_at(self, where):
        if self.broken_at == where:
            raise RuntimeError(f"no {where} today\nand a traceback")

    def steps(self, kind="train"):
        return [point.step for point in self.points if point.kind == kind]


def follow(root, folder, *trackers, report=None):
    with Follower(root, folder, list(trackers), report, interval_s=0.01):
        pass


def unfinished(make, root, **more):
    return make.write_launch(root, make.make_spec(2), status=None, **more)


def finish(folder, status="ok"):
    manifest = Manifest(
        run_id=folder.parent.name, launch=0, round="0-w2", status=status, source="measured",
        started="2026-01-01T00:00:00Z", layout={"world_size": 2, "nodes": 1, "ranks_per_node": 2, "backend": "gloo"},
    )  # fmt: skip
    write_manifest(folder, manifest)


def add(path, *documents):
    with path.open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in documents)


def test_a_step_line_becomes_the_names_of_the_field(make, root):
    tracker = Remembers()
    folder = make.write_launch(root, make.make_spec(2), step_s=0.25, accuracy=0.9)
    follow(root, folder, tracker)
    first = tracker.points[0]
    line = json.loads((folder / "steps.rank000.jsonl").read_text().splitlines()[0])
    assert first.step == 0
    assert first.values["train/loss"] == line["loss"]
    assert first.values["train/step_s"] == 0.25
    assert first.values["train/images_per_s"] == 64 / 0.25
    assert first.values["train/epoch"] == 64 / 1437
    assert first.values["train/backward_s"] == line["backward_s"]
    assert "train/wait_s" not in first.values, "null is not measured"
    assert not {"train/images", "train/rank", "train/window"} & first.values.keys()
    assert [point.values for point in tracker.points if point.kind == "eval"] == [
        {"eval/accuracy": 0.45},
        {"eval/accuracy": 0.9},
    ]


def test_each_step_of_rank_0_is_logged_once_and_in_order(make, root):
    tracker = Remembers()
    follow(root, make.write_launch(root, make.make_spec(2), accuracy=0.9), tracker)
    assert tracker.steps() == list(range(12))
    steps = [point.step for point in tracker.points]
    assert steps == sorted(steps), "evaluations among the steps"


def test_the_steps_of_rank_0_are_found_in_the_file_of_a_node(make, root):
    folder = make.write_launch(root, make.make_spec(2), one_file=True)
    own = [json.loads(line) for line in (folder / "steps.rank000.jsonl").read_text().splitlines()]
    (folder / "steps.rank000.jsonl").unlink()
    add(folder / "steps.node000.jsonl", *sorted(own, key=lambda line: (line["step"], -line["rank"])))
    tracker = Remembers()
    follow(root, folder, tracker)
    assert [point.values["train/loss"] for point in tracker.points] == [
        line["loss"] for line in own if not line["rank"]
    ]


def test_times_are_those_of_the_steps_and_not_of_reading(make, root):
    tracker = Remembers()
    folder = make.write_launch(root, make.make_spec(2), step_s=100.0)
    follow(root, folder, tracker)
    began_s = (folder / "run.json").stat().st_mtime
    assert [round(point.time_s - began_s) for point in tracker.points] == [100 * (step + 1) for step in range(12)]


def test_lines_are_logged_while_training_goes_on_and_the_rest_at_the_end(make, root):
    folder = unfinished(make, root)
    tracker = Remembers()
    with Follower(root, folder, [tracker], interval_s=0.01):
        assert tracker.heard.wait(10)
        assert tracker.steps() == list(range(12))
        add(folder / "steps.rank000.jsonl", {"step": 12, "rank": 0, "loss": 1.0, "images": 32, "step_s": 0.1})
        add(folder / "eval.jsonl", {"step": 12, "epoch": 0.5, "images": 832, "test_loss": 0.7, "test_accuracy": 0.8})
        finish(folder, "oom")
    assert tracker.steps() == list(range(13))
    assert tracker.points[-1].values == {"eval/epoch": 0.5, "eval/loss": 0.7, "eval/accuracy": 0.8}
    assert tracker.closed == ["oom"]


def test_lines_written_just_before_the_end_are_not_missed(make, root):
    folder = unfinished(make, root)
    tracker = Remembers()
    follower = Follower(root, folder, [tracker], interval_s=0.01)
    look = follower._look

    def look_and_then_training_ends():
        look()
        if not (folder / "manifest.json").exists():
            add(folder / "steps.rank000.jsonl", {"step": 12, "rank": 0, "step_s": 0.1})
            finish(folder)

    follower._look = look_and_then_training_ends
    follower.start()
    follower._thread.join(10)
    assert tracker.steps() == list(range(13))


def test_a_launch_folder_may_come_later(make, root):
    spec = make.make_spec(2)
    tracker = Remembers()
    with Follower(root, root / "runs" / spec.run_id / "launch0", [tracker], interval_s=0.01):
        make.write_launch(root, spec)
    assert tracker.steps() == list(range(12))
    assert tracker.closed == ["ok"]


def test_a_torn_last_line_waits_for_its_end(make, root):
    folder = unfinished(make, root)
    path = folder / "steps.rank000.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    tracker = Remembers()
    follow(root, folder, tracker)
    assert tracker.steps() == list(range(11))
    path.write_bytes(whole)
    follow(root, folder, tracker)
    assert tracker.steps() == list(range(12))


@pytest.mark.parametrize("junk", [b"{not json\n", b"\xff\xfe\x00\n", b"[1, 2]\n", b'{"rank": 0, "step": "x"}\n'])
def test_a_damaged_line_is_passed_over(make, root, junk):
    folder = unfinished(make, root)
    path = folder / "steps.rank000.jsonl"
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + junk + b"".join(rest))
    tracker = Remembers()
    follow(root, folder, tracker, report=pytest.fail)
    assert tracker.steps() == list(range(12))


def test_a_value_that_is_not_finite_is_left_out(make, root):
    folder = unfinished(make, root)
    infinite = {"step": 12, "rank": 0, "loss": math.inf, "images": 32, "step_s": 0.1}
    add(folder / "steps.rank000.jsonl", infinite)
    tracker = Remembers()
    follow(root, folder, tracker)
    assert "train/loss" not in tracker.points[-1].values
    assert tracker.points[-1].values["train/step_s"] == 0.1


def test_a_long_file_is_read_in_chunks(make, root, monkeypatch):
    monkeypatch.setattr(lines, "CHUNK_BYTES", 500)
    tracker = Remembers()
    follow(root, make.write_launch(root, make.make_spec(2), accuracy=0.9), tracker)
    assert tracker.steps() == list(range(12))
    assert tracker.steps("eval") == [5, 10]


def test_a_restart_goes_on_where_the_last_one_was(make, root):
    folder = unfinished(make, root)
    tracker = Remembers()
    follow(root, folder, tracker)
    assert tracker.closed == [None]
    add(folder / "steps.rank000.jsonl", {"step": 12, "rank": 0, "loss": 1.0, "images": 32, "step_s": 0.1})
    follow(root, folder, tracker)
    assert tracker.steps() == list(range(13))
    assert tracker.opened[0].key == tracker.opened[1].key


def test_a_finished_launch_is_not_opened_again(make, root):
    folder = make.write_launch(root, make.make_spec(2))
    tracker = Remembers()
    follow(root, folder, tracker)
    follow(root, folder, tracker)
    assert len(tracker.opened) == 1
    assert tracker.closed == ["ok"]


def test_steps_that_come_again_after_a_checkpoint_are_not_logged_again(make, root):
    folder = unfinished(make, root, accuracy=0.9)
    path = folder / "steps.rank000.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    tracker = Remembers()
    follow(root, folder, tracker)
    path.write_bytes(b"".join(whole[:6]))
    add(path, *({"step": step, "rank": 0, "step_s": 0.1} for step in range(6, 13)))
    add(folder / "eval.jsonl", {"step": 10, "test_accuracy": 0.9}, {"step": 12, "test_accuracy": 0.95})
    follow(root, folder, tracker)
    assert tracker.steps() == list(range(13))
    assert tracker.steps("eval") == [5, 10, 12]


@pytest.mark.parametrize("deduplicates", [False, True])
def test_points_in_flight_at_a_crash_come_again_only_where_that_leaves_them_once(make, root, deduplicates):
    folder = unfinished(make, root)
    crashed, again = Remembers(broken_at="log"), Remembers()
    crashed.deduplicates = again.deduplicates = deduplicates
    follow(root, folder, crashed, report=lambda line: None)
    assert crashed.steps() == list(range(12))
    follow(root, folder, again)
    assert again.steps() == (list(range(12)) if deduplicates else [])


@pytest.mark.parametrize("where", ["open", "log", "close"])
def test_a_tracker_that_raises_is_told_once_and_the_others_go_on(make, root, where):
    told, broken, sound = [], Remembers("broken", where), Remembers()
    trackers = [broken, sound]
    for launch in range(2):
        folder = make.write_launch(root, make.make_spec(2), launch)
        with Follower(root, folder, trackers, told.append, interval_s=0.01):
            pass
    assert told == [f"tracker `broken` is left out: RuntimeError: no {where} today; training goes on"]
    assert trackers == [sound]
    assert sound.steps() == 2 * list(range(12))
    assert sound.closed == ["ok", "ok"]


def test_a_damaged_position_leaves_the_tracker_out_and_names_the_file(make, root):
    (root / "trackers").mkdir()
    (root / "trackers" / "remembers.json").write_text("{")
    told, trackers = [], [Remembers()]
    folder = make.write_launch(root, make.make_spec(2))
    with Follower(root, folder, trackers, told.append):
        pass
    assert "`trackers/remembers.json` is damaged" in told[0]
    assert trackers == []


def test_a_launch_left_by_a_dead_process_is_brought_to_its_end(make, root):
    folder = unfinished(make, root)
    tracker = Remembers()
    follow(root, folder, tracker)
    add(folder / "steps.rank000.jsonl", {"step": 12, "rank": 0, "loss": 1.0, "images": 32, "step_s": 0.1})
    finish(folder, "killed")
    catch_up(root, [tracker])
    assert tracker.steps() == list(range(13))
    assert tracker.closed == [None, "killed"]
    catch_up(root, [tracker])
    assert len(tracker.opened) == 2


def test_a_launch_that_still_runs_is_not_brought_to_an_end(make, root):
    tracker = Remembers()
    follow(root, unfinished(make, root), tracker)
    catch_up(root, [tracker])
    assert tracker.closed == [None]


def test_a_tracker_that_hangs_does_not_hold_the_command(make, root):
    release = threading.Event()

    class Hangs(Remembers):
        def log(self, points):
            release.wait(30)

    told = []
    follower = Follower(root, make.write_launch(root, make.make_spec(2)), [Hangs()], told.append)
    follower.start()
    follower.stop(timeout_s=0.05)
    release.set()
    assert told == ["the trackers are not done after 0.05 s; what is left will be logged the next time"]


def test_no_trackers_leave_no_trace(make, root):
    follow(root, make.write_launch(root, make.make_spec(2)))
    assert not (root / "trackers").exists()


def test_settings_are_the_flat_run_without_the_home_folder(make):
    spec = make.make_spec(2, deepspeed={"nvme_path": f"{Path.home()}/offload"})
    found = settings(spec)
    assert found["optimizer.lr"] == spec.optimizer.lr
    assert found["world_size"] == 2
    assert found["deepspeed.nvme_path"] == "~/offload"


def test_a_launch_is_described_by_study_run_and_number(make, root):
    tracker = Remembers()
    spec = make.make_spec(2)
    follow(root, make.write_launch(root, spec, 3), tracker)
    (run,) = tracker.opened
    assert (run.study, run.run_id, run.launch, run.name) == ("golden", spec.run_id, 3, f"{spec.run_id}/launch3")
