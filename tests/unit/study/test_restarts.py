"""Training that goes on by itself where its ranks are lost, and where it does not."""

import pytest

from vitscale.config.load import load
from vitscale.errors import (
    CheckpointError,
    DivergedError,
    HangError,
    Interrupted,
    MemoryExceeded,
    SetupError,
    WorkerError,
)
from vitscale.hardware.probe import Machine
from vitscale.launch.outcome import RoundEnd
from vitscale.records import checkpoint
from vitscale.records.checkpoint import CHECKPOINT, COMPLETE, Checkpoint
from vitscale.study import train as training
from vitscale.study.train import Start, train

MACHINE = Machine(4, (0, 1, 2, 3), 8 * 2**30, "Example CPU", (), "none here", None)
KILLED = RoundEnd("failed", "rank 1 was ended by SIGKILL")


class Told:
    def __init__(self):
        self.lines = []

    def message(self, line):
        self.lines.append(line)

    def __getattr__(self, name):
        return lambda *_: None


class Fake:
    """Ends its rounds one after another as it was told; `(status, step)` or `(end, step of the checkpoint it leaves)`.

    After a status the ranks have written their record; `status: why` is what the launcher says beside it.
    """

    def __init__(self, make, run, ends):
        self.make, self.run_, self.ends, self.rounds = make, run, list(ends), []

    def run(self, results, round_, watch):
        self.rounds.append(round_)
        end, step = self.ends.pop(0)
        if step is not None:
            leave_checkpoint(results, self.run_, step)
        launch = round_.entries[0].launch
        if isinstance(end, RoundEnd):
            self.make.write_launch(results, self.run_, launch, 0.1, status=None)
            return end
        status, _, why = end.partition(": ")
        self.make.write_launch(results, self.run_, launch, 0.1, status=status)
        return RoundEnd(status, why) if why else RoundEnd("ok")


def leave_checkpoint(results, run, step):
    folder = checkpoint.folder_of(results / "checkpoints", step)
    folder.mkdir(parents=True, mode=0o700)
    document = Checkpoint(run_id=run.run_id, spec=run.model_dump(mode="json"), step=step, seconds=1.0)
    (folder / CHECKPOINT).write_bytes(checkpoint.to_json(document))
    (folder / COMPLETE).touch()
    for path in (folder, *folder.iterdir()):
        path.chmod(0o700)


@pytest.fixture
def go(make, tmp_path):
    """Train; the launcher, and what was told."""
    run = make.make_spec(1)

    def go(*ends, restarts=2):
        study = load("quick", ("train.epochs=1", f"train.restarts={restarts}")).study
        fake, told = Fake(make, run, ends), Told()
        try:
            train(tmp_path, run, "label", study, MACHINE, fake, told)
        finally:
            go.resumed = [round_.entries[0].checkpoints.resume for round_ in fake.rounds]
            assert [round_.entries[0].checkpoints.restart for round_ in fake.rounds] == [*range(len(fake.rounds))]
        return told.lines

    return go


def test_each_restart_goes_on_from_the_newest_checkpoint_and_is_told(go):
    hang = RoundEnd("timeout", "ranks 0, 1 finished no step for 120 s")
    lines = go((KILLED, 4), (hang, 8), ("ok", 12))
    assert go.resumed == [None, "checkpoints/step00000004", "checkpoints/step00000008"]
    ends = [line.split("; going on from checkpoint ") for line in lines[1:]]
    assert ends == [
        ["training ended: rank 1 was ended by SIGKILL", "`step00000004`, after step 4 (restart 1 of 2)"],
        [f"training ended: {hang.reason}", "`step00000008`, after step 8 (restart 2 of 2)"],
    ]


def test_a_preempted_job_is_started_again(go):
    go((RoundEnd("killed", "job 17 was preempted"), 4), ("ok", 8))
    assert len(go.resumed) == 2


def test_a_preempted_job_whose_ranks_had_time_to_save_is_started_again_too(go):
    go(("killed: job 17 was preempted", 4), ("ok", 8))
    assert go.resumed == [None, "checkpoints/step00000004"]


def test_a_damaged_checkpoint_does_not_hide_how_training_ended(go, tmp_path, monkeypatch):
    def refuse(folder, run):
        if (folder / "checkpoints").exists():
            raise CheckpointError("`step00000004` is damaged")
        return Start(None, "from the beginning")

    monkeypatch.setattr(training, "start_of", refuse)
    with pytest.raises(WorkerError, match="rank 1 was ended by SIGKILL"):
        go((KILLED, 4))


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (RoundEnd("killed", "job 17 was cancelled", again=False), Interrupted),
        (RoundEnd("oom", "the kernel ended a rank for want of host memory"), MemoryExceeded),
        (RoundEnd("failed", "rank 0: not finite", "diverged"), DivergedError),
        (RoundEnd("failed", "rank 0: no such device", "setup"), SetupError),
        (RoundEnd("timeout", "job 17 reached its time limit", "time_limit"), Interrupted),
        ("killed", Interrupted),
    ],
    ids=["cancelled", "no memory", "diverged", "setup", "time limit", "asked to stop"],
)
def test_what_a_further_start_would_meet_again_or_a_user_asked_for_is_the_end(go, end, error):
    with pytest.raises(error):
        go((end, 4))
    assert len(go.resumed) == 1


def test_without_a_newer_checkpoint_there_is_no_restart(go):
    with pytest.raises(WorkerError, match="rank 1 was ended by SIGKILL"):
        go((KILLED, None))
    with pytest.raises(HangError):
        go((KILLED, 4), (RoundEnd("timeout", "hangs"), None))
    assert go.resumed == [None, "checkpoints/step00000004"]


def test_restarts_are_counted_and_can_be_switched_off(go):
    with pytest.raises(WorkerError):
        go((KILLED, 4), restarts=0)
    with pytest.raises(WorkerError):
        go((KILLED, 8), (KILLED, 12), restarts=1)
    assert go.resumed == ["checkpoints/step00000004", "checkpoints/step00000008"]
