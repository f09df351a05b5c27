"""The choice among candidates: limits are kept, noise is not ranked, each loser has its reason."""

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from vitscale.config.load import load
from vitscale.cost.device_memory import DeviceNeed
from vitscale.cost.scaling import Layout
from vitscale.errors import UsageError
from vitscale.predict import recommend_ask
from vitscale.predict.candidates import Candidate, Pool, Way, enumerate_candidates, pools
from vitscale.predict.from_source import Source
from vitscale.predict.recommend import Limits, Work, recommend
from vitscale.report.recommendation_text import print_recommendation

GOLDEN = Path(__file__).parents[2] / "golden" / "study"
POOL = Pool("a100-40gb", 8, 2.0, 40 * 10**9)
WAY = Way("ddp", None, "bf16")
WORK = Work(images=3600 * 64, global_batch=64)  # 3,600 steps
ONE, FOUR = (Candidate(POOL, WAY, Layout(size, 1, 64 / size, 1)) for size in (1, 4))
NOISE = np.exp(0.05 * np.random.default_rng(0).standard_normal((3, 4000)))


def chosen(steps, *, spread=1, limits=None, needs=lambda _: DeviceNeed("cuda", 10**9, 0), candidates=(ONE, FOUR)):
    def drawn(asked):
        return [steps[one] * NOISE[index % 3] ** spread for index, one in enumerate(asked)]

    return recommend(candidates, WORK, limits or Limits(), needs, drawn)


def test_without_limits_the_knee_is_chosen():
    # Four ranks: a third of the time at 4/3 of the cost; the product is less.
    assert chosen({ONE: 1.0, FOUR: 1 / 3}).choice.candidate == FOUR
    assert chosen({ONE: 1.0, FOUR: 0.7}).choice.candidate == ONE


def test_a_deadline_takes_the_cheapest_that_keeps_it():
    loose, tight = (chosen({ONE: 1.0, FOUR: 1 / 3}, limits=Limits(deadline_s=hours * 3600)) for hours in (2, 0.5))
    assert loose.choice.candidate == ONE
    assert tight.choice.candidate == FOUR
    assert "keeps the deadline with 0 %" in next(one.lost for one in tight.losers if one.candidate == ONE)


def test_a_budget_takes_the_fastest_that_keeps_it():
    # One rank costs 2, four ranks 2.67.
    assert chosen({ONE: 1.0, FOUR: 1 / 3}, limits=Limits(budget=3.5)).choice.candidate == FOUR
    found = chosen({ONE: 1.0, FOUR: 1 / 3}, limits=Limits(budget=2.4))
    assert found.choice.candidate == ONE
    assert found.choice.cost.median == pytest.approx(2.0, rel=0.02)


def test_what_noise_does_not_tell_apart_is_a_tie_and_the_simpler_is_chosen():
    sharded = replace(ONE, way=Way("deepspeed", 3, "bf16"))
    tie = chosen({ONE: 1.0, sharded: 0.99}, candidates=(sharded, ONE))
    assert tie.choice.candidate == ONE
    assert tie.tied == 1
    assert "no difference detected" in tie.losers[0].lost
    assert chosen({ONE: 1.0, sharded: 0.5}, candidates=(sharded, ONE)).choice.candidate == sharded


def test_ties_are_with_the_choice_where_they_do_not_chain():
    # Ratios of 1.02 and 1.14 are within noise, their product is not.
    simple, middle, sharded = (
        replace(ONE, way=way) for way in (Way("ddp", None, "fp32"), WAY, Way("deepspeed", 3, "bf16"))
    )
    found = chosen(
        {simple: 1.16, middle: 1.02, sharded: 1.0}, limits=Limits(budget=10), candidates=(simple, middle, sharded)
    )
    assert found.choice.candidate == middle
    assert found.tied == 2
    lost = {one.candidate: one.lost for one in found.losers}
    assert all(words.startswith("no difference detected") for words in lost.values())
    assert lost[simple].endswith(f"but not as good as the best, {sharded}")
    assert lost[sharded].endswith("the choice is simpler")


@pytest.mark.parametrize("limits", [Limits(), Limits(budget=10), Limits(deadline_s=20 * 3600)])
def test_a_wide_interval_chooses_nothing_that_is_slower_at_the_median(limits):
    sharded = replace(ONE, way=Way("deepspeed", 3, "bf16"))
    found = chosen({ONE: 1.3, sharded: 1.0}, spread=5, limits=limits, candidates=(ONE, sharded))
    assert found.choice.candidate == sharded
    assert found.tied == 1
    (loser,) = found.losers
    assert loser.lost.startswith("no difference detected, ")
    above = float(re.search(r"; simpler, but its median is ([\d.]+) % above the least$", loser.lost)[1])
    assert above == pytest.approx(100 * (1.3 ** (2 if found.aim == "time x cost" else 1) - 1), rel=0.1)


def test_of_wide_intervals_the_simplest_near_the_least_median_is_chosen():
    plain, sharded = replace(ONE, way=Way("ddp", None, "fp32")), replace(ONE, way=Way("deepspeed", 3, "bf16"))
    of = (plain, ONE, sharded)
    found = chosen({plain: 1.5, ONE: 1.01, sharded: 1.0}, spread=5, limits=Limits(budget=10), candidates=of)
    assert found.choice.candidate == ONE
    assert found.tied == 2
    lost = {one.candidate: one.lost for one in found.losers}
    assert "; simpler, but its median is " in lost[plain]
    assert lost[sharded].endswith("; the choice is simpler")
    equal = replace(ONE, pool=replace(POOL, device="h100"))
    (loser,) = chosen({ONE: 1.3, equal: 1.0}, spread=5, limits=Limits(budget=10), candidates=(ONE, equal)).losers
    assert loser.lost.endswith("; the choice is as simple")


def test_what_does_not_fit_is_out_with_its_probability():
    found = chosen({FOUR: 1.0}, needs=lambda one: DeviceNeed("cuda", 10**9 if one == FOUR else 39 * 10**9, 0))
    assert found.choice.candidate == FOUR
    assert "fits with" in found.losers[0].lost
    with pytest.raises(UsageError, match="nothing fits the memory"):
        chosen({}, needs=lambda _: DeviceNeed("cuda", 10**12, 0))


def test_limits_that_nothing_keeps_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match="4 x a100-40gb"):
        chosen({ONE: 1.0, FOUR: 1 / 3}, limits=Limits(deadline_s=60))


def test_the_front_has_nothing_dearer_and_slower():
    front = chosen({ONE: 1.0, FOUR: 1 / 3}).front
    assert [one.candidate for one in front] == [FOUR, ONE]
    assert [one.candidate for one in chosen({ONE: 1.0, FOUR: 1.2}).front] == [ONE]


def test_the_front_has_the_simpler_of_what_ties_in_time_and_cost():
    sharded = replace(ONE, way=Way("deepspeed", 3, "bf16"))
    steps = {ONE: 1.0, sharded: 0.98, FOUR: 1 / 3}
    front = chosen(steps, candidates=(sharded, FOUR, ONE)).front
    assert [one.candidate for one in front] == [FOUR, ONE]
    other = replace(sharded, pool=replace(POOL, device="h100"))
    kept = chosen({ONE: 1.0, other: 0.98, FOUR: 1 / 3}, candidates=(other, FOUR, ONE)).front
    assert [one.candidate for one in kept] == [FOUR, other]
    faster = chosen({**steps, sharded: 0.5}, candidates=(sharded, FOUR, ONE)).front
    assert [one.candidate for one in faster] == [FOUR, sharded]


def test_a_wide_interval_puts_nothing_on_the_front_that_is_dearer_and_slower():
    plain = replace(ONE, way=Way("deepspeed", 3, "fp32"))
    found = chosen({plain: 3.0, ONE: 1.0, FOUR: 0.4}, spread=20, candidates=(plain, ONE, FOUR))
    assert found.tied == 2
    assert [one.candidate for one in found.front] == [FOUR, ONE]


def test_what_stands_for_another_on_the_front_is_not_dominated_there():
    plain = replace(ONE, way=Way("ddp", None, "fp32"))
    other = replace(ONE, pool=replace(POOL, device="h100", price_per_hour=1.96))
    front = chosen({ONE: 1.0, plain: 1.02, other: 1.01}, candidates=(ONE, plain, other)).front
    assert [one.candidate for one in front] == [other]


def test_devices_are_read_with_their_prices():
    a100, t4 = pools("a100x8@1.5, t4x32", None, None)
    assert (a100.device, a100.count, a100.price_per_hour) == ("a100-40gb", 8, 1.5)
    assert (t4.device, t4.count, t4.price_per_hour) == ("t4", 32, None)


@pytest.mark.parametrize(
    "text", ["", "a100", "a100x0", "a100x-3", "x8", "nosuchx8", "a100x8@", "a100x8@x", "a100x8;t4x2"]
)
def test_devices_that_cannot_be_meant_are_refused(text):
    with pytest.raises(UsageError):
        pools(text, None, None)


def test_candidates_keep_the_batch_identity():
    found = list(enumerate_candidates(Pool("h100", 12, None, None), (WAY,), 96))
    assert {one.layout.world_size for one in found} == {1, 2, 4, 8, 12}
    assert {one.layout.global_batch for one in found} == {96}


def test_boards_without_a_server_fill_nodes_of_eight_with_a_network_between():
    (t4,) = pools("t4x32", None, None)
    nodes = {one.layout.world_size: one.layout.nodes for one in enumerate_candidates(t4, (WAY,), 64)}
    assert nodes == {1: 1, 2: 1, 4: 1, 8: 1, 16: 2, 32: 4}
    found = recommend_ask.answer("vit_base_patch16_224", ["global_batch=2048"], devices="t4x32")
    assert any("8 t4 on a node" in line for line in found.assumptions)
    alone = recommend_ask.answer("vit_base_patch16_224", ["images=10000"], devices="t4x8")
    assert not any("on a node" in line for line in alone.assumptions)


def test_a_node_is_as_full_as_the_measured_ones():
    assert {one.layout.nodes for one in enumerate_candidates(replace(POOL, seen_per_node=2), (WAY,), 8)} == {1, 2, 4}


@pytest.mark.parametrize(
    ("target", "keys"),
    [
        ("vit_nosuch", {"devices": "h100x8"}),
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"devices": "h100x8", "budget": 10.0}),
        ("vit_tiny_patch16_224", {"devices": "h100x8@1,t4x2"}),
        ("vit_tiny_patch16_224", {"devices": "h100x8", "memory": "24 bananas"}),
        ("vit_tiny_patch16_224", {"devices": "h100x8", "deadline": "-8h"}),
        ("vit_tiny_patch16_224", {"devices": "h100x8", "target_accuracy": 0.8}),
        ("vit_tiny_patch16_224", {"devices": "h100x8", "words": ["nosuch=3"]}),
        ("vit_tiny_patch16_224", {"devices": "h100x8", "words": ["images=many"]}),
        ("results/nothing", {}),
    ],
)
def test_bad_questions_are_refused(target, keys):
    with pytest.raises(UsageError):
        recommend_ask.answer(target, **keys)


def test_a_model_alone_is_answered_from_data_sheets_and_its_study_runs(tmp_path):
    found = recommend_ask.answer("vit_tiny_patch16_224", ["global_batch=64", "images=6400"], devices="h100x2@2")
    document = found.document()
    json.dumps(document, allow_nan=False)
    assert document["cost_unit"] == "currency of the price"
    assert any("nothing was measured" in line for line in document["assumptions"])
    assert all(one["lost"] for one in document["losers"])
    path = tmp_path / "recommended.toml"
    path.write_text(found.study)
    study = load(str(path), ()).study
    choice = document["choice"]
    assert study.axes.world_size == (choice["world_size"],)
    assert choice["micro_batch"] * choice["grad_accum"] * choice["world_size"] == 64


def test_results_are_answered_with_what_was_measured(tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(GOLDEN, folder)
    found = recommend_ask.answer(str(folder))
    measured = {one.name for one in found.source.series}
    assert measured
    assert found.document()["choice"]["device"] == "cpu"
    path = tmp_path / "recommended.toml"
    path.write_text(found.study)
    assert load(str(path), ()).study.model.name == found.source.shape.name
    assert not any("memory is counted" in line for line in found.assumptions)


def test_knobs_that_no_form_of_memory_counts_are_said(tmp_path, monkeypatch):
    folder = tmp_path / "results"
    shutil.copytree(GOLDEN, folder)
    monkeypatch.setattr(Source, "knobs", lambda *_: {"offload": ["cpu", None]})
    assert "memory is counted as if without offload" in recommend_ask.answer(str(folder)).assumptions


def test_of_what_the_choice_is_the_simplest_is_said(tmp_path):
    folder, out = tmp_path / "results", io.StringIO()
    shutil.copytree(GOLDEN, folder)
    answer = recommend_ask.answer(str(folder))
    print_recommendation(replace(answer, found=replace(answer.found, tied=2)), Console(file=out, width=250))
    assert "2 others; the choice is the simplest of those that tie with the best at a median within 3 % of it" in (
        out.getvalue()
    )
