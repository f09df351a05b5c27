"""The recipe of the shipped study `cifar10`, on a generated release in CIFAR's own format: shortened, it trains."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitscale.data.prepare import prepare
from vitscale.data.releases import RELEASES

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

PUBLISHED = Path(__file__).parents[1] / "unit" / "data" / "published.py"


@pytest.fixture
def cifar10(monkeypatch, tmp_path):
    """A data folder in which `cifar10` is 100 training and 10 test images of noise, read from a binary archive."""
    spec = importlib.util.spec_from_file_location("published", PUBLISHED)
    published = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "published", published)
    spec.loader.exec_module(published)
    made = published.publish("cifar10", "binary")
    monkeypatch.setitem(RELEASES, "cifar10", (made.release,))
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(made.archive)
    prepare("cifar10", tmp_path / "data", source=archive)
    return tmp_path / "data"


def test_the_recipe_trains_on_a_file_in_cifars_format(cifar10, tmp_path):
    words = ["data.images=100", "global_batch=32", "train.epochs=1", "warmup_epochs=0.5"]
    command = [sys.executable, "-m", "vitscale", "train", "cifar10", *words, "--out", str(tmp_path / "out")]
    environ = {**os.environ, "VITSCALE_DATA": str(cifar10)}
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr
    (launch,) = (tmp_path / "out").glob("runs/*/launch*")
    recipe = json.loads((launch / "run.json").read_text())["train"]
    assert (recipe["mixup"], recipe["cutmix"], recipe["rand_augment"], recipe["crop"]) == (0.8, 1.0, 9, 4)
    steps = [json.loads(line) for line in (launch / "steps.rank000.jsonl").read_text().splitlines()]
    assert [step["images"] for step in steps] == [32, 32, 32]
    assert all(math.isfinite(step["loss"]) for step in steps)
    (score,) = [json.loads(line) for line in (launch / "eval.jsonl").read_text().splitlines()]
    assert (score["images"], score["epoch"]) == (96, 1.0)
