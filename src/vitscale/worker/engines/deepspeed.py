"""DeepSpeed: ZeRO stages 0 to 3 in fp32, bf16 and fp16, with a torch optimizer of ours."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional

from vitscale.config.runspec import RunSpec
from vitscale.errors import DivergedError
from vitscale.worker import tensor
from vitscale.worker.engines import Held, state
from vitscale.worker.engines.reducer import Reducer
from vitscale.worker.engines.update import DTYPES

_TAG = "engine"
_SMALLEST_SCALE = "loss scale already at minimum"


def prepare(device: str) -> None:
    """Import DeepSpeed for the kind of device and give it the process group that exists already."""
    os.environ["DS_ACCELERATOR"] = device
    # DeepSpeed patches torch's initialisers: timm has to be imported before it.
    import timm  # noqa: F401, I001
    import deepspeed

    # On CPU `init_distributed` compiles a shared-memory all-reduce (25 s of C++) that only inference uses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)


def config(spec: RunSpec) -> dict[str, Any]:
    """DeepSpeed's JSON for a run: the user's own keys, and what the study fixes written out, not left to defaults."""
    user = spec.deepspeed
    return {
        **user,
        # DeepSpeed counts every rank as data parallel, those that share an image's tokens too, but not its weights.
        "train_batch_size": spec.micro_batch * spec.grad_accum * spec.world_size // (spec.tensor_parallel or 1),
        "train_micro_batch_size_per_gpu": spec.micro_batch,
        "gradient_accumulation_steps": spec.grad_accum,
        # Left out, DeepSpeed clips at 1.0.
        "gradient_clipping": spec.optimizer.clip,
        "zero_optimization": {**_section(user, "zero_optimization"), "stage": spec.zero_stage},
        "bf16": {**_section(user, "bf16"), "enabled": spec.precision == "bf16"},
        "fp16": {**_section(user, "fp16"), "enabled": spec.precision == "fp16"},
        "zero_allow_untested_optimizer": True,
        # An optimizer of torch updates offloaded state as well as DeepSpeed's own.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": user.get("steps_per_print", 1_000_000_000),
    }


def _section(user: dict[str, Any], name: str) -> dict[str, Any]:
    value = user.get(name, {})
    return value if isinstance(value, dict) else {}


class _Groups:
    """The ranks as DeepSpeed asks for them where weights are shared (its `mpu`, in Megatron-LM's words)."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self._mesh = mesh

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self._mesh.get_group("tensor")

    def get_model_parallel_rank(self) -> int:
        return self._mesh.get_local_rank("tensor")

    def get_model_parallel_world_size(self) -> int:
        return self._mesh.size(1)

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._mesh.get_group("data")

    def get_data_parallel_rank(self) -> int:
        return self._mesh.get_local_rank("data")

    def get_data_parallel_world_size(self) -> int:
        return self._mesh.size(0)


class DeepSpeedEngine:
    """A `deepspeed.DeepSpeedEngine` behind our protocol."""

    def __init__(self, spec: RunSpec, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.dtype = DTYPES[spec.precision]
        self._elements = sum(weight.numel() for weight in model.parameters())
        self._engine: Any
        self._splits = tensor.splits(model)
        parameters: dict[str, Any] = dict(model.named_parameters())
        for name in self._splits:
            parameters[name].tensor_model_parallel = True  # else DeepSpeed's norm counts only the first rank's
        self._linear = functional.linear
        self._engine = self._initialize(spec, model, optimizer)
        self._reducer = self._reduced_beside(spec) if spec.knobs and spec.knobs.overlap_reduce else None

    def _initialize(self, spec: RunSpec, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        """A `deepspeed.DeepSpeedEngine`."""
        import deepspeed

        groups = _Groups(tensor.mesh(spec.device, spec.tensor_parallel)) if spec.tensor_parallel else None
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config(spec), mpu=groups)
        return engine

    def _reduced_beside(self, spec: RunSpec) -> Reducer | None:
        """What averages gradients in place of DeepSpeed's stage 0; one rank alone has nobody to send to."""
        group = tensor.data_group(spec.device, spec.tensor_parallel)
        if dist.get_world_size(group) == 1:
            return None
        self._engine.enable_backward_allreduce = False
        return Reducer(self._engine.module.parameters(), group)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, 3, height, width]."""
        logits: Tensor = self._engine(images)
        return logits

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """DeepSpeed scales by the accumulation; `step` before the boundary only advances its micro-step counter."""
        if last and self._reducer:
            self._reducer.arm()
        self._engine.backward(loss)
        if last and self._reducer:
            self._reducer.finish()
        if not last:
            self._engine.step()

    def step(self) -> None:
        """Clip, update, clear the gradients."""
        with self._overflow_told():
            self._engine.step()

    @contextlib.contextmanager
    def _overflow_told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if _SMALLEST_SCALE not in str(error):
                raise
            raise DivergedError("gradients overflow fp16 at the smallest loss scale", "precision=bf16") from error

    @property
    def skipped(self) -> int:
        """Updates that DeepSpeed's loss scaling left out."""
        return int(self._engine.skipped_steps)

    def train(self, *, mode: bool) -> None:
        """Training mode or evaluation mode."""
        self._engine.train(mode)

    def save(self, folder: Path) -> None:
        """Write this rank's part of weights, optimizer and counters."""
        self._engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)
        # DeepSpeed leaves programs beside the data; a checkpoint holds data only.
        for program in folder.glob("*.py"):
            program.unlink(missing_ok=True)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote. DeepSpeed unpickles: the parent has checked owner and sha256 of every file."""
        found, _ = self._engine.load_checkpoint(str(folder), tag=_TAG)
        if found is None:
            # DeepSpeed only warns here, and would train from scratch.
            raise FileNotFoundError(f"DeepSpeed finds no checkpoint in `{folder.name}`")

    def weights(self) -> dict[str, Tensor] | None:
        """All weights, fp32, on rank 0."""
        import deepspeed

        gathered: dict[str, Tensor] = {}
        for name, parameter in self._engine.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_tensor")):
                whole = tensor.whole(parameter, self._splits.get(name))
                if self._engine.global_rank == 0:
                    gathered[name] = whole.detach().to("cpu", torch.float32, copy=True).contiguous()
        return gathered if self._engine.global_rank == 0 else None

    def held(self) -> Held:
        """What DeepSpeed's optimizer of the stage holds. From stage 2 on whole gradients are on their way only."""
        weights, optimizer = list(self._engine.module.parameters()), self._engine.optimizer
        stage, kind = self._engine.zero_optimization_stage(), self._engine.device.type
        shards = [weight.ds_tensor for weight in weights if stage == 3]
        persistent = [weight for weight in weights if getattr(weight, "ds_persist", False)]
        whole = [grad for weight in weights for grad in (weight.grad, getattr(weight, "grad_accum", None))]
        partitions = [grad for group in getattr(optimizer, "averaged_gradients", {}).values() for grad in group or ()]
        present = [grad for grad in whole if grad is not None]
        return Held(
            parameters=_on(kind, shards) + persistent if stage == 3 else weights,
            gradients=_on(kind, partitions if stage >= 2 else [*present, *partitions]),
            optimizer=_on(kind, state.tensors(self._engine.basic_optimizer)),
            gathered=weights if stage == 3 else (),
            buckets=[*self._buckets(), *(present if stage >= 2 else ())],
        )

    def _buckets(self) -> list[Tensor]:
        found: list[Tensor | None] = []
        for bucket in getattr(self._engine.optimizer, "ipg_buckets", {}).values():
            found += bucket.buffer if isinstance(bucket.buffer, list) else [bucket.buffer]
        # A page of a CPU's bucket that nobody wrote takes no memory.
        return [one if one.is_cuda else one[: self._elements] for one in found if one is not None]

    def close(self) -> None:
        """Free optimizer state and shards; `destroy` alone leaves ZeRO-3's partitions alive."""
        import deepspeed

        engine, self._engine = self._engine, None
        if self._reducer:
            self._reducer.close()
        parameters = list(engine.module.parameters())
        optimizer, basic = engine.optimizer, engine.basic_optimizer
        engine.destroy()  # removes its hooks by what is emptied below
        functional.linear = self._linear  # ZeRO-3 puts one of its own in torch, for every engine that comes after
        deepspeed.utils.groups.mpu = None  # else the next engine of the process takes this one's groups
        for parameter in parameters:
            if hasattr(parameter, "ds_tensor"):
                parameter.ds_tensor.data = parameter.ds_tensor.new_empty(0)
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
            parameter.grad = None
        if basic is not None:
            basic.state.clear()
        if optimizer is not None:
            vars(optimizer).clear()
        gc.collect()


def _on(kind: str, tensors: list[Tensor]) -> list[Tensor]:
    """Without what is offloaded."""
    return [one for one in tensors if one.device.type == kind]


build = DeepSpeedEngine
