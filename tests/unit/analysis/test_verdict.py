"""Each cause is found where it was put, with its size, and not where nothing was put."""

from pathlib import Path
from typing import get_args

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.analysis.cause import Kind
from vitscale.analysis.remedies import REMEDIES
from vitscale.config.knobs import EngineSection
from vitscale.config.study import FsdpSection
from vitscale.records.collectives import CollectiveRecord
from vitscale.records.links import LINKS, LinkBenchmark, Timing
from vitscale.records.samples import GpuSample, HostSample, Sample
from vitscale.records.writer import make_folder, write_json

CLEAN = {
    "data_s": 0.01,
    "forward_s": 0.31,
    "backward_s": 0.60,
    "optimizer_s": 0.04,
    "comm_exposed_s": 0.01,
    "wait_s": 0.01,
    "launch_gap_s": 0.0,
    "comm_s": 0.02,
    "comm_overlapped_s": 0.01,
    "late_s": 0.005,
}
ALONE = {**CLEAN, "forward_s": 0.33, "comm_exposed_s": 0.0, "wait_s": 0.0, "comm_s": 0.0, "comm_overlapped_s": 0.0}
BESIDE = ("comm_s", "comm_overlapped_s", "late_s")
NOISE = (1.0, 1.004, 0.997)
BASE_S = 0.1


@pytest.fixture
def root(make, tmp_path):
    return make.write_study(tmp_path / "study")


def write(make, root, spec, seconds=None, step_s=None, launches=(1.0, 1.0, 1.0), **options):
    """Three launches: parts in seconds beyond a clean step of `BASE_S` over the ranks; the step grows with them.

    `seconds` is a dict of seconds, or a function of the rank; what one rank has more, the others wait. Each launch has
    so many times as much of it.
    """
    clean = CLEAN if spec.world_size > 1 else ALONE
    ideal_s = step_s or BASE_S * spec.micro_batch * spec.grad_accum / (64 if spec.protocol == "strong" else 32)
    of_rank = seconds if callable(seconds) else lambda rank: seconds or {}
    inside = [name for name in clean if name not in BESIDE]

    def write_launch(launch, times):
        grown = [times * sum(of_rank(rank).get(name, 0.0) for name in inside) for rank in range(spec.world_size)]
        whole = ideal_s + max(grown)

        def parts(rank):
            own = {name: share * ideal_s + times * of_rank(rank).get(name, 0.0) for name, share in clean.items()}
            own["wait_s"] += max(grown) - grown[rank]
            return {name: value / whole for name, value in own.items()}

        make.write_launch(root, spec, launch, whole * NOISE[launch], parts=parts, **options)

    for launch, times in enumerate(launches):
        write_launch(launch, times)


def verdict(root, **fields):
    analysis = analyse(root).analysis
    (run,) = [one for one in analysis.runs if all(getattr(one, key) == value for key, value in fields.items())]
    return next(one for one in analysis.verdicts if one.run_id == run.run_id)


def kinds(told):
    return [cause.kind for cause in told.causes]


def test_a_clean_study_names_no_cause(make, root):
    write(make, root, make.make_spec(1, "weak"))
    write(make, root, make.make_spec(2, "weak"))
    for size in (1, 2):
        told = verdict(root, world_size=size)
        assert told.causes == ()
        assert told.text == "Nothing found: no cause takes 3 % of the step beyond noise."


def collective(calls=1, size=40e6, wire_s=0.03, busbw=1.3e9, operation="all_reduce"):
    return CollectiveRecord(
        operation=operation,
        group_size=2,
        calls_per_step=calls,
        bytes_per_step=size,
        wire_s_per_step=wire_s,
        algbw_bytes_per_s=busbw,
        busbw_bytes_per_s=busbw,
    )


def test_blocked_in_transfers_is_communication_bound_by_the_link(make, root):
    spec = make.make_spec(2, "weak", engine="ddp", zero_stage=None)
    write(make, root, spec, {"comm_exposed_s": 0.03, "comm_s": 0.03}, collectives=[collective()])
    told = verdict(root)
    (cause,) = told.causes
    assert (cause.kind, cause.detail) == ("communication", "link")
    assert cause.seconds.median == pytest.approx(0.031, rel=0.02)
    assert cause.gain.median == pytest.approx(0.13 / 0.099, rel=0.02)
    assert cause.seconds.low < cause.seconds.median < cause.seconds.high
    assert cause.override == "engine.ddp_hook=bf16"
    assert "38.1 MiB per step in 1 collective at 1.30 GB/s bus bandwidth" in cause.evidence
    assert told.text.startswith("Communication (link): 31")


def test_many_small_transfers_are_bound_by_latency(make, root):
    spec = make.make_spec(2, "weak")
    lines = [collective(calls=200, size=200 * 4000, wire_s=0.02, busbw=4e7), collective(size=1e7, wire_s=0.008)]
    write(make, root, spec, {"comm_exposed_s": 0.03, "comm_s": 0.03, "comm_overlapped_s": 0.1}, collectives=lines)
    (cause,) = verdict(root).causes
    assert (cause.kind, cause.detail) == ("communication", "latency")
    assert "larger buckets" in cause.hint


@pytest.mark.parametrize(("latency_s", "detail"), [(1e-4, "link"), (2e-2, "latency")])
def test_where_the_idle_link_was_timed_its_latency_decides(make, root, latency_s, detail):
    spec = make.make_spec(2, "weak")
    lines = [collective(wire_s=0.03)]
    write(make, root, spec, {"comm_exposed_s": 0.03, "comm_s": 0.03, "comm_overlapped_s": 0.1}, collectives=lines)
    idle = {"operation": "all_reduce", "bytes": 40_000_000, "times_s": (0.01,), "algorithm_bytes_per_s": 4e9}
    timing = Timing(**idle, bus_bytes_per_s=4e9)
    links = LinkBenchmark(
        world_size=2, nodes=1, backend="gloo", link=None, latency_s=latency_s, timings=(timing,), left_out=0
    )
    write_json(make_folder(root / "rounds" / "0-w2") / LINKS, links.model_dump(mode="json"))
    (cause,) = verdict(root).causes
    assert (cause.kind, cause.detail) == ("communication", detail)
    assert "at 1.30 GB/s bus bandwidth, the idle link gives 4.00 GB/s" in cause.evidence


@pytest.mark.parametrize(("phase", "word"), [("forward_s", "forward"), ("data_s", "data"), ("backward_s", "backward")])
def test_a_late_rank_is_named_with_its_host_and_where_it_is_late(make, root, phase, word):
    spec = make.make_spec(4, "weak")
    write(make, root, spec, lambda rank: {phase: 0.02} if rank == 2 else {})
    told = verdict(root)
    (cause,) = told.causes
    assert (cause.kind, cause.rank, cause.node, cause.detail) == ("straggler", 2, 0, word)
    assert cause.seconds.median == pytest.approx(0.02, rel=0.05)
    assert told.text.startswith(f"A late rank (rank 2, in {word}): 20")


def test_of_two_ranks_the_late_one_is_the_one_that_does_not_wait(make, root):
    write(make, root, make.make_spec(2, "weak"), lambda rank: {"forward_s": 0.02} if rank == 1 else {})
    (cause,) = verdict(root).causes
    assert (cause.kind, cause.rank) == ("straggler", 1)
    assert cause.seconds.median == pytest.approx(0.02, rel=0.05)


def test_a_rank_that_chance_made_late_in_each_of_three_launches_is_noise(make, root):
    """Of two ranks one is the later one in all of three launches in a quarter of all cases."""
    late = {"launches": (0.4, 0.7, 1.2)}
    write(make, root, make.make_spec(2, "weak"), lambda rank: {"forward_s": 0.01} if rank else {}, **late)
    assert kinds(verdict(root)) == ["noise"]


def test_half_of_the_ranks_late_is_no_single_rank(make, root):
    write(make, root, make.make_spec(4, "weak"), lambda rank: {"forward_s": 0.02} if rank > 1 else {})
    (cause,) = verdict(root).causes
    assert (cause.kind, cause.rank) == ("straggler", None)
    assert "2 ranks (the slowest is " in cause.evidence


def test_a_rank_with_more_images_is_uneven_work(make, root):
    spec = make.make_spec(2, "weak")
    write(make, root, spec, lambda rank: {"forward_s": 0.01, "backward_s": 0.02} if rank else {})
    for launch in range(3):
        path = root / "runs" / spec.run_id / f"launch{launch}" / "steps.rank001.jsonl"
        path.write_text(path.read_text().replace('"images":32', '"images":42'))
    cause = next(one for one in verdict(root).causes)
    assert (cause.kind, cause.rank) == ("imbalance", 1)
    assert "31.2 % more images" in cause.evidence


@pytest.mark.parametrize("shared", ["sequence_parallel", "tensor_parallel"])
@pytest.mark.parametrize("late", [0, 3])
def test_a_late_rank_of_a_group_that_shares_images_has_no_more_of_them(make, root, shared, late):
    spec = make.make_spec(4, "weak", data_parallel=2, global_batch=64, **{shared: 2})
    write(make, root, spec, lambda rank: {"forward_s": 0.02} if rank == late else {})
    (cause,) = verdict(root).causes
    assert (cause.kind, cause.rank) == ("straggler", late)


def test_ranks_that_are_late_in_turns_are_noise(make, root):
    write(make, root, make.make_spec(2, "weak"), {"wait_s": 0.015, "late_s": 0.015})
    (cause,) = verdict(root).causes
    assert (cause.kind, cause.rank) == ("noise", None)
    assert cause.seconds.median == pytest.approx(0.016, rel=0.05)


def test_all_ranks_waiting_for_images_is_input(make, root):
    write(make, root, make.make_spec(2, "weak"), {"data_s": 0.02})
    told = verdict(root)
    assert kinds(told) == ["input"]
    assert told.causes[0].seconds.median == pytest.approx(0.021, rel=0.05)


def test_a_little_more_waiting_for_images_than_the_baseline_is_input_too(make, root):
    write(make, root, make.make_spec(1, "weak"))
    write(make, root, make.make_spec(2, "weak"), {"data_s": 0.0037})
    told = verdict(root, world_size=2)
    assert kinds(told) == ["input"]
    assert told.causes[0].seconds.median == pytest.approx(0.0037, rel=0.05)
    assert len(told.causes[0].runs) == 2


def test_an_idle_device_is_launch_bound(make, root):
    write(make, root, make.make_spec(1, device="cuda"), {"launch_gap_s": 0.03})
    (cause,) = verdict(root).causes
    assert (cause.kind, cause.override) == ("launch", "engine.compile=true")
    assert cause.share == pytest.approx(0.03 / 0.13, rel=0.02)


def test_an_update_that_does_not_shrink_with_the_work_is_the_optimizer(make, root):
    write(make, root, make.make_spec(1))
    write(make, root, make.make_spec(2), {"optimizer_s": 0.01})
    cause = verdict(root, world_size=2).causes[0]
    assert (cause.kind, cause.override) == ("optimizer", "zero_stage=1")
    assert cause.seconds.median == pytest.approx(0.01, rel=0.05)


def test_most_of_a_step_in_the_update_is_the_optimizer_without_a_baseline(make, root):
    write(make, root, make.make_spec(1), {"optimizer_s": 0.06})
    (cause,) = verdict(root).causes
    assert (cause.kind, cause.override) == ("optimizer", "engine.optimizer_impl=fused")


def test_slower_images_in_a_smaller_micro_batch(make, root):
    write(make, root, make.make_spec(1))
    write(make, root, make.make_spec(2), {"forward_s": 0.004, "backward_s": 0.008})
    cause = verdict(root, world_size=2).causes[0]
    assert (cause.kind, cause.override) == ("micro_batch", "global_batch=128")
    assert cause.seconds.median == pytest.approx(0.012 - 0.01 * BASE_S, rel=0.1)
    assert "micro_batch is 32, the baseline's 64" in cause.evidence


def test_a_run_of_that_micro_batch_on_one_rank_parts_it_from_what_ranks_share(make, root):
    """Strong: 64 images on 1 rank, 32 on 2. Weak has 32 on 1 rank, slower per image by 6 ms, and 12 with 2 ranks."""
    write(make, root, make.make_spec(1))
    write(make, root, make.make_spec(1, "weak"), {"forward_s": 0.006}, step_s=BASE_S / 2)
    write(make, root, make.make_spec(2), {"forward_s": 0.012})
    told = {cause.kind: cause.seconds.median for cause in verdict(root, world_size=2).causes}
    assert told["micro_batch"] == pytest.approx(0.006, rel=0.05)
    # A clean run on one rank computes 2 % of its step longer here: it has nobody to talk to.
    assert told["contention"] == pytest.approx(0.006 - 0.02 * BASE_S / 2, rel=0.05)


@pytest.mark.parametrize(("oversubscribed", "kind"), [(False, "contention"), (True, "oversubscribed")])
def test_slower_images_in_the_same_micro_batch(make, root, oversubscribed, kind):
    write(make, root, make.make_spec(1, "weak"))
    write(make, root, make.make_spec(2, "weak", oversubscribed=oversubscribed), {"forward_s": 0.02})
    assert kinds(verdict(root, world_size=2)) == [kind]


def samples(hertz, throttle=()):
    gpu = {"rank": 0, "throttle": throttle, "sm_clock_hz": hertz}
    return [Sample(time_s=time, window="steady", node=0, gpus=(GpuSample(**gpu),)) for time in (0.0, 1.0, 2.0)]


def test_clocks_held_down_by_heat_explain_slower_computing(make, root):
    write(make, root, make.make_spec(1, "weak"), samples=samples(1.5e9))
    hot = make.make_spec(2, "weak")
    write(make, root, hot, {"forward_s": 0.02}, samples=samples(1.2e9, ("hw_thermal_slowdown",)))
    cause = verdict(root, world_size=2).causes[0]
    assert cause.kind == "throttled"
    assert cause.seconds.median == pytest.approx(0.2 * 0.111, rel=0.05)
    assert "1.20 GHz, 1.50 GHz is the study's best; held down by heat in 100 %" in cause.evidence


def test_memory_below_its_clock_costs_what_the_update_lacks_and_no_more(make, root):
    def sampled(share):
        gpus = tuple(
            GpuSample(rank=rank, memory_clock_hz=share * 2.6e9, memory_clock_max_hz=2.6e9) for rank in range(2)
        )
        return [Sample(time_s=float(at), window="steady", node=0, gpus=gpus) for at in range(3)]

    write(make, root, make.make_spec(2, "weak"), {"optimizer_s": 0.096}, samples=sampled(0.7))
    write(make, root, make.make_spec(2, "weak", zero_stage=1), {"optimizer_s": 0.096}, samples=sampled(1.0))
    update_s = 0.04 * BASE_S + 0.096
    slow, clean = verdict(root, zero_stage=0).causes, verdict(root, zero_stage=1).causes
    assert [(cause.kind, cause.seconds.median) for cause in slow] == [
        ("optimizer", pytest.approx(0.7 * update_s, rel=0.02)),
        ("memory_clock", pytest.approx(0.3 * update_s, rel=0.02)),
    ]
    assert [(cause.kind, cause.seconds.median) for cause in clean] == [("optimizer", pytest.approx(update_s, rel=0.02))]
    assert "at 70 % of its highest clock" in slow[1].evidence


def test_work_of_others_on_the_machine_is_said_with_the_verdict(make, root):
    def at(time_s):
        host = HostSample(cpu_s=2.5 * time_s, rank_cpu_s=1.0 * time_s)
        return Sample(time_s=time_s, window="steady", node=0, host=host)

    write(make, root, make.make_spec(1), samples=[at(0.0), at(1.0)])
    assert verdict(root).text.endswith("beyond noise; 1.50 cores were at work for others.")


def test_two_causes_are_both_found_the_dearer_first(make, root):
    def late_and_slow(rank):
        return {"data_s": 0.01, "forward_s": 0.03 * rank}

    write(make, root, make.make_spec(2, "weak"), late_and_slow)
    told = verdict(root)
    assert kinds(told) == ["straggler", "input"]
    assert told.text.endswith("the throughput, and 1 further cause.")


@pytest.mark.parametrize("engine", ["deepspeed", "accelerate_deepspeed"])
def test_stage_0_sends_after_the_backward_pass(make, root, engine):
    sent = {"comm_exposed_s": 0.03, "comm_s": 0.03, "comm_overlapped_s": -0.001}
    write(make, root, make.make_spec(2, "weak", engine=engine), sent)
    whole, part = verdict(root).causes
    assert (whole.kind, part.kind, part.within) == ("communication", "no_overlap", "communication")
    assert part.override == "engine=ddp"
    assert part.seconds == whole.seconds


def test_stage_0_that_sends_during_the_backward_pass_is_not_told_that_it_does_not(make, root):
    sent = {"comm_exposed_s": 0.03, "comm_s": 0.03, "comm_overlapped_s": -0.001}
    write(make, root, make.make_spec(2, "weak", knobs=EngineSection(overlap_reduce=True)), sent)
    assert kinds(verdict(root)) == ["communication"]


def test_a_setting_that_is_the_lesser_part_is_not_what_to_change_first(make, root):
    sent = {"comm_exposed_s": 0.3, "comm_s": 0.3, "comm_overlapped_s": -0.001}
    write(make, root, make.make_spec(2, "weak"), sent)
    whole, part = verdict(root).causes
    assert (whole.override, part.override) == ("grad_accum=2", "engine=ddp")


@pytest.mark.parametrize("engine", ["deepspeed", "accelerate_deepspeed"])
@pytest.mark.parametrize("stage", [2, 3])
def test_accumulation_under_stages_that_communicate_in_every_micro_step(make, root, stage, engine):
    spec = make.make_spec(2, "weak", engine=engine, zero_stage=stage, device="cuda", micro_batch=8, grad_accum=4)
    write(make, root, spec, {"comm_exposed_s": 0.06, "comm_s": 0.06, "comm_overlapped_s": 0.06})
    whole, part = verdict(root).causes
    assert (whole.kind, part.kind, part.override) == ("communication", "accumulation", "zero_stage=1")
    # Stage 2 all-reduces 4 times and gathers once, 4.5 all-reduces; stage 1 takes 1.5.
    # Stage 3 gathers and scatters 4 times, and gathers some weights twice: 4 and a little.
    once = 1.5 / 4.5 if stage == 2 else 1.5 / 4
    assert part.seconds.median / whole.seconds.median == pytest.approx(1 - once, abs=0.05)


def test_accumulation_under_fsdp_which_gathers_in_every_micro_step(make, root):
    sharded = {"engine": "fsdp", "zero_stage": None, "fsdp": FsdpSection()}
    spec = make.make_spec(2, "weak", **sharded, micro_batch=8, grad_accum=4)
    write(make, root, spec, {"comm_exposed_s": 0.06, "comm_s": 0.06})
    whole, part = verdict(root).causes
    assert (whole.kind, part.kind, part.override) == ("communication", "accumulation", "engine=ddp")
    # Nearly all weights are gathered twice in each micro-step, and gradients scattered once: 4.5 all-reduces.
    assert part.seconds.median / whole.seconds.median == pytest.approx(1 - 1 / 4.5, abs=0.02)
    assert "FSDP communicates in each of 4 micro-steps" in part.evidence


def test_ddp_communicates_once_a_step(make, root):
    spec = make.make_spec(2, "weak", engine="ddp", zero_stage=None, micro_batch=8, grad_accum=4)
    write(make, root, spec, {"comm_exposed_s": 0.06, "comm_s": 0.06})
    assert kinds(verdict(root)) == ["communication"]


OF_ZERO = {"zero_stage": 1, "deepspeed": {"zero_optimization": {"reduce_bucket_size": 10**5}}, "device": "cuda"}
"""On CUDA, since no stage overlaps on a CPU."""


@pytest.mark.parametrize(
    ("keys", "override"),
    [
        ({"engine": "ddp", "zero_stage": None, "knobs": {"bucket_mb": 0.05}}, "engine.bucket_mb=25"),
        ({"engine": "deepspeed", **OF_ZERO}, "deepspeed.zero_optimization.reduce_bucket_size=500000000"),
        ({"engine": "accelerate_deepspeed", **OF_ZERO}, "deepspeed.zero_optimization.reduce_bucket_size=500000000"),
    ],
    ids=["ddp", "deepspeed", "accelerate"],
)
def test_buckets_below_the_default_where_latency_is_the_cost(make, root, keys, override):
    spec = make.make_spec(2, "weak", **keys)
    lines = [collective(calls=400, size=400 * 5e4, wire_s=0.03, busbw=7e8)]
    write(make, root, spec, {"comm_exposed_s": 0.03, "comm_s": 0.03}, collectives=lines)
    whole, part = verdict(root).causes
    assert (whole.detail, part.kind, part.override) == ("latency", "small_buckets", override)


def test_the_norm_for_clipping(make, root):
    spec = make.make_spec(2, "weak", zero_stage=1, device="cuda")
    lines = [collective(size=2e7, wire_s=0.02), collective(size=8, wire_s=0.02, busbw=400)]
    write(make, root, spec, {"comm_exposed_s": 0.04, "comm_s": 0.04, "comm_overlapped_s": 0.04}, collectives=lines)
    whole, part = verdict(root).causes
    assert (whole.kind, part.kind) == ("communication", "clipping")
    assert part.seconds.median == pytest.approx(whole.seconds.median / 2, rel=0.01)


def test_what_differs_between_launches_as_much_as_it_costs_is_no_cause(make, root):
    spec = make.make_spec(2, "weak")
    for launch, wait in enumerate((0.001, 0.1, 0.02)):
        make.write_launch(root, spec, launch, 0.1, parts={**CLEAN, "wait_s": wait, "forward_s": 0.31 - wait})
    assert verdict(root).causes == ()


def test_what_may_cost_most_but_cannot_be_told_from_noise_is_said(make, root):
    write(make, root, make.make_spec(1, "weak"))
    for launch, step_s in enumerate((0.13, 0.2, 0.3)):
        make.write_launch(root, make.make_spec(2, "weak"), launch, step_s, parts={**CLEAN, "comm_exposed_s": 0.1})
    told = verdict(root, world_size=2)
    assert kinds(told)[0] == "communication"
    assert "; computing slower than the baseline's may cost 8" in told.text
    assert told.text.endswith(" ms, which 3 launches cannot tell from noise.")


def test_one_launch_has_no_interval_and_names_only_what_is_large(make, root):
    make.write_launch(root, make.make_spec(2, "weak"), parts={**CLEAN, "data_s": 0.08})
    assert verdict(root).causes == ()
    make.write_launch(root, make.make_spec(4, "weak"), parts={**CLEAN, "data_s": 0.2})
    (cause,) = verdict(root, world_size=4).causes
    assert (cause.kind, cause.seconds.low) == ("input", None)


def test_without_communication_timed_apart_it_is_said_and_nothing_is_guessed(make, root):
    write(make, root, make.make_spec(1, "weak"))
    untimed = {"data_s": 0.01, "forward_s": 0.3, "backward_s": 0.6, "optimizer_s": 0.05}
    why = {"comm_exposed_s": "the engine sends from a stream of its own"}
    for launch in range(3):
        make.write_launch(root, make.make_spec(2, "weak"), launch, 0.2, parts=untimed, notes=why)
    told = verdict(root, world_size=2)
    assert told.causes == ()
    assert "not timed apart" in told.text
    assert told.text.endswith("optimizer (the engine sends from a stream of its own).")


def test_no_rank_is_named_where_the_records_of_one_are_missing(make, root):
    spec = make.make_spec(4, "weak")
    write(make, root, spec, lambda rank: {"forward_s": 0.02} if rank == 2 else {})
    for launch in range(3):
        (root / "runs" / spec.run_id / f"launch{launch}" / "steps.rank000.jsonl").unlink()
    told = verdict(root)
    assert {cause.rank for cause in told.causes} <= {None}


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_of_cause_is_defined_and_has_a_remedy(kind):
    page = (Path(__file__).parents[3] / "docs" / "concepts" / "verdict.md").read_text()
    assert f"\n| `{kind}` |" in page
    assert REMEDIES[kind].hint


def test_simulated_and_imported_runs_have_no_verdict(make, root):
    make.write_launch(root, make.make_spec(2, simulated_device="h100"), source="simulated", parts=CLEAN)
    assert analyse(root).analysis.verdicts == ()
