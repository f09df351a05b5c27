"""One rank of a loop that users would otherwise write, each as its project's documentation has it.

    RANK=0 WORLD_SIZE=1 … python -m benchmarks.peer_rank LOOP SETTING.json

Every loop has the same model, images, batch, precision, optimizer and threads. It appends the end of each optimizer
step to a list and nothing else; what it costs to be timed is one call per step. Sources, as of the installed versions:

Nothing is clipped, since most of them do not.

- `deepspeed`: DeepSpeed's "Getting Started" and its CIFAR-10 tutorial (`cifar10_deepspeed.py`).
- `ddp`: PyTorch's "Multi GPU training with DDP" (`multigpu.py`).
- `accelerate`: Accelerate's `examples/cv_example.py`.
- `timm`: timm's `train.py` with its factories for loader, optimizer and schedule, `--no-aug`; on CUDA with
  `--amp --amp-dtype bfloat16`, and `timm_compiled` with `--torchcompile` too.
- `torchvision`: torchvision's `references/classification/train.py` with `--opt adamw --amp`, of which autocast is bf16
  here, without its gradient scaler; it reads loss and accuracy in each step.
- `paper`: the loop beside arXiv 2602.21081: PIL resize to the model's size, two loader workers, `.item()` each step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import timm
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision import transforms

from vitscale.data.synthetic import pool

LR, WEIGHT_DECAY = 1e-3, 0.05
MEAN = STD = (0.5, 0.5, 0.5)
RANK, WORLD_SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Images(Dataset[Any]):
    """The data set `synthetic` as torchvision's CIFAR10 hands out images: arrays become PIL, then the transform."""

    def __init__(self, transform: Callable[[Any], Any] | None, length: int | None = None) -> None:
        made = pool("train")
        self.images, self.labels, self.transform = made.images, made.labels, transform
        self.length = length or len(made.labels)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = Image.fromarray(self.images[index % len(self.labels)]), self.labels[index % len(self.labels)]
        return (image if self.transform is None else self.transform(image)), int(label)


class Timed:
    """The end of each step, until there are enough of them: on CUDA an event of the stream, else the host's clock."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps, self.on_gpu = steps, device.type == "cuda"
        self.ends: list[Any] = []
        self.step_ended()

    def step_ended(self) -> bool:
        """Note the time; whether that was the last step."""
        if self.on_gpu:
            event: Any = torch.cuda.Event
            self.ends.append(event(enable_timing=True))
            self.ends[-1].record()
        else:
            self.ends.append(time.perf_counter())
        return len(self.ends) > self.steps

    def steps_s(self, first: int) -> list[float]:
        """Seconds of the steps from the `first` on."""
        pairs = pairwise(self.ends[first:])
        if not self.on_gpu:
            return [after - before for before, after in pairs]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairs]


def deepspeed_loop(setting: dict[str, Any], timed: Timed, workers: int = 2, item: bool = False) -> None:
    """`initialize`, then `forward`, `backward`, `step`."""
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": setting["micro_batch"],
        "optimizer": {"type": "AdamW", "params": {"lr": LR, "weight_decay": WEIGHT_DECAY, "torch_adam": True}},
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": 0},
    }
    net = model(setting)
    deepspeed.init_distributed(dist_backend="gloo")
    engine, *_ = deepspeed.initialize(model=net, model_parameters=net.parameters(), config=config)
    criterion = nn.CrossEntropyLoss()
    running = 0.0
    for inputs, labels in epochs(loader(setting, num_workers=workers)):
        outputs = engine(inputs)
        loss = criterion(outputs, labels)
        engine.backward(loss)
        engine.step()
        if item:
            running += loss.item()
        if timed.step_ended():
            return


def paper_loop(setting: dict[str, Any], timed: Timed) -> None:
    """DeepSpeed's loop with `.item()` each step."""
    deepspeed_loop(setting, timed, item=True)


def ddp_loop(setting: dict[str, Any], timed: Timed) -> None:
    """The tutorial's `_run_batch` in its `_run_epoch`; its loader has no workers."""
    dist.init_process_group("gloo")
    net = DistributedDataParallel(model(setting))
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    for source, targets in epochs(loader(setting, num_workers=0)):
        optimizer.zero_grad()
        output = net(source)
        loss = functional.cross_entropy(output, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if timed.step_ended():
            return


def accelerate_loop(setting: dict[str, Any], timed: Timed) -> None:
    """`prepare`, normalisation on the device, a one-cycle schedule, the summed loss left on the device."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    torch.set_num_threads(setting["threads"])  # without OMP_NUM_THREADS Accelerate takes them all
    resize = transforms.Compose([transforms.Resize((setting["img_size"],) * 2), transforms.ToTensor()])
    train = DataLoader(Images(resize), shuffle=True, batch_size=setting["micro_batch"], num_workers=4)
    net = model(setting)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR / 25, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, epochs=100, steps_per_epoch=len(train))
    net, optimizer, train, schedule = accelerator.prepare(net, optimizer, train, schedule)
    mean, std = (torch.tensor(one)[None, :, None, None].to(accelerator.device) for one in (MEAN, STD))
    total: Any = 0
    for images, labels in epochs(train):
        outputs = net((images - mean) / std)
        loss = functional.cross_entropy(outputs, labels)
        total += loss.detach().float()
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if timed.step_ended():
            return


def timm_loop(setting: dict[str, Any], timed: Timed, compiled: bool = False) -> None:
    """`train_one_epoch` with timm's loader, optimizer and schedule; the loss is read every 50 updates."""
    from timm.data import create_loader
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import AverageMeter

    device, distributed = device_of(setting), "device" not in setting
    made = create_loader(
        Images(None, setting.get("images")), (3, *[setting["img_size"]] * 2), setting["micro_batch"], is_training=True,
        no_aug=True, mean=MEAN, std=STD, num_workers=4, distributed=distributed, use_prefetcher=device.type == "cuda",
        device=device,
    )  # fmt: skip
    net = model(setting)
    if distributed:
        dist.init_process_group("gloo")
        net = DistributedDataParallel(net)
    optimizer = create_optimizer_v2(net, opt="adamw", lr=LR, weight_decay=WEIGHT_DECAY)
    net = torch.compile(net) if compiled else net  # type: ignore[assignment]
    schedule, _ = create_scheduler_v2(optimizer, num_epochs=100, updates_per_epoch=len(made))
    losses = AverageMeter()
    optimizer.zero_grad()
    for updates, (images, target) in enumerate(fed(made, setting), start=1):
        with autocast(setting):
            loss = functional.cross_entropy(net(images), target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if updates % 50 == 0:
            losses.update(loss.item(), images.size(0))
        schedule.step_update(num_updates=updates, metric=losses.avg)
        if timed.step_ended():
            return


def torchvision_loop(setting: dict[str, Any], timed: Timed) -> None:
    """`train_one_epoch` of the reference scripts; their loader has 16 workers."""
    device, size = device_of(setting), (setting["img_size"],) * 2
    steps = [transforms.Resize(size), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    images = Images(transforms.Compose(steps), setting.get("images"))
    workers, pinned = setting.get("workers", 16), device.type == "cuda"
    made = DataLoader(images, setting["micro_batch"], shuffle=True, num_workers=workers, pin_memory=pinned)
    net, criterion = model(setting), nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    for batch in fed(made, setting):
        image, target = (one.to(device) for one in batch)
        with autocast(setting):
            output = net(image)
            loss = criterion(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        _, best = output.topk(5)
        hits = best == target[:, None]
        _ = hits[:, 0].sum().item(), hits.sum().item(), loss.item()
        if timed.step_ended():
            return


def matrix_products(setting: dict[str, Any], timed: Timed) -> None:
    """No loop: a step is a product of square matrices, what the threads can do at most."""
    left, right = (torch.randn(setting["matrix_side"], setting["matrix_side"]) for _ in range(2))
    product = left @ right
    while not timed.step_ended():
        torch.mm(left, right, out=product)


LOOPS: dict[str, Callable[[dict[str, Any], Timed], None]] = {
    "deepspeed": deepspeed_loop, "ddp": ddp_loop, "accelerate": accelerate_loop, "timm": timm_loop, "paper": paper_loop,
    "timm_compiled": partial(timm_loop, compiled=True), "torchvision": torchvision_loop, "matrix": matrix_products,
}  # fmt: skip


def model(setting: dict[str, Any]) -> nn.Module:
    """The timm model of every loop."""
    torch.manual_seed(0)
    built: nn.Module = timm.create_model(
        setting["model"], img_size=setting["img_size"], patch_size=setting["patch_size"], num_classes=10
    )
    return built.train().to(device_of(setting))


def device_of(setting: dict[str, Any]) -> torch.device:
    """What a loop runs on: without a word a CPU."""
    return torch.device(setting.get("device", "cpu"))


def autocast(setting: dict[str, Any]) -> AbstractContextManager[Any]:
    """bf16 where the setting asks for it."""
    return torch.autocast(device_of(setting).type, torch.bfloat16, enabled=setting.get("autocast", False))


def loader(setting: dict[str, Any], num_workers: int) -> DataLoader[Any]:
    """PIL resize, tensor, normalisation; a sampler for this rank's part."""
    size = (setting["img_size"],) * 2
    steps = [transforms.Resize(size), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    images = Images(transforms.Compose(steps))
    sampler: DistributedSampler[Any] = DistributedSampler(images, WORLD_SIZE, RANK)
    return DataLoader(images, setting["micro_batch"], sampler=sampler, num_workers=num_workers, drop_last=True)


def epochs(batches: Any) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from batches


def fed(batches: Any, setting: dict[str, Any]) -> Iterator[Any]:
    """Epoch after epoch; without `feeding` the first batch again and again, which stays on the device."""
    if setting.get("feeding", True):
        yield from epochs(batches)
    first = [one.to(device_of(setting)) for one in next(iter(batches))]
    while True:
        yield first


def main(name: str, path: Path) -> None:
    """Take the steps of one loop and leave their times."""
    setting = json.loads(path.read_text())
    torch.set_num_threads(setting["threads"])
    timed = Timed(setting["warmup"] + setting["steps"], device_of(setting))
    LOOPS[name](setting, timed)
    path.with_name(f"{name}.rank{RANK}.json").write_text(json.dumps(timed.steps_s(setting["warmup"])))
    os._exit(0)  # loader workers and process groups take seconds to unwind


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
