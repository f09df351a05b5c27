"""Predictions in the terminal, however narrow it is."""

import io
import re

import pytest
from rich.console import Console

from vitscale.cost.scaling import Layout
from vitscale.predict.model import calibrate, predict
from vitscale.predict.series import Asked, Observation, Series
from vitscale.report.prediction_text import print_prediction


@pytest.fixture(scope="module")
def prediction():
    seen = tuple(
        Observation(Layout(size, 1, 64, 1), step_s, images_per_epoch=50_000)
        for size, step_s in ((1, 0.1), (2, 0.11), (4, 0.115))
    )
    facts = {"model": "vit_base_patch16_224", "device": "A100", "engine": "deepspeed", "precision": "bf16"}
    asked = Asked(price_per_hour=2.0, epochs=90)
    return predict(calibrate(Series("s", seen, "strong_fixed_micro", **facts)), [8, 64, 1024], asked)


@pytest.mark.parametrize("width", [80, 140])
def test_each_row_of_each_table_begins_with_its_ranks_and_nothing_is_cut(prediction, width):
    out = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    print_prediction(prediction, None, out)
    text = out.file.getvalue()
    begun = [line[:6].strip() for line in text.partition("assumed  ")[0].splitlines()]
    assert begun.count("ranks") == 4
    assert [one for one in begun if re.fullmatch(r"[\d,]+", one)] == 4 * ["8", "64", "1,024"]
    for words in ("energy/image, 95 %", "cost/epoch, 95 %", "training, 95 %"):
        assert words in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
