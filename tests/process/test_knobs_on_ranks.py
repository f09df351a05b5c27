"""Knobs of `[engine]` through the real worker on two ranks: the same losses, but where gradients are compressed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from ranks import runs, serve, steps

pytest.importorskip("torch")

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

SIZE = ("world_size=2", "global_batch=32", "grad_accum=2", "steps=10", "optimizer.name=sgd", "optimizer.lr=0.03")
ZERO = "deepspeed.zero_optimization"
SAME = {
    "ddp": ("engine=ddp",),
    "buckets": ("engine=ddp", "engine.bucket_mb=0.05", "engine.gradient_as_bucket_view=false"),
    "graph": ("engine=ddp", "engine.static_graph=true", "grad_accum=1"),
    "model": (
        "engine=ddp", "engine.channels_last=true", "engine.activation_checkpointing=true", "engine.sdpa=math",
        "engine.optimizer_impl=fused",
    ),
    "compiled": ("zero_stage=1", "engine.compile=true"),
    "fsdp": ("engine=fsdp", "engine.activation_checkpointing=true", "engine.optimizer_impl=foreach"),
    "zero0": ("zero_stage=0", "engine.overlap_reduce=true"),
    "zero2": (
        "zero_stage=2", "engine.activation_checkpointing=true", f"{ZERO}.overlap_comm=true",
        f"{ZERO}.reduce_bucket_size=100000",
    ),
    "threads": ("engine=ddp", "engine.loader_threads=2"),
    "zero3": (
        "zero_stage=3", "engine.activation_checkpointing=true", f"{ZERO}.stage3_prefetch_bucket_size=10000",
        f"{ZERO}.stage3_param_persistence_threshold=1000", f"{ZERO}.reduce_bucket_size=100000",
    ),
}  # fmt: skip
COMPRESSED = {name: ("engine=ddp", f"engine.ddp_hook={name}") for name in ("fp16", "bf16")}
SIXTEEN = {
    "bf16, after backward": ("zero_stage=0", "precision=bf16"),
    "bf16, beside backward": ("zero_stage=0", "precision=bf16", "engine.overlap_reduce=true"),
}
BESIDE = {"zero0": 4, "bf16, beside backward": 2}
"""Cases in which the reducer sends in place of DeepSpeed -> bytes of a gradient's element."""


@pytest.fixture(scope="module")
def launched(store, tmp_path_factory):
    """case -> folder of its launch; one process start for all."""
    cases = {**SAME, **COMPRESSED, **SIXTEEN}
    specs = [runs(store, *SIZE, *words)[0] for words in cases.values()]
    end, folders = serve(store, tmp_path_factory.mktemp("knobs"), specs)
    assert end.status == "ok", end.reason
    return dict(zip(cases, folders, strict=True))


@pytest.fixture(scope="module")
def losses(launched):
    """case -> global mean loss of every step."""
    return {
        case: np.mean([[line["loss"] for line in lines] for lines in steps(folder).values()], axis=0)
        for case, folder in launched.items()
    }


def gaps(losses, case):
    return np.abs(losses[case] - losses["ddp"]) / losses["ddp"]


@pytest.mark.parametrize("case", [*SAME][1:])
def test_a_knob_changes_rounding_only(losses, case):
    assert gaps(losses, case).max() < 2e-6


@pytest.mark.parametrize(("case", "most"), [("fp16", 1e-3), ("bf16", 1e-2)])
def test_a_hook_compresses_gradients_and_still_learns(losses, case, most):
    assert 1e-7 < gaps(losses, case).max() < most
    assert losses[case][-1] < losses[case][0]


@pytest.mark.parametrize("case", BESIDE)
def test_gradients_are_sent_once_a_step_by_calls_that_nobody_stands_still_for(launched, case):
    folder = launched[case]
    manifest = json.loads((folder / "manifest.json").read_text())
    lines = [json.loads(line) for line in (folder / "collectives.jsonl").read_text().splitlines()]
    assert {line["operation"] for line in lines} == {"all_reduce"}
    gradients = [line for line in lines if line["bytes_per_step"] > 64]  # the others are a norm or a flag
    assert sum(line["bytes_per_step"] for line in gradients) == BESIDE[case] * manifest["parameters"]
    for device in manifest["devices"]:
        assert device["overhead"]["asynchronous"] == sum(line["calls_per_step"] for line in gradients)


def test_in_16_bits_gradients_beside_backward_are_deepspeeds_own(losses):
    own, beside = (losses[case] for case in SIXTEEN)
    assert (np.abs(beside - own) / own).max() < 1e-4  # the sum of two and its half are exact
    assert beside[-1] < beside[0]


def test_ranks_that_are_not_bound_have_as_many_threads(store, tmp_path):
    bound, free = (runs(store, *SIZE, "engine=ddp", "steps=2", *words) for words in ((), ("engine.bind_cores=false",)))
    end, folders = serve(store, tmp_path, free)
    assert end.status == "ok", end.reason
    devices = json.loads((folders[0] / "manifest.json").read_text())["devices"]
    assert [one["cores"] for one in devices] == [[], []]
    assert [one["threads"] for one in devices] == [bound[0].threads_per_rank] * 2


EXTENSIONS = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions"))


@pytest.mark.skipif(not any(EXTENSIONS.rglob("fused_adam.so")), reason="DeepSpeed's Adam takes a minute to compile")
def test_deepspeeds_own_adam_is_torchs(store, tmp_path):
    words = (*SIZE, "optimizer.name=adamw", "optimizer.lr=3e-4", "zero_stage=0,1,3")
    specs = [*runs(store, *words), *runs(store, *words, "engine.optimizer_impl=deepspeed")]
    end, folders = serve(store, tmp_path, specs)
    assert end.status == "ok", end.reason
    found = [np.array([[line["loss"] for line in lines] for lines in steps(one).values()]) for one in folders]
    for torchs, own in zip(found[:3], found[3:], strict=True):
        assert (np.abs(own - torchs) / torchs).max() < 2e-6
