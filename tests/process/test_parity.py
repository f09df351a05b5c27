"""Training on ranks is training: all engines follow a plain loop that shares no code with the worker.

Rounding alone makes 2e-7 between any two of them; the bound is 2e-6, and wider for updates that enlarge rounding. An
AdamW run with a clip that always binds hides the scale of gradients, so SGD without clipping runs too, and wrong
references show that the bound has teeth.
"""

import math
from functools import cache

import numpy as np
import pytest
from ranks import runs, serve, steps

from vitscale.data.reader import open_split

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
pytest.importorskip("timm.optim")

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

BOUND = 2e-6
# Muon's iteration rounds to bf16: what differs in the last bit of a gradient differs there in its third digit.
BOUNDS = {"muon": 1.5e-5}
STEPS, BATCH = 20, 80  # 17 steps are an epoch of 1,437 images: the second epoch's order is followed too
WARMUP = 9  # of them; with 11 in the window no profiler looks at three more
ADAMW = {"name": "adamw", "lr": 3e-4, "weight_decay": 0.05, "clip": 1.0}
SGD = {"name": "sgd", "lr": 0.01, "weight_decay": 0.05, "clip": 0.0}
LION = {"name": "lion", "lr": 1e-4, "weight_decay": 0.05, "clip": 0.0}
LAMB = {"name": "lamb", "lr": 3e-3, "weight_decay": 0.05, "clip": 0.0}
MUON = {"name": "muon", "lr": 3e-4, "weight_decay": 0.05, "clip": 0.0}
ADAFACTOR = {"name": "adafactor", "lr": 3e-3, "weight_decay": 0.05, "clip": 0.0}
STAGES = "zero_stage=0,1,2,3"
ENGINES = "engine=deepspeed,ddp,fsdp,accelerate"
ACCELERATED = "engine=accelerate_deepspeed"
WHOLE = ENGINES.replace("fsdp,", "").replace(",fsdp", "")
GATHER = "deepspeed.zero_optimization.stage3_param_persistence_threshold=0"
CASES = {
    "adamw": (ADAMW, STAGES),
    "sgd": (SGD, STAGES, ENGINES),
    "adamw, two micro-steps": (ADAMW, "zero_stage=1,3", ENGINES, "grad_accum=2"),
    "sgd, two micro-steps": (SGD, "zero_stage=0,2", "grad_accum=2"),
    "adamw, no parameter persists": (ADAMW, "zero_stage=3", GATHER),
    "fsdp, weights kept after forward": (SGD, "engine=fsdp", "reshard_after_forward=false"),
    "accelerate over DeepSpeed": (SGD, "zero_stage=0,3", ACCELERATED),
    "accelerate over DeepSpeed, two micro-steps": (ADAMW, "zero_stage=1", ACCELERATED, "grad_accum=2"),
    "lion": (LION, STAGES, ENGINES),
    "lamb": (LAMB, WHOLE),
    "muon": (MUON, WHOLE),
    "adafactor": (ADAFACTOR, WHOLE),
    "bf16": (ADAMW, STAGES, ENGINES, "precision=bf16"),
    "bf16, accelerate over DeepSpeed": (ADAMW, "zero_stage=2", ACCELERATED, "precision=bf16"),
    "bf16_autocast": (ADAMW, STAGES, ENGINES, "precision=bf16_autocast"),
}
UPDATES = ("lion", "lamb", "muon", "adafactor", "bf16", "bf16_autocast")
"""What an optimizer or a precision is to each engine two ranks tell; one rank tells it of DDP and plain torch, and a
precision of DeepSpeed and FSDP too, whose master weights are their own."""
SIXTEEN_BITS = ["bf16", "bf16, accelerate over DeepSpeed", "bf16_autocast"]
FP32 = [case for case in CASES if case not in SIXTEEN_BITS]


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def measured(request, store, tmp_path_factory):
    """case -> run -> global mean loss of every step; one process start for all."""
    specs = {}
    for case, (optimizer, *words) in CASES.items():
        keys = [f"optimizer.{key}={value}" for key, value in optimizer.items()]
        size = (f"global_batch={BATCH}", f"warmup_steps={WARMUP}", f"steps={STEPS - WARMUP}", "world_size=1,2")
        words = on_one_rank(case, words) if request.param == 1 else words
        found = runs(store, *size, *keys, *words)
        specs[case] = [run for run in found if run.world_size == request.param]
    flat = [(case, spec) for case, found in specs.items() for spec in found]
    end, folders = serve(store, tmp_path_factory.mktemp("parity"), [spec for _, spec in flat])
    assert end.status == "ok", end.reason
    losses = {case: {} for case in CASES}
    for (case, spec), folder in zip(flat, folders, strict=True):
        of_ranks = [[line["loss"] for line in lines] for lines in steps(folder).values()]
        assert [len(one) for one in of_ranks] == [STEPS] * request.param
        name = spec.engine if spec.zero_stage is None else f"{spec.engine} {spec.zero_stage}"
        losses[case][name] = np.mean(of_ranks, axis=0)
    return losses


def on_one_rank(case, words):
    """Plain torch beside the engines; but for one they are left out where they would repeat what they do on two."""
    if case in UPDATES:
        sixteen = case in SIXTEEN_BITS
        engines = ["engine=deepspeed,ddp,fsdp,single", "zero_stage=0,3"] if sixteen else ["engine=ddp,single"]
        return [*engines, *(word for word in words if not word.startswith(("engine=", "zero_stage=")))]
    return [word + ",single" if word == ENGINES else word for word in words]


@cache
def plain_loop(root, optimizer, gradient_scale=1.0):
    """Losses of a plain single-process run: plain model, torch's optimizer, whole global batches."""
    told = dict(optimizer)
    split = open_split("digits", "train", root)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=16, patch_size=8, num_classes=10).train()
    update = plain_optimizer(model, told)
    losses = []
    for step in range(STEPS):
        images, labels = global_batch(split, step)
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        (loss * gradient_scale).backward()
        if told["clip"]:
            torch.nn.utils.clip_grad_norm_(model.parameters(), told["clip"])
        update.step()
        update.zero_grad()
        losses.append(loss.item())
    torch.set_num_threads(threads)
    return np.array(losses)


def plain_optimizer(model, told):
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": told["weight_decay"]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    match told["name"]:
        case "adamw":
            return torch.optim.AdamW(groups, lr=told["lr"])
        case "sgd":
            return torch.optim.SGD(groups, lr=told["lr"], momentum=0.9)
        case "lion":
            return timm.optim.Lion(groups, lr=told["lr"], foreach=False)
        case "lamb":
            groups[0]["always_adapt"] = True
            return timm.optim.Lamb(groups, lr=told["lr"], max_grad_norm=None, foreach=False)
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=told["lr"])
        case "muon":
            hidden = [p for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
            for group in groups:
                group["params"] = [p for p in group["params"] if all(p is not one for one in hidden)]
                group["use_fallback"] = True
            groups.append({"params": hidden, "weight_decay": told["weight_decay"]})
            return timm.optim.Muon(groups, lr=told["lr"], adjust_lr_fn="match_rms_adamw")


def global_batch(split, step):
    """As documented: epoch e is shuffled by PCG64 of (seed, e), the incomplete last batch is dropped."""
    epoch, within = divmod(step, len(split) // BATCH)
    order = np.random.Generator(np.random.PCG64(np.random.SeedSequence((0, epoch)))).permutation(len(split))
    chosen = order[within * BATCH : (within + 1) * BATCH]
    grey = torch.from_numpy(split.take(chosen)).permute(0, 3, 1, 2)
    # Resized as bytes, as PIL does it.
    images = torch.nn.functional.interpolate(grey, (16, 16), mode="bilinear", antialias=True).float() / 127.5 - 1
    return images.repeat(1, 3, 1, 1), torch.from_numpy(split.take_labels(chosen))


def reference(store, optimizer, gradient_scale=1.0):
    return plain_loop(store, tuple(optimizer.items()), gradient_scale)


def gap(losses, wanted):
    """Largest relative difference of a step's loss."""
    return float(np.max(np.abs(losses - wanted) / wanted))


@pytest.mark.parametrize("case", FP32)
def test_fp32_losses_are_those_of_a_plain_loop(measured, store, case):
    wanted = reference(store, CASES[case][0])
    gaps = {engine: gap(losses, wanted) for engine, losses in measured[case].items()}
    assert max(gaps.values()) < BOUNDS.get(case, BOUND), gaps
    assert wanted[-1] < wanted[0] - 0.1


@pytest.mark.parametrize(
    ("case", "optimizer", "scale"),
    [
        ("sgd", SGD, 1.01),
        ("sgd", SGD, 2.0),
        ("adamw", {**ADAMW, "weight_decay": 0.0}, 1.0),
        ("sgd", {**SGD, "weight_decay": 0.0}, 1.0),
        ("sgd", {**SGD, "clip": 1.0}, 1.0),
        ("adamw", {**ADAMW, "lr": ADAMW["lr"] * 1.001}, 1.0),
        ("lion", {**LION, "weight_decay": 0.0}, 1.0),
        ("lamb", {**LAMB, "weight_decay": 0.0}, 1.0),
        ("muon", {**MUON, "weight_decay": 0.0}, 1.0),
        ("adafactor", {**ADAFACTOR, "weight_decay": 0.0}, 1.0),
    ],
    ids=[
        "scale 1 % off",
        "scale doubled",
        "no decay",
        "no L2",
        "a clip nobody asked for",
        "rate 0.1 % off",
        "Lion without decay",
        "LAMB without decay",
        "Muon without decay",
        "Adafactor without decay",
    ],
)
def test_the_bound_notices_a_wrong_update(measured, store, case, optimizer, scale):
    wrong = reference(store, optimizer, scale)
    gaps = {engine: gap(losses, wrong) for engine, losses in measured[case].items()}
    assert min(gaps.values()) > 3 * BOUNDS.get(case, BOUND), gaps


@pytest.mark.parametrize("case", SIXTEEN_BITS)
def test_bf16_learns_as_fp32_does(measured, store, case):
    wanted = reference(store, ADAMW)
    for engine, losses in measured[case].items():
        assert all(math.isfinite(loss) for loss in losses)
        assert losses[-3:].mean() < losses[:3].mean() - 0.1, engine
        assert gap(losses, wanted) < 0.05, engine
        assert gap(losses, wanted) > 1e-4, f"{engine} did not compute in bf16"
