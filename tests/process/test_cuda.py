"""The worker on one CUDA device: the same losses as a plain loop there, and times from CUDA events."""

import importlib.util
import json

import numpy as np
import pytest
from ranks import runs, serve, steps

from vitscale.data.reader import open_split

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

pytestmark = [
    pytest.mark.process,
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
]

STEPS, BATCH, LR = 20, 64, 3e-4
# Wider than on the CPU: the order in which kernels add differs between the plain loop's attention and optimizer and
# those under ZeRO. Missing weight decay makes 6e-5.
BOUND = 1e-5


@pytest.fixture(scope="module")
def measured(store, tmp_path_factory):
    """(precision, stage) -> launch folder; one process start."""
    size = ("device=cuda", f"global_batch={BATCH}", f"steps={STEPS - 1}", f"optimizer.lr={LR}")
    specs = runs(store, *size, "world_size=1", "zero_stage=0,2,3", "precision=fp32,bf16")
    end, folders = serve(store, tmp_path_factory.mktemp("cuda"), specs, device="cuda")
    assert end.status == "ok", end.reason
    return {(spec.precision, spec.zero_stage): folder for spec, folder in zip(specs, folders, strict=True)}


@pytest.fixture(scope="module")
def plain(store):
    """Losses of a plain loop on the same device."""
    split = open_split("digits", "train", store)
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=16, patch_size=8, num_classes=10).train().to("cuda")
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    update = torch.optim.AdamW(groups, lr=LR, fused=True)
    order = np.random.Generator(np.random.PCG64(np.random.SeedSequence((0, 0)))).permutation(len(split))
    losses = []
    for chosen in order[: STEPS * BATCH].reshape(STEPS, BATCH):
        grey = torch.from_numpy(split.take(chosen)).cuda().permute(0, 3, 1, 2).float()
        images = torch.nn.functional.interpolate(grey, (16, 16), mode="bilinear") / 127.5 - 1
        labels = torch.from_numpy(split.take_labels(chosen)).cuda()
        loss = torch.nn.functional.cross_entropy(model(images.repeat(1, 3, 1, 1)), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update.step()
        update.zero_grad()
        losses.append(loss.item())
    return np.array(losses)


def losses_of(folder):
    return np.array([line["loss"] for line in steps(folder)[0]])


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_fp32_losses_are_those_of_a_plain_loop(measured, plain, stage):
    losses = losses_of(measured["fp32", stage])
    assert float(np.max(np.abs(losses - plain) / plain)) < BOUND


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_bf16_learns_as_fp32_does(measured, plain, stage):
    losses = losses_of(measured["bf16", stage])
    assert losses[-3:].mean() < losses[:3].mean() - 0.1
    assert float(np.max(np.abs(losses - plain) / plain)) < 0.05


def test_times_come_from_cuda_events(measured):
    for folder in measured.values():
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["layout"]["backend"] == "nccl"
        assert [(one["kind"], one["name"]) for one in manifest["devices"]] == [("cuda", torch.cuda.get_device_name(0))]
        assert 0 < manifest["devices"][0]["memory_peak_bytes"] < manifest["devices"][0]["memory_bytes"]
        for line in steps(folder)[0]:
            parts = [line[f"{part}_s"] for part in ("data", "forward", "backward", "optimizer")]
            assert min(parts) >= 0
            # Events tile the step: its parts are its whole, which host clocks around asynchronous calls are not.
            assert sum(parts) + (line["launch_gap_s"] or 0) == pytest.approx(line["step_s"], rel=1e-3, abs=1e-5)


SLEEP_S = 0.02


def test_what_a_host_sleeps_between_launches_is_launch_gap(store, tmp_path):
    """In forward: at least 80 % of it, and none of it in forward itself."""
    words = ("device=cuda", "world_size=1", "engine=ddp", "global_batch=16", "warmup_steps=5", "steps=20")
    environ = {"VITSCALE_INJECT": f"sleep rank=0 where=forward seconds={SLEEP_S}"}
    end, (folder,) = serve(store, tmp_path, runs(store, *words), environ, device="cuda")
    assert end.status == "ok", end.reason
    steady = [line for line in steps(folder)[0] if line["window"] == "steady"]
    assert np.median([line["launch_gap_s"] for line in steady]) >= 0.8 * SLEEP_S
    assert np.median([line["forward_s"] for line in steady]) < 0.2 * SLEEP_S
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "forward" not in manifest["notes"].get("launch_gap_s", "")


def test_samples_are_of_this_device(measured):
    for folder in measured.values():
        notes = json.loads((folder / "manifest.json").read_text())["notes"]
        lines = [json.loads(line) for line in (folder / "devices.node000.jsonl").read_text().splitlines()]
        assert list(dict.fromkeys(line["window"] for line in lines)) == ["setup", "warmup", "steady", "held"]
        for line in lines:
            (gpu,) = line["gpus"]
            unread = {field for field, value in gpu.items() if value is None}
            assert "gpus" in notes or unread <= {key.removeprefix("gpus.") for key in notes}
            assert gpu["memory_used_bytes"] is None or gpu["memory_used_bytes"] > 100e6
            assert gpu["utilisation_share"] is None or gpu["utilisation_share"] <= 1
        joules = [line["gpus"][0]["energy_j"] for line in lines]
        assert None in joules or joules == sorted(joules)
