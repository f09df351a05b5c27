"""Training that an earlier command left to a scheduler."""

import pytest

from vitscale.config.load import load
from vitscale.errors import Interrupted, LeftRunning
from vitscale.hardware.probe import Machine
from vitscale.launch.outcome import RoundEnd
from vitscale.study.rounds import make_round, next_entry
from vitscale.study.train import train

MACHINE = Machine(4, (0, 1, 2, 3), 8 * 2**30, "Example CPU", (), "none here", None)


class Silent:
    def __getattr__(self, name):
        return lambda *_: None


class Left:
    """A queue with one round; `serve` is what becomes of it."""

    takes_all = False

    def __init__(self, round_, serve):
        self.round, self.serve, self.served = round_, serve, []

    def submit(self, results, rounds):
        raise AssertionError("nothing is handed over")

    def withdraw(self, results, round_):
        raise AssertionError("it is needed")

    def left(self, results):
        return [self.round]

    def run(self, results, round_, watch):
        self.served.append(round_)
        return self.serve()


@pytest.fixture
def go_on(make, tmp_path):
    """Train where a round was left."""
    run, study = make.make_spec(1), load("quick", ("train.epochs=1",)).study
    round_ = make_round(0, run, [next_entry(tmp_path, run)], MACHINE)

    def go(serve):
        queue = Left(round_, lambda: serve(run))
        try:
            train(tmp_path, run, "label", study, MACHINE, queue, Silent())
        finally:
            assert queue.served == [round_]

    return go


def test_it_is_waited_for_and_also_asked_after_when_it_has_finished(go_on, make, tmp_path):
    def finish(run):
        make.write_launch(tmp_path, run, 0, 0.1)
        return RoundEnd("ok")

    go_on(finish)
    go_on(lambda run: RoundEnd("ok"))  # done already, but its end was not written down


def test_it_may_be_left_again_and_a_job_that_was_cancelled_is_an_interruption(go_on):
    def leave(run):
        raise LeftRunning("SLURM goes on with job 17")

    with pytest.raises(LeftRunning):
        go_on(leave)
    with pytest.raises(Interrupted, match="job 17 was cancelled"):
        go_on(lambda run: RoundEnd("killed", "job 17 was cancelled", again=False))
