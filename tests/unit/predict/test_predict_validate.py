"""The package's own tables, series by series: right more often than two baselines, and intervals that cover."""

import csv
from collections import Counter
from importlib.resources import files

import pytest

from vitscale.cost.scaling import Layout
from vitscale.errors import UsageError
from vitscale.predict import priors
from vitscale.predict.score import score, summary
from vitscale.predict.series import Observation, Series
from vitscale.predict.validate import FITTED, shipped_tables, validate

TABLES = ("bert_nvidia", "mpt_llm_foundry", "vit_deepspeed")


@pytest.fixture(scope="module")
def found():
    """Every third series: the whole is what `vitscale validate` prints."""
    return {
        name: [point for one in series[::3] for count in FITTED for point in score(one, count, name)]
        for name, series in shipped_tables().items()
    }


def test_the_tables_are_these_and_no_series_was_picked_for_its_length():
    tables = shipped_tables()
    assert tuple(tables) == TABLES
    for series in tables.values():
        for one in series:
            assert len({seen.layout.world_size for seen in one.measured}) >= 3


def test_every_row_names_its_source_and_stands_once():
    for name in TABLES:
        text = files("vitscale.predict").joinpath("tables", f"{name}.csv").read_text()
        rows = list(csv.DictReader(text.splitlines()))
        assert all(row["source"] and row["step_s"] for row in rows)
        assert max(Counter((row["series"], row["world_size"]) for row in rows).values()) == 1


@pytest.mark.parametrize(("name", "error"), list(zip(TABLES, (0.04, 0.04, 0.06), strict=True)))
def test_errors_stay_small_and_below_both_baselines(found, name, error):
    told = summary(found[name])
    assert told.median_error < error
    assert told.gain[0] > 0
    assert told.score < told.baseline_score


def test_intervals_cover_about_what_they_say(found):
    told = summary([point for points in found.values() for point in points])
    assert 0.88 <= told.cover95 <= 1
    assert 0.68 <= told.cover80 <= 0.93
    assert told.half_width < 0.12


def test_no_table_needs_priors_made_for_it(found, monkeypatch):
    """Leave one table out, by its scale: priors of noise half and twice as wide change what is said of none by much."""
    for factor in (0.5, 2.0):
        changed = {**priors.GENERIC, "noise": (priors.GENERIC["noise"][0] * factor, priors.GENERIC["noise"][1])}
        monkeypatch.setattr(priors, "GENERIC", changed)
        series = shipped_tables()["bert_nvidia"][::3]
        points = [point for one in series for count in FITTED for point in score(one, count)]
        assert summary(points).median_error < 1.5 * summary(found["bert_nvidia"]).median_error
        monkeypatch.undo()


def test_a_study_is_held_against_its_own_largest_world_size(tmp_path):
    path = tmp_path / "own.csv"
    rows = [f"s,{size},32,1,{0.1 * (1 + 0.01 * size)}" for size in (1, 2, 4, 8)]
    path.write_text("\n".join(["series,world_size,micro_batch,nodes,step_s", *rows]) + "\n")
    found = validate([path])
    assert {point.world_size for point in found.points} == {4, 8}
    assert list(found.by_table) == ["own.csv"]
    assert found.points[0].error == max((point.error for point in found.points), key=abs)


def test_too_few_world_sizes_are_refused(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("series,world_size,micro_batch,step_s\ns,1,32,0.1\ns,2,32,0.1\n")
    with pytest.raises(UsageError, match="no series has"):
        validate([path])


def test_scores_are_the_written_ones():
    seen = tuple(Observation(Layout(size, 1, 32, 1), 0.1) for size in (1, 2, 4))
    (point,) = score(Series("flat", seen), 2)
    assert point.linear_s == point.same_s == 0.1
    assert point.error == pytest.approx(point.said.median / 0.1 - 1)
    told = summary([point])
    assert told.points == 1
    assert told.cover95 == 1
    assert told.linear_error == 0
