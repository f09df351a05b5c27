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


TITLES = (
    "nodes", "step, 95 %", "images/s, 95 %", "efficiency, 95 %", "efficiency, 80 %", "limited by", "memory/rank, 95 %",
    "memory/rank, 80 %", "fits", "energy/step, 95 %", "energy/image, 95 %", "cost/million images, 95 %",
    "cost/epoch, 95 %", "training, 95 %",
)  # fmt: skip


def printed(prediction, width):
    out = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    print_prediction(prediction, None, out)
    return out.file.getvalue()


@pytest.mark.parametrize("width", [80, 140])
def test_each_row_of_each_table_begins_with_its_ranks_and_nothing_folds_or_is_cut(prediction, width):
    text = printed(prediction, width)
    lines = text.partition("assumed  ")[0].splitlines()
    begun = [line[:6].strip() for line in lines]
    tables = begun.count("ranks")
    assert tables == 4 if width == 140 else tables > 4
    assert [one for one in begun if re.fullmatch(r"[\d,]+", one)] == tables * ["8", "64", "1,024"]
    heads = " ".join(line for line, begin in zip(lines, begun, strict=True) if begin == "ranks")
    assert [one for one in TITLES if one not in heads] == []
    figures = [begin for line, begin in zip(lines, begun, strict=True) if re.search(r"\d[%\w ]*\]", line)]
    assert len(figures) >= 12
    assert "" not in figures
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_images_per_second_have_no_powers_of_ten(prediction):
    text = printed(prediction, 140)
    assert max(one.images_per_s.median for one in prediction.points) > 1e5
    assert not re.search(r"\de[+-]?\d", text)
