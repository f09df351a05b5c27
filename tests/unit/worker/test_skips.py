"""Fault 21: gradients that overflow fp16. Their steps are told apart, and at the smallest loss scale training ends."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("torch")

from vitscale.errors import DivergedError
from vitscale.worker.engines.deepspeed import DeepSpeedEngine
from vitscale.worker.loop import Skips


class Inner:
    """What `deepspeed.initialize` gives, as far as loss scaling goes."""

    def __init__(self, ends=()):
        self.skipped_steps = 3  # of before a checkpoint
        self._ends = iter(ends)

    def step(self):
        end = next(self._ends)
        if end:
            self.skipped_steps += 1
        if isinstance(end, str):
            raise Exception(end)


def engine(*ends):
    made = object.__new__(DeepSpeedEngine)
    made._engine = Inner(ends)
    return made


def test_skipped_steps_are_told_apart_from_those_before():
    wrapped = engine(True, True, False, True)
    skips = Skips(wrapped)
    for step in range(10, 14):
        wrapped.step()
        skips.see(step)
    assert skips.steps == {10, 11, 13}


def test_at_the_smallest_loss_scale_training_has_diverged():
    with pytest.raises(DivergedError) as raised:
        engine("Current loss scale already at minimum - cannot decrease scale anymore. Exiting run.").step()
    assert raised.value.hint == "precision=bf16"
    with pytest.raises(Exception, match="something else"):
        engine("something else").step()


def test_the_words_are_deepspeeds():
    found = importlib.util.find_spec("deepspeed")
    if found is None:
        pytest.skip(reason="DeepSpeed is not installed")
    (folder,) = found.submodule_search_locations
    assert "loss scale already at minimum" in (Path(folder) / "runtime/fp16/loss_scaler.py").read_text()
