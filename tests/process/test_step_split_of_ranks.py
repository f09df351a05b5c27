"""Where the time of a step goes on two ranks, one of which is slowed: every engine, in the worker's own launches."""

import gzip
import json
from statistics import median

import pytest
from ranks import on_ranks, runs, serve, steps

from vitscale.cost.collectives import Links
from vitscale.cost.run import Machinery, estimate_run

pytest.importorskip("torch")

pytestmark = [pytest.mark.process, pytest.mark.alone, pytest.mark.timeout(240)]

MODEL = (
    "model.name=vit_tiny_patch16_224", "depth=2", "img_size=16", "patch_size=8", "world_size=2", "global_batch=16",
    "precision=fp32",
)  # fmt: skip
# With more buckets, what the slow rank sends beside its work is communication that the other stands still for.
ONE_BUCKET = ("engine=ddp", "engine.bucket_mb=25")
ENGINES = {
    "ddp": ONE_BUCKET,
    **{f"zero{stage}": (f"zero_stage={stage}",) for stage in range(4)},
    "fsdp": ("engine=fsdp",),
}
# With accumulation, and not slowed.
STEADY = {
    "ddp": ("engine=ddp",),
    "zero0 in buckets": ("zero_stage=0", "engine.overlap_reduce=true"),
    "zero2": ("zero_stage=2",),
    "zero3": ("zero_stage=3",),
    "fsdp": ("engine=fsdp",),
    "tensor": ("engine=ddp", "tensor_parallel=2", "num_heads=4"),
    "accelerate": ("engine=accelerate",),
    "accelerate zero3": ("engine=accelerate_deepspeed", "zero_stage=3"),
}
STEADY = {f"{name} in micro-steps": (*words, "grad_accum=2") for name, words in STEADY.items()}
PLACES = (None, "forward", "backward", "data")
SLEEP_S = 0.15
WARMUP, STEPS = 3, 16
PARTS = ("data_s", "forward_s", "backward_s", "optimizer_s", "comm_exposed_s", "wait_s", "launch_gap_s")


def place(step):
    """Where rank 1 sleeps in a step: nowhere, and in one part after the other."""
    return PLACES[step % len(PLACES)]


@pytest.fixture(scope="module")
def launched(store, tmp_path_factory):
    """engine -> spec and launch folder; one process start for all. The last is not slowed, and looked at closer."""
    window = (f"warmup_steps={WARMUP}", f"steps={STEPS}")
    specs = {name: runs(store, *MODEL, *words, *window)[0] for name, words in ENGINES.items()}
    sleeps = [
        f"sleep rank=1 launch={spec.run_id} where={place(step)} seconds={SLEEP_S} step={step}"
        for spec in specs.values()
        for step in range(WARMUP, WARMUP + STEPS)
        if place(step)
    ]
    for name, words in STEADY.items():
        (specs[name],) = runs(store, *MODEL, *words, "warmup_steps=1", "steps=5")
    (specs["closer"],) = runs(store, *MODEL, "engine=ddp", "steps=48", "measure.profile=true")
    environ = {"VITSCALE_INJECT": ";".join(sleeps)}
    end, folders = serve(store, tmp_path_factory.mktemp("split"), [*specs.values()], environ, first=True)
    assert end.status == "ok", end.reason
    return {name: (spec, folder) for (name, spec), folder in zip(specs.items(), folders, strict=True)}


@pytest.mark.parametrize("where", PLACES[1:])
@pytest.mark.parametrize("name", ENGINES)
def test_a_slow_rank_is_waiting_on_the_other_and_not_communication(launched, name, where):
    first, slow = (
        [line for line in lines if line["window"] == "steady" and place(line["step"]) == where]
        for lines in steps(launched[name][1]).values()
    )

    def more_s(*fields):
        """What the slow rank has more of than the first one, over the slowed steps."""
        return sum(two[field] - one[field] for one, two in zip(first, slow, strict=True) for field in fields)

    # A rank that sleeps leaves its share of a busy machine to the other: it is late by what it worked longer.
    late_s = more_s("data_s", "forward_s", "backward_s", "optimizer_s")
    assert late_s >= 0.5 * SLEEP_S * len(slow)
    assert min(line[f"{where}_s"] for line in slow) >= SLEEP_S
    assert -more_s("wait_s") >= 0.9 * late_s
    assert -more_s("comm_exposed_s") < 0.1 * late_s
    assert sum(line["late_s"] for line in slow) >= 0.9 * sum(line["wait_s"] for line in first)


@pytest.mark.parametrize("name", [*ENGINES, *STEADY, "closer"])
def test_the_parts_make_up_the_step_on_every_rank(launched, name):
    for lines in steps(launched[name][1]).values():
        for line in lines:
            assert sum(line[part] for part in PARTS) == pytest.approx(line["step_s"], rel=0.02)
            assert line["comm_overlapped_s"] == pytest.approx(line["comm_s"] - line["comm_exposed_s"], abs=1e-9)
            assert min(line[part] for part in PARTS) >= 0
            assert line["comm_s"] > 0


def test_stage_0_that_sends_in_buckets_hides_a_part_of_it(launched):
    of_ranks = steps(launched["zero0 in buckets in micro-steps"][1]).values()
    assert sum(line["comm_overlapped_s"] for lines in of_ranks for line in lines) > 0


def check_bytes(spec, sent):
    """Sum of `(operation, bytes)` by operation against the closed form, which leaves norms and flags out."""
    found, derived = {}, {}
    for operation, size in sent:
        found[operation] = found.get(operation, 0) + size
    for one in estimate_run(spec, Machinery(None, Links(None, None), None)).collectives:
        derived[one.operation] = derived.get(one.operation, 0) + one.bytes
    assert {name: found.pop(name) for name in derived} == pytest.approx(derived, rel=0.01)
    assert sum(found.values()) < 100


@pytest.mark.parametrize("name", [*ENGINES, *STEADY])
def test_the_bytes_that_were_sent_are_those_of_the_closed_form(launched, name):
    spec, folder = launched[name]
    lines = [json.loads(line) for line in (folder / "collectives.jsonl").read_text().splitlines()]
    check_bytes(spec, [(line["operation"], line["bytes_per_step"]) for line in lines])
    for line in lines:
        assert line["group_size"] == 2
        assert line["busbw_bytes_per_s"] > 0


def test_a_closer_look_leaves_a_trace_of_each_rank_and_steps_without_collectives(launched):
    _, folder = launched["closer"]
    for rank in range(2):
        with gzip.open(folder / f"trace.rank{rank:03d}.json.gz") as file:
            events = json.load(file)["traceEvents"]
        for phase in ("data", "forward", "backward", "optimizer"):
            assert sum(event["name"] == phase and event.get("cat") == "user_annotation" for event in events) == 3
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"trace.rank000.json.gz", "trace.rank001.json.gz", "collectives.jsonl"} < manifest["files"].keys()
    for device in manifest["devices"]:
        assert 0 < device["silence"]["silent_step_s"] < 2 * device["silence"]["step_s"]
    assert {"trace", "silence", "roofline"}.isdisjoint(manifest["notes"])


def test_a_closer_look_times_each_class_of_layer_and_holds_it_against_a_matrix_product(launched):
    _, folder = launched["closer"]
    layers = {line["layer"]: line for line in map(json.loads, (folder / "roofline.jsonl").read_text().splitlines())}
    assert layers.keys() == {"patch_embed", "norm", "qkv", "attention", "proj", "fc1", "fc2", "head"}
    (first, second) = json.loads((folder / "manifest.json").read_text())["devices"]
    assert min(first["gemm_peak_flop_per_s"], second["gemm_peak_flop_per_s"]) > 1e8
    fc1 = layers["fc1"]
    attained = fc1["flop_per_step"] / fc1["seconds_per_step"]
    assert fc1["peak_share"] == pytest.approx(attained / first["gemm_peak_flop_per_s"])
    assert layers["norm"]["peak_share"] is None


@pytest.mark.parametrize("name", [*ENGINES, "closer"])
def test_the_profiler_sees_the_collectives_of_every_engine(launched, name):
    manifest = json.loads((launched[name][1] / "manifest.json").read_text())
    assert "overlap" not in manifest["notes"]
    for device in manifest["devices"]:
        seen = device["overlap"]
        assert seen["steps"] == 2
        assert 0 < seen["comm_and_wait_s"] < seen["step_s"]
        # All but DDP stand still in each collective on a CPU.
        assert 0 <= seen["overlapped_s"] <= (1 if name in ("ddp", "closer") else 0.2) * seen["comm_and_wait_s"]


def test_a_window_is_lengthened_by_a_quarter_at_most(launched):
    for name, blocks in (("ddp", 2), ("closer", 3)):
        manifest = json.loads((launched[name][1] / "manifest.json").read_text())
        assert [device["silence"]["blocks"] for device in manifest["devices"]] == [blocks] * 2
    manifest = json.loads((launched["ddp in micro-steps"][1] / "manifest.json").read_text())
    assert manifest["notes"]["silence"] == "fewer than 8 steady steps"
    assert all(device["silence"] is None for device in manifest["devices"])


SHIFTED_SLEEP_S = 0.15
SHAPES = {
    "ddp in half precision": (*ONE_BUCKET, "engine.ddp_hook=fp16", "grad_accum=2"),
    "zero0": ("zero_stage=0",),
    "zero1": ("zero_stage=1",),
    "zero2": ("zero_stage=2", "grad_accum=2"),
    "zero3": ("zero_stage=3", "grad_accum=2"),
    "fsdp": ("engine=fsdp",),
    "sequence": (*ONE_BUCKET, "sequence_parallel=2"),
    "tensor": (*ONE_BUCKET, "tensor_parallel=2", "num_heads=4"),
    "accelerate": ("engine=accelerate",),
}


@pytest.fixture(scope="module")
def shifted(store, tmp_path_factory):
    """shape -> spec and what each rank saw, with rank 1 on a host whose clock is 5 s ahead."""
    out = tmp_path_factory.mktemp("shifted")
    specs = {name: runs(store, *MODEL, *words)[0] for name, words in SHAPES.items()}
    given = [spec.model_dump(mode="json") for spec in specs.values()]
    (found,) = on_ranks("timed_ranks", out, [(2, given, 5.0, SHIFTED_SLEEP_S)], first=True)
    for rank in found:
        (_, (offset_ns, error_ns)) = rank["offsets"]
        assert offset_ns == pytest.approx(-5e9, abs=2 * error_ns + 1e6)
    return {name: (spec, [rank["runs"][number] for rank in found]) for number, (name, spec) in enumerate(specs.items())}


@pytest.mark.parametrize("name", SHAPES)
def test_timing_changes_no_bit_of_the_losses(shifted, name):
    for rank in shifted[name][1]:
        assert rank["timed"] == rank["untimed"]
        assert rank["unread"] == {}


@pytest.mark.parametrize("name", SHAPES)
def test_hosts_whose_clocks_differ_tell_waiting_from_communication_all_the_same(shifted, name):
    first, slow = (rank["times"] for rank in shifted[name][1])

    def more_s(at, *fields):
        return sum(slow[at][field] - first[at][field] for field in fields)

    def late_s(at):
        """By how much the slow rank came later; what is late after the last collective is so in the step after."""
        return more_s(at, "data", "forward", "backward") + more_s(at - 1, "optimizer")

    steps = range(1, len(slow))
    told = [at for at in steps if late_s(at) >= 0.5 * SHIFTED_SLEEP_S]
    assert len(told) >= 0.5 * len(steps)
    assert median(-more_s(at, "wait") / late_s(at) for at in told) >= 0.9
    assert sum(slow[at]["late"] for at in steps) >= 0.9 * sum(first[at]["wait"] for at in steps)


@pytest.mark.parametrize("name", SHAPES)
def test_the_bytes_of_every_shape_are_those_of_its_closed_form(shifted, name):
    spec, (first, _) = shifted[name]  # with three heads the ranks do not send the same
    check_bytes(spec, [(operation, size) for operation, _, _, _, size, *_ in first["traffic"]])


@pytest.mark.parametrize("name", SHAPES)
def test_without_collectives_nobody_waits_for_the_slow_rank(shifted, name):
    first, slow = (rank["silence"] for rank in shifted[name][1])
    assert min(first["step_s"], slow["step_s"], slow["silent_step_s"]) >= SHIFTED_SLEEP_S
    assert first["silent_step_s"] < first["step_s"] - 0.3 * SHIFTED_SLEEP_S
