"""Fault 23: a signal to one rank is heard, whichever of a scheduler's it is, and what was there before comes back."""

import os
import signal

import pytest
import torch

from vitscale.worker import agreement
from vitscale.worker.distributed import Ranks

ALONE = Ranks(0, 0, 1, 1, torch.device("cpu"))
NAMES = ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGINT"]


class Done:
    def wait(self):
        pass


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """One rank: the maximum over ranks is its own."""
    monkeypatch.setattr(agreement, "start_maximum", lambda values: Done())


@pytest.mark.parametrize("name", NAMES)
def test_every_signal_asks_all_ranks_to_stop_a_few_steps_later(name):
    number, loss = signal.Signals[name], torch.tensor(1.0)
    before = signal.getsignal(number)
    with agreement.Agreement(ALONE, hear=True) as ranks:
        assert not ranks.after_step(0, loss).stop
        os.kill(os.getpid(), number)
        stops = [ranks.after_step(step, loss).stop for step in range(1, 5)]
    assert stops.index(True) == agreement.DELAY
    assert signal.getsignal(number) == before


def test_a_loss_that_is_not_finite_is_known_with_its_step():
    """Fault 22."""
    with agreement.Agreement(ALONE, hear=True) as ranks:
        losses = [1.0, float("nan"), float("inf"), 1.0]
        for step, loss in enumerate(losses):
            verdict = ranks.after_step(step, torch.tensor(loss))
        assert verdict.not_finite_step == 1
        assert ranks.settle() == (False, 2, False)


def test_one_rank_that_is_due_makes_all_write_after_the_same_step():
    with agreement.Agreement(ALONE, hear=True) as ranks:
        flushes = [ranks.after_step(step, torch.tensor(1.0), flush=step == 3).flush for step in range(8)]
    assert flushes.index(True) == 3 + agreement.DELAY
    assert sum(flushes) == 1
