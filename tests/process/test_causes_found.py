"""Causes of known size put into real ranks: each is in the part of the step where it belongs, and is named."""

import json

import pytest
from ranks import finish, ranks_ahead, runs, start, steps

pytest.importorskip("torch")

pytestmark = [pytest.mark.process, pytest.mark.alone, pytest.mark.timeout(240)]

WORDS = (
    "model.name=vit_tiny_patch16_224", "depth=2", "img_size=16", "patch_size=8", "engine=ddp", "steps=24",
    "precision=fp32",
)  # fmt: skip
# Seed of a run -> what its ranks sleep: (ranks, part of the step, seconds).
SLEEPS = {
    0: (((1,), "forward", 0.09), ((0, 1), "data", 0.045)),
    1: (((1,), "forward", 0.045), ((0, 1), "data", 0.09)),
    2: (((0, 1), "data", 0.06),),
    3: (((0, 1), "optimizer", 0.06),),
    4: (),
}
SLEPT = (*WORDS, "world_size=2", "global_batch=16", f"measure.seed={','.join(map(str, SLEEPS))}")


@pytest.fixture(scope="module")
def found(store, tmp_path_factory):
    """seed -> verdict, steady steps by rank and result, of two ranks that sleep as `SLEEPS` says; one process start."""
    results = tmp_path_factory.mktemp("causes") / "results"
    by_seed = {spec.measure.seed: spec.run_id for spec in runs(store, *SLEPT)}
    sleeps = [
        f"sleep rank={rank} where={where} seconds={seconds} launch={by_seed[seed]}"
        for seed, asked in SLEEPS.items()
        for ranks, where, seconds in asked
        for rank in ranks
    ]
    process = start(store, results, *SLEPT, inject=";".join(sleeps))
    code, err = finish(ranks_ahead(process, results, 2))
    assert code == 0, err
    verdicts, told = verdicts_of(results), told_of(results, "runs")
    return {seed: (verdicts[run_id], steady(results, run_id), told[run_id]) for seed, run_id in by_seed.items()}


def told_of(results, what):
    return {one["run_id"]: one for one in json.loads((results / "analysis.json").read_text())[what]}


def verdicts_of(results):
    return told_of(results, "verdicts")


def steady(results, run_id):
    folder = results / "runs" / run_id / "launch0"
    return [[line for line in lines if line["window"] == "steady"] for lines in steps(folder).values()]


def mean_s(lines, *fields):
    return sum(line[field] for line in lines for field in fields) / len(lines)


@pytest.mark.parametrize(("seed", "field"), [(2, "data_s"), (3, "optimizer_s")])
def test_what_every_rank_sleeps_is_in_that_part_and_no_other(found, seed, field):
    ((_, _, seconds),) = SLEEPS[seed]
    for of_rank in found[seed][1]:
        assert mean_s(of_rank, field) >= seconds
        assert min(line[field] for line in of_rank) >= 0.9 * seconds


@pytest.mark.parametrize(("seed", "kind"), [(2, "input"), (3, "optimizer")])
def test_it_is_the_dearest_cause_with_its_size(found, seed, kind):
    (top, *_) = found[seed][0]["causes"]
    assert top["kind"] == kind
    ((_, where, seconds),) = SLEEPS[seed]
    assert top["seconds"]["median"] >= seconds
    assert top["seconds"]["median"] == pytest.approx(
        min(mean_s(of_rank, f"{where}_s") for of_rank in found[seed][1]), rel=0.2
    )


@pytest.mark.parametrize("seed", [2, 3])
def test_what_its_removal_would_gain_is_what_is_gained_without_it(found, seed):
    (top, *_) = found[seed][0]["causes"]
    step_s, clean_s = (found[one][2]["step_s"]["median"] for one in (seed, 4))
    ((_, _, seconds),) = SLEEPS[seed]
    assert step_s - clean_s == pytest.approx(seconds, rel=0.2)
    # The clean run has the machine's other work in it: its gain lies between those over its slow and its quick steps.
    clean = sorted(max(line["step_s"] for line in lines) for lines in zip(*found[4][1], strict=True))
    assert 0.75 * step_s / clean[-3] <= top["gain"]["median"] <= 1.25 * step_s / clean[0]


@pytest.mark.parametrize(("seed", "kinds"), [(0, ["straggler", "input"]), (1, ["input", "straggler"])])
def test_of_two_causes_both_are_named_the_dearer_first(found, seed, kinds):
    causes = found[seed][0]["causes"]
    assert [cause["kind"] for cause in causes][:2] == kinds
    (late,) = (cause for cause in causes if cause["kind"] == "straggler")
    assert (late["rank"], late["detail"]) == (1, "forward")
    slept = {"straggler": SLEEPS[seed][0][2], "input": SLEEPS[seed][1][2]}
    for cause in causes[:2]:
        assert cause["seconds"]["median"] == pytest.approx(slept[cause["kind"]], rel=0.35)


def test_a_micro_batch_that_shrank_is_told_from_what_ranks_take_from_each_other(store, tmp_path):
    """A forward pass of 80 ms whatever is in it: half of the images have half of the step to themselves, at best."""
    fixed_s = 0.08
    words = (*WORDS, "protocol=strong,weak", "world_size=1,2", "global_batch=16", "micro_batch=8")
    specs = {(spec.protocol, spec.world_size): spec for spec in runs(store, *words)}
    sleeps = ";".join(f"sleep rank={rank} where=forward seconds={fixed_s}" for rank in (0, 1))
    code, err = finish(start(store, tmp_path / "results", *words, inject=sleeps))
    assert code == 0, err
    whole_s, half_s = (
        mean_s(steady(tmp_path / "results", specs[protocol, 1].run_id)[0], "forward_s", "backward_s")
        for protocol in ("strong", "weak")
    )
    shrunk = specs["strong", 2]
    assert (specs["strong", 1].micro_batch, shrunk.micro_batch, specs["weak", 1].micro_batch) == (16, 8, 8)
    causes = {cause["kind"]: cause for cause in verdicts_of(tmp_path / "results")[shrunk.run_id]["causes"]}
    assert causes["micro_batch"]["seconds"]["median"] == pytest.approx(half_s - whole_s / 2, rel=0.2)
    assert causes["micro_batch"]["seconds"]["median"] >= 0.9 * fixed_s / 2
    assert causes["micro_batch"]["override"] == "global_batch=32"


def test_a_late_rank_is_named_where_ranks_share_their_images(store, tmp_path):
    words = (*WORDS, "world_size=2", "global_batch=16", "steps=6", "num_heads=4", "sequence_parallel=2")
    code, err = finish(start(store, tmp_path / "results", *words, inject="sleep rank=1 where=forward seconds=0.08"))
    assert code == 0, err
    assert (tmp_path / "results" / "report" / "index.html").exists()
    (told,) = verdicts_of(tmp_path / "results").values()
    late = next(cause for cause in told["causes"] if cause["kind"] == "straggler")
    assert (late["rank"], late["detail"]) == (1, "forward")
    assert late["seconds"]["median"] == pytest.approx(0.08, rel=0.35)
