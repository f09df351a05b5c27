"""Unequal shares: each rank's rate and waiting, the gain over the even twin, and the slowest rank left out."""

import json

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.config.knobs import EngineSection
from vitscale.records.schema import Split
from vitscale.report.verdict_tables import rank_table

FAST, SLOW = 1000.0, 500.0
FIXED_S = 0.01
SHARES = {"data_s": 0.0, "optimizer_s": 0.0, "launch_gap_s": 0.0, "comm_exposed_s": 0.0}


@pytest.fixture
def root(make, tmp_path):
    return make.write_study(tmp_path / "study")


def write(make, root, split=None, launches=3, **fields):
    """Launches of two ranks that compute `FAST` and `SLOW` images per second and then communicate for `FIXED_S`."""
    knobs = EngineSection(split=split) if split else None
    spec = make.make_spec(2, micro_batch=60, global_batch=120, knobs=knobs, engine="ddp", zero_stage=None, **fields)
    busy = [images / rate for images, rate in zip(spec.micro_batches, (FAST, SLOW), strict=True)]
    step_s = max(busy) + FIXED_S

    def parts(rank):
        computing = {"forward_s": busy[rank] / 3, "backward_s": busy[rank] * 2 / 3, "comm_exposed_s": FIXED_S}
        computing["wait_s"] = max(busy) - busy[rank]
        return {**SHARES, **{name: value / step_s for name, value in computing.items()}}

    for launch in range(launches):
        make.write_launch(root, spec, launch, step_s * (1 + 0.001 * launch), parts=parts)
    return spec


def by_split(result):
    """The runs by what they were asked to split, None the even one."""
    return {tuple(asked) if (asked := run.axes["engine.split"]) else None: run for run in result.analysis.runs}


def test_what_ranks_compute_and_wait_is_told_of_both_splits(make, root):
    write(make, root)
    write(make, root, (80, 40))
    runs = by_split(analyse(root))
    for split, shares, idle in ((None, (60, 60), (0.06 / 0.13, 0)), ((80, 40), (80, 40), (0, 0))):
        ranks = runs[split].dealt.ranks
        assert [one.micro_batch for one in ranks] == pytest.approx(shares)
        assert [one.images_per_s for one in ranks] == pytest.approx([FAST, SLOW], rel=0.01)
        assert [one.idle_share for one in ranks] == pytest.approx(idle, abs=0.01)


def test_the_gain_is_over_the_even_split_of_the_same_study(make, root):
    write(make, root)
    write(make, root, (80, 40))
    runs = by_split(analyse(root))
    assert runs[None].dealt.gain is None
    gain = runs[80, 40].dealt.gain
    assert gain.median == pytest.approx(0.13 / 0.09, rel=0.01)
    assert gain.low < gain.median < gain.high


def test_the_slowest_ranks_leaving_is_estimated_from_the_rates(make, root):
    write(make, root, (80, 40))
    (run,) = analyse(root).analysis.runs
    left = run.dealt.without_slowest
    assert left.rank == 1
    assert left.images_per_s == pytest.approx(120 / (0.12 + FIXED_S), rel=0.01)
    assert left.gain == pytest.approx(0.09 / 0.13, rel=0.01)


def test_a_finding_says_it_in_one_sentence_and_the_table_has_each_rank(make, root):
    write(make, root)
    write(make, root, (80, 40))
    result = analyse(root)
    told = [one.evidence for one in result.analysis.findings if one.kind == "unequal_ranks"]
    assert any("micro-batches by rank 80, 40" in one and "the even split's throughput" in one for one in told)
    assert all("an estimated" in one for one in told)
    table = rank_table(result)
    assert table.header[-2:] == ("Micro-batch", "Computes, images per s")
    assert {row[-2] for row in table.rows} == {"60", "80", "40"}


def test_micro_steps_of_one_rank_are_told_beside_its_own_micro_batch(make, root):
    write(make, root, (80, 40))
    for path in root.glob("runs/*/launch*/manifest.json"):
        split = Split(micro_batches=(80, 40), micro_steps=(4, 1)).model_dump(mode="json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "split": split}))
    result = analyse(root)
    dealt = result.analysis.runs[0].dealt
    assert [(one.micro_batch, one.micro_steps) for one in dealt.ranks] == [(20, 4), (40, 1)]
    assert [one.images_per_s for one in dealt.ranks] == pytest.approx([FAST, SLOW], rel=0.01)
    assert dealt.without_slowest.images_per_s == pytest.approx(120 / (0.12 + FIXED_S), rel=0.01)
    (told,) = [one.evidence for one in result.analysis.findings if one.kind == "unequal_ranks"]
    assert "micro-batches by rank 20, 40 (micro-steps to the others' one: 4 on rank 0), waiting" in told
    assert {row[-2] for row in rank_table(result).rows} == {"4 x 20", "40"}


def test_a_slow_rank_that_computes_is_offered_the_split(make, root):
    write(make, root)
    (verdict,) = analyse(root).analysis.verdicts
    cause = next(one for one in verdict.causes if one.kind == "straggler")
    assert cause.override == "engine.split=proportional"


def test_equal_shares_of_equal_devices_tell_nothing(make, root):
    write(make, root)
    (run,) = analyse(root).analysis.runs
    assert run.dealt is None
