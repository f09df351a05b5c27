"""Rounds, retries, resuming and stopping, with a launcher that writes records and starts nothing."""

import itertools
import json

import pytest

from vitscale.config.knobs import EngineSection
from vitscale.config.runspec import RunSpec
from vitscale.config.study import MeasureSection
from vitscale.errors import Interrupted, LeftRunning, SetupError
from vitscale.hardware.probe import Machine
from vitscale.launch.outcome import RoundEnd
from vitscale.records.round import Beat
from vitscale.study import execute as execution
from vitscale.study.execute import execute

MACHINE = Machine(4, (0, 1, 2, 3), 8 * 2**30, "Example CPU", (), "none here", None)


class Quiet:
    def __init__(self):
        self.told = []

    def started(self, total_launches, done):
        self.told.append(("started", total_launches, done))

    def launch_started(self, run_id, label, launch):
        self.told.append(("launch", run_id, launch))

    def progress(self, run_id, step, steps, phase, loss, images_per_s):
        pass

    def launch_finished(self, run_id, launch, status, images_per_s, reason):
        self.told.append(("finished", run_id, launch, status, reason))

    def message(self, text):
        self.told.append(("message", text))


class Fake:
    """Writes a launch for each entry; `faults` is asked first and may end the round before an entry is finished."""

    def __init__(self, make, root, faults=lambda round_, number: None, step_s=lambda spec, launch: 0.1):
        self.make, self.root, self.faults, self.step_s, self.rounds = make, root, faults, step_s, []

    def run(self, results, round_, watch):
        self.rounds.append(round_)
        for number, entry in enumerate(round_.entries):
            watch(Beat(number, "setup", 0, 0, None))
            spec = RunSpec.model_validate(entry.spec)
            end = self.faults(round_, number)
            if end is not None:
                self.make.write_launch(results, spec, entry.launch, 0.1, status=None, steps=1)
                if isinstance(end, BaseException):
                    raise end
                return end
            self.make.write_launch(results, spec, entry.launch, self.step_s(spec, entry.launch))
        watch(Beat(len(round_.entries), "done", 0, 0, None))
        return RoundEnd("ok")


def settle(make, root, spec, launch):
    """Leave a launch as it is when its steady window is over, and a trace that is not whole."""
    folder = make.write_launch(root, spec, launch, 0.1)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["notes"] = {"silence": "fewer than 8 steady steps"}
    (folder / ".settled.json").write_text(json.dumps(manifest))
    (folder / "manifest.json").unlink()
    (folder / "trace.rank000.json.gz").write_bytes(b"half of")


@pytest.fixture
def specs(make):
    return [make.make_spec(1), make.make_spec(2), make.make_spec(1, "weak"), make.make_spec(2, "weak")]


@pytest.fixture
def go(make, tmp_path, specs):
    def run(fake=None, runs=None, **measure):
        fake = fake or Fake(make, tmp_path)
        observer = Quiet()
        runs = specs if runs is None else runs
        labels = {spec.run_id: spec.run_id for spec in runs}
        outcome = execute(tmp_path, runs, labels, MeasureSection(**measure), MACHINE, fake, observer)
        return fake, observer, outcome

    return run


def statuses(root):
    return {
        f"{path.parent.parent.name[:6]}-w{json.loads(path.read_text())['layout']['world_size']}-{path.parent.name}": (
            json.loads(path.read_text())["status"]
        )
        for path in sorted(root.glob("runs/*/launch*/manifest.json"))
    }


def test_an_end_without_fault_and_without_a_record_is_a_failure(go, make, tmp_path, specs):
    _, _, outcome = go(Fake(make, tmp_path, faults=lambda round_, number: RoundEnd("ok")), runs=specs[:1], launches=1)
    assert outcome.missing == (specs[0].run_id,)
    assert {*statuses(tmp_path).values()} == {"failed"}


def test_one_round_serves_every_run_of_a_world_size_and_rounds_interleave(go):
    fake, _, outcome = go(launches=3)
    assert outcome.missing == ()
    assert [round_.world_size for round_ in fake.rounds] == [1, 2, 2, 1, 1, 2]
    assert [len(round_.entries) for round_ in fake.rounds] == [2] * 6
    first = [[entry.spec["protocol"] for entry in round_.entries] for round_ in fake.rounds]
    assert first[0] == ["strong", "weak"]
    assert first[3] == ["weak", "strong"]


def test_cores_and_threads_are_equal_at_every_world_size(go):
    fake, _, _ = go(launches=1)
    sizes = {round_.world_size: [len(cores) for cores in round_.cores] for round_ in fake.rounds}
    assert sizes == {1: [1], 2: [1, 1]}


def test_runs_whose_ranks_are_not_bound_have_a_process_start_of_their_own(go, make):
    free = make.make_spec(2, knobs=EngineSection(bind_cores=False))
    fake, _, _ = go(runs=[make.make_spec(2), free], launches=1)
    assert [(len(round_.entries), [len(cores) for cores in round_.cores]) for round_ in fake.rounds] == [
        (1, []), (1, [1, 1]),
    ]  # fmt: skip


def test_ranks_are_told_their_allocator(go, make):
    other = make.make_spec(2, knobs=EngineSection(allocator="tcmalloc"))
    fake, _, _ = go(runs=[make.make_spec(2), other], launches=1)
    assert [round_.allocator for round_ in fake.rounds] == [None, "tcmalloc"]


def test_what_is_finished_is_not_measured_again(go, make, tmp_path):
    go(launches=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    fake, observer, outcome = go(launches=2)
    assert fake.rounds == []
    assert observer.told == [("started", 8, 8)]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    fake, _, outcome = go(launches=3)
    assert [len(round_.entries) for round_ in fake.rounds] == [2, 2]
    assert outcome.missing == ()
    assert all(path.read_bytes() == data for path, data in before.items())


def test_a_crash_costs_the_launch_in_flight_and_the_rest_of_the_round_is_started_again(go, make, tmp_path):
    struck = []

    def faults(round_, number):
        if round_.world_size == 2 and number == 0 and not struck:
            struck.append(round_.name)
            return RoundEnd("failed", "rank 1 was ended by SIGKILL")
        return None

    fake, observer, outcome = go(Fake(make, tmp_path, faults), launches=1)
    assert outcome.missing == ()
    assert [(round_.world_size, len(round_.entries)) for round_ in fake.rounds] == [(1, 2), (2, 2), (2, 2)]
    assert [entry.spec["protocol"] for entry in fake.rounds[2].entries] == ["weak", "strong"]
    assert statuses(tmp_path)["strong-w2-launch0"] == "failed"
    assert statuses(tmp_path)["strong-w2-launch1"] == "ok"
    assert ("finished", fake.rounds[1].entries[0].run_id, 0, "failed", "rank 1 was ended by SIGKILL") in observer.told


def test_machines_that_are_not_what_was_asked_for_end_the_study_at_once(go, make, tmp_path):
    end = RoundEnd("failed", "rank 0: hosts differ: timm 1.0 on host 0, 1.1 on host 1", "setup", "one environment")
    fake = Fake(make, tmp_path, lambda round_, number: end if round_.world_size == 2 else None)
    with pytest.raises(SetupError, match="hosts differ: timm") as caught:
        go(fake, launches=1)
    assert caught.value.hint == "one environment"
    assert [round_.world_size for round_ in fake.rounds] == [1, 2]


def test_a_launch_that_fails_twice_is_left_and_the_study_goes_on(go, make, specs, tmp_path):
    def faults(round_, number):
        entry = round_.entries[number]
        return RoundEnd("failed", "no") if entry.run_id == specs[1].run_id else None

    _, _, outcome = go(Fake(make, tmp_path, faults), launches=3)
    assert outcome.missing == (specs[1].run_id,)
    found = statuses(tmp_path)
    assert [found[f"strong-w2-launch{k}"] for k in range(2)] == ["failed", "failed"]
    assert "strong-w2-launch2" not in found
    assert sum(status == "ok" for status in found.values()) == 9
    # The same command tries again.
    _, _, outcome = go(launches=3)
    assert outcome.missing == ()


def test_a_round_gets_the_jobs_that_it_needs_and_a_launch_that_needs_more_than_one_none(go, make, specs, tmp_path):
    limit = RoundEnd("timeout", "job 17 reached its time limit", "time_limit")
    fake, _, outcome = go(Fake(make, tmp_path, lambda round_, number: limit if number else None), launches=1)
    assert outcome.error(4) is None
    assert [len(round_.entries) for round_ in fake.rounds] == [2, 1, 2, 1]
    long = specs[1].run_id
    fake, _, outcome = go(
        Fake(make, tmp_path, lambda round_, number: limit if round_.entries[number].run_id == long else None),
        launches=2,
    )
    assert outcome == ((long,), (long,))
    assert [entry.run_id for round_ in fake.rounds for entry in round_.entries].count(long) == 1
    assert outcome.error(4).exit_code == 75
    assert "time limit" in outcome.error(4).message


def test_launches_that_share_a_job_are_cut_by_its_limit_as_often_as_it_takes(go, make, tmp_path):
    limit = RoundEnd("timeout", "job 17 reached its time limit", "time_limit")
    runs = [make.make_spec(1, global_batch=batch, micro_batch=batch) for batch in (8, 16, 32, 64)]
    fake, _, outcome = go(Fake(make, tmp_path, lambda round_, number: limit if number else None), runs=runs, launches=3)
    assert outcome == ((), ())
    assert max(len(round_.entries) for round_ in fake.rounds) == 4


def test_what_failed_otherwise_is_no_interruption():
    assert execution.Outcome(("a", "b"), ("a",)).error(4).exit_code == 5


def test_out_of_memory_is_an_outcome_and_not_tried_again(go, make, specs, tmp_path):
    def faults(round_, number):
        entry = round_.entries[number]
        return RoundEnd("oom", "rank 0: out of memory") if entry.run_id == specs[0].run_id else None

    _, _, outcome = go(Fake(make, tmp_path, faults), launches=2)
    assert outcome.missing == ()
    found = statuses(tmp_path)
    assert found["strong-w1-launch0"] == "oom"
    assert "strong-w1-launch1" not in found
    fake, _, _ = go(launches=2)
    assert fake.rounds == []


def test_out_of_memory_is_final_even_while_launches_are_added(go, make, specs, tmp_path):
    def faults(round_, number):
        entry = round_.entries[number]
        return RoundEnd("oom", "no") if entry.run_id == specs[0].run_id and entry.launch == 1 else None

    adaptive = {"launches": 2, "target_interval": 0.0001, "budget_s": 1000}
    noisy = Fake(make, tmp_path, faults, lambda spec, launch: 0.1 * (1 + launch / 5))
    go(noisy, runs=specs[:1], **adaptive)
    found = statuses(tmp_path)
    assert found == {"strong-w1-launch0": "ok", "strong-w1-launch1": "oom"}


@pytest.mark.parametrize("end", [RoundEnd("oom", "rank 1: no memory"), RoundEnd("timeout", "rank 1: no memory")])
def test_a_launch_that_got_through_its_window_counts_whatever_came_after(go, make, specs, tmp_path, end):
    def faults(round_, number):
        entry = round_.entries[number]
        if entry.run_id != specs[1].run_id:
            return None
        settle(make, tmp_path, specs[1], entry.launch)
        return end

    fake, observer, outcome = go(Fake(make, tmp_path, faults), launches=1)
    assert outcome.missing == ()
    assert [(round_.world_size, len(round_.entries)) for round_ in fake.rounds] == [(1, 2), (2, 2), (2, 1)]
    (path,) = (tmp_path / "runs" / specs[1].run_id).glob("launch*")
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["status"], manifest["reason"]) == ("ok", None)
    told = "the ranks ended after the steady window: rank 1: no memory"
    assert manifest["notes"] == {"silence": "fewer than 8 steady steps"} | dict.fromkeys(
        ("overhead", "overlap", "memory"), told
    )
    assert not {"trace.rank000.json.gz", ".settled.json"} & {one.name for one in path.iterdir()}
    assert ("message", f"its figures stand; {told}") in observer.told


def test_an_interrupt_after_the_window_leaves_its_launch_as_measured(go, make, specs, tmp_path):
    def faults(round_, number):
        settle(make, tmp_path, specs[0], 0)
        return KeyboardInterrupt()

    with pytest.raises(Interrupted):
        go(Fake(make, tmp_path, faults), runs=specs[:1], launches=1)
    assert statuses(tmp_path) == {"strong-w1-launch0": "ok"}


def test_a_process_that_died_after_the_window_left_a_launch_that_counts(go, make, specs, tmp_path):
    settle(make, tmp_path, specs[0], 0)
    fake, _, outcome = go(runs=specs[:1], launches=1)
    assert outcome.missing == ()
    assert fake.rounds == []
    assert statuses(tmp_path) == {"strong-w1-launch0": "ok"}


def test_folders_of_somebody_elses_are_passed_over(go, specs, tmp_path):
    go(launches=1)
    (tmp_path / "runs" / specs[0].run_id / "launch0.bak").mkdir()
    (tmp_path / "rounds" / "0abc-w1").mkdir(parents=True)
    _, _, outcome = go(launches=2)
    assert outcome.missing == ()
    assert statuses(tmp_path)["strong-w1-launch1"] == "ok"


def test_a_launch_without_a_manifest_of_a_dead_process_is_marked_killed_and_repeated(go, make, specs, tmp_path):
    make.write_launch(tmp_path, specs[0], 0, status=None)
    _, _, outcome = go(launches=1)
    assert outcome.missing == ()
    assert statuses(tmp_path)["strong-w1-launch0"] == "killed"
    assert statuses(tmp_path)["strong-w1-launch1"] == "ok"


def test_an_interrupt_marks_the_launch_in_flight_and_keeps_the_rest(go, make, tmp_path):
    def faults(round_, number):
        return KeyboardInterrupt() if round_.world_size == 2 and number == 1 else None

    with pytest.raises(Interrupted):
        go(Fake(make, tmp_path, faults), launches=3)
    assert statuses(tmp_path) == {
        "strong-w1-launch0": "ok", "strong-w2-launch0": "ok", "weak-v-w1-launch0": "ok", "weak-v-w2-launch0": "killed",
    }  # fmt: skip
    _, _, outcome = go(launches=3)
    assert outcome.missing == ()


def test_launches_are_added_until_the_interval_is_narrow(go, make, specs, tmp_path):
    noise = {0: 0.10, 1: 0.11, 2: 0.10, 3: 0.105, 4: 0.104, 5: 0.103, 6: 0.104, 7: 0.104}

    def step_s(spec, launch):
        return noise[launch] if spec.run_id == specs[0].run_id else 0.1 * (1 + launch / 1e4)

    measure = {"launches": 3, "target_interval": 0.05, "budget_s": 1000}
    fake, _, outcome = go(Fake(make, tmp_path, step_s=step_s), **measure)
    assert outcome.missing == ()
    added = [entry.run_id for round_ in fake.rounds[6:] for entry in round_.entries]
    assert set(added) == {specs[0].run_id}
    assert 1 <= len(added) <= 5


def test_no_launch_is_added_once_the_budget_is_spent(go, make, tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 100))
    monkeypatch.setattr(execution.time, "monotonic", lambda: float(next(clock)))
    wide = Fake(make, tmp_path, step_s=lambda spec, launch: 0.1 * (1 + launch))
    fake, _, outcome = go(wide, launches=2, target_interval=0.01, budget_s=50)
    assert outcome.missing == ()
    assert len(fake.rounds) == 4


@pytest.mark.parametrize(
    "other",
    [
        {"engine": "ddp", "zero_stage": None},
        {"zero_stage": 3},
        {"sequence_parallel": 2},
        {"tensor_parallel": 2},
        {"knobs": EngineSection(overlap_reduce=True)},
    ],
)
def test_ways_to_distribute_training_are_held_against_plain_torch_in_their_first_launch(go, make, other):
    one = make.make_spec(2)
    rounds = go(runs=[one, one.model_copy(update=other)], launches=2)[0].rounds
    assert [[entry.parity for entry in round_.entries] for round_ in rounds] == [[True, True], [False, False]]


def test_one_way_is_not_held_against_anything(go, make, specs):
    loops = [*specs, specs[0].model_copy(update={"knobs": EngineSection(optimizer_impl="foreach")})]
    assert not any(entry.parity for round_ in go(runs=loops, launches=1)[0].rounds for entry in round_.entries)


class FakeQueue(Fake):
    """Rounds are handed over before they are waited for; those in `going_on` are left from an earlier process."""

    def __init__(self, *args, going_on=(), takes_all=False, **more):
        super().__init__(*args, **more)
        self.handed, self.going_on, self.takes_all, self.withdrawn = [], [*going_on], takes_all, []

    def submit(self, results, rounds):
        known = [*self.going_on, *itertools.chain(*self.handed)]
        if new := [round_ for round_ in rounds if round_ not in known]:
            self.handed.append(new)
        return "handed over" if new else None

    def left(self, results):
        return self.going_on

    def withdraw(self, results, round_):
        self.withdrawn.append(round_)


def test_a_queue_is_given_a_turns_rounds_before_the_first_is_waited_for(go, make, tmp_path):
    fake, observer, outcome = go(FakeQueue(make, tmp_path), launches=2)
    assert outcome.missing == ()
    assert [[round_.name for round_ in turn] for turn in fake.handed] == [
        ["0000-w1", "0001-w2"],
        ["0002-w2", "0003-w1"],
    ]
    assert fake.rounds == [round_ for turn in fake.handed for round_ in turn]
    assert observer.told.count(("message", "handed over")) == 2


def test_rounds_that_go_on_without_the_command_are_not_closed_and_are_served_first_by_the_next(go, make, tmp_path):
    stopped = FakeQueue(make, tmp_path, faults=lambda round_, number: LeftRunning("SLURM goes on with job 17"))
    with pytest.raises(LeftRunning):
        go(stopped, launches=1)
    assert statuses(tmp_path) == {}  # its ranks go on writing
    (handed,) = stopped.handed
    again, observer, outcome = go(FakeQueue(make, tmp_path, going_on=handed), launches=1)
    assert ("message", "waiting for what was handed over before: 0000-w1, 0001-w2") in observer.told
    assert again.rounds == handed
    assert again.handed == []
    assert outcome.missing == ()
    assert {*statuses(tmp_path).values()} == {"ok"}


def test_of_a_round_that_goes_on_only_runs_that_the_study_still_has_are_tried_again(go, make, tmp_path, specs):
    stopped = FakeQueue(make, tmp_path, faults=lambda round_, number: LeftRunning("SLURM goes on with job 17"))
    with pytest.raises(LeftRunning):
        go(stopped, launches=1)
    (handed,) = stopped.handed
    kept, dropped = specs[:2], specs[2:]  # each round begins with one that is kept, and one is turned round
    turned = handed[1].model_copy(update={"entries": handed[1].entries[::-1]})

    def faults(round_, number):
        return RoundEnd("failed", "no") if round_ in (handed[0], turned) and number == 0 else None

    fake, _, outcome = go(FakeQueue(make, tmp_path, faults, going_on=[handed[0], turned]), runs=kept, launches=1)
    assert outcome.missing == ()
    assert fake.rounds[0] == handed[0]
    again = [{entry.run_id for entry in round_.entries} for round_ in fake.rounds if round_ not in (handed[0], turned)]
    assert again == [{kept[0].run_id}, {kept[1].run_id}]
    assert not any((tmp_path / "runs" / spec.run_id / "launch1").exists() for spec in dropped)


def test_a_round_that_goes_on_without_any_run_of_the_study_is_waited_for_and_left(go, make, tmp_path, specs):
    stopped = FakeQueue(make, tmp_path, faults=lambda round_, number: LeftRunning("SLURM goes on with job 17"))
    with pytest.raises(LeftRunning):
        go(stopped, runs=specs[2:3], launches=1)
    (handed,) = stopped.handed
    queue = FakeQueue(make, tmp_path, lambda round_, number: RoundEnd("failed", "no") if round_ in handed else None)
    queue.going_on = handed
    fake, _, outcome = go(queue, runs=specs[:1], launches=1)
    assert [[entry.run_id for entry in round_.entries] for round_ in fake.rounds] == [
        [specs[2].run_id], [specs[0].run_id],
    ]  # fmt: skip
    assert outcome.missing == ()


def test_nothing_of_a_round_that_a_user_cancelled_is_tried_again(go, make, tmp_path, specs):
    def cancel(round_, number):
        return RoundEnd("killed", "job 17 was cancelled", again=False) if round_.world_size == 1 else None

    fake, _, outcome = go(FakeQueue(make, tmp_path, faults=cancel), launches=2)
    assert [round_.world_size for round_ in fake.rounds] == [1, 2, 2]
    assert outcome.missing == tuple(spec.run_id for spec in specs if spec.world_size == 1)


def test_a_queue_that_takes_all_is_given_every_launch_and_none_has_the_number_of_another(go, make, tmp_path, specs):
    def faults(round_, number):
        return RoundEnd("failed", "no") if (round_.name, number) == ("0000-w1", 0) else None

    fake, observer, outcome = go(FakeQueue(make, tmp_path, faults, takes_all=True), launches=3)
    assert outcome.missing == ()
    (handed,) = fake.handed
    assert [round_.name for round_ in handed] == ["0000-w1", "0001-w2", "0002-w2", "0003-w1", "0004-w1", "0005-w2"]
    assert observer.told.count(("message", "handed over")) == 1
    assert [round_.name for round_ in fake.rounds] == ["0000-w1", "0006-w1", *(one.name for one in handed[1:])]
    served = [entry.folder for round_ in (*handed, fake.rounds[1]) for entry in round_.entries]
    again = {entry.folder for entry in handed[0].entries[1:]}  # not begun, and served with a number of its own
    assert len(served) == len({*served}) == 14
    assert {*served} - again == {str(path.parent.relative_to(tmp_path)) for path in tmp_path.glob("runs/*/*/run.json")}


def test_of_launches_that_are_handed_over_together_the_first_is_held_against_plain_torch(go, make, tmp_path):
    one = make.make_spec(1)
    both = [one, one.model_copy(update={"engine": "ddp", "zero_stage": None})]
    rounds = go(FakeQueue(make, tmp_path, takes_all=True), runs=both, launches=3)[0].rounds
    assert [[entry.parity for entry in round_.entries] for round_ in rounds] == [[True, True], *[[False, False]] * 2]


def test_launches_that_an_earlier_one_makes_needless_are_withdrawn(go, make, tmp_path, specs):
    def faults(round_, number):
        return RoundEnd("oom", "no memory", "oom") if round_.world_size == 2 else None

    fake, _, outcome = go(FakeQueue(make, tmp_path, faults, takes_all=True), runs=specs[:2], launches=3)
    assert outcome.missing == ()
    assert [round_.world_size for round_ in fake.rounds] == [1, 2, 1, 1]
    assert [round_.name for round_ in fake.withdrawn] == ["0002-w2", "0005-w2"]
    assert [*statuses(tmp_path).values()].count("oom") == 1


def test_one_launch_that_a_user_cancels_leaves_those_that_are_handed_over(go, make, tmp_path, specs):
    def faults(round_, number):
        return RoundEnd("killed", "job 17_0 was cancelled", again=False) if round_.name == "0000-w1" else None

    fake, _, outcome = go(FakeQueue(make, tmp_path, faults, takes_all=True), runs=specs[:1], launches=3)
    assert [round_.name for round_ in fake.rounds] == ["0000-w1", "0001-w1", "0002-w1"]
    assert fake.withdrawn == []
    assert outcome.missing == (specs[0].run_id,)  # the same command asks for it again


def test_what_a_queue_goes_on_with_is_not_asked_for_again(go, make, tmp_path, specs):
    stopped = FakeQueue(
        make, tmp_path, lambda round_, number: LeftRunning("job 17") if round_.name == "0001-w2" else None,
        takes_all=True,
    )  # fmt: skip
    with pytest.raises(LeftRunning):
        go(stopped, launches=2)
    going_on = stopped.handed[0][1:]
    again, _, outcome = go(FakeQueue(make, tmp_path, going_on=going_on, takes_all=True), launches=3)
    assert outcome.missing == ()
    assert again.rounds[:3] == going_on
    (handed,) = again.handed
    assert {entry.launch for round_ in handed for entry in round_.entries} == {2}
