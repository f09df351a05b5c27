"""Bytes a rank holds, by what they are for: counted from the tensors of one more step, which is not timed.

An engine says what it holds; what collectives are given and what autograd saves is seen from outside. Memory that two
tensors share counts once: as gradients where a bucket holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitscale.config.runspec import RunSpec
from vitscale.records.schema import Memory
from vitscale.worker.engines import Engine


def measure(engine: Engine, spec: RunSpec, device: torch.device) -> Memory:
    """Take one more optimizer step, and count before its update. All ranks at once.

    The images are zeros: bytes do not depend on what is in them. The update is made so that an engine is closed as it
    is after any step; its weights are of no use afterwards.

    Args:
        engine: its optimizer's state is there, as it has taken a step or gone on from a checkpoint.
        spec: the run's, for the sizes.
        device: the rank's.
    """
    size = spec.model.img_size
    images = torch.zeros(spec.micro_batch, 3, size, size, dtype=engine.dtype, device=device)
    labels = torch.zeros(spec.micro_batch, dtype=torch.long, device=device)
    activations_bytes = 0
    with _Watch(engine) as watch:
        for micro_step in range(spec.grad_accum):
            saved: dict[int, int] = {}
            with torch.autograd.graph.saved_tensors_hooks(_recorder(engine, saved), lambda tensor: tensor):
                loss = functional.cross_entropy(engine(images).float(), labels)
            activations_bytes = max(activations_bytes, sum(saved.values()))
            engine.backward(loss, last=micro_step == spec.grad_accum - 1)
        watch.look()
    engine.step()
    return Memory(activations_bytes=activations_bytes, **watch.most_bytes)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at what a rank holds whenever a collective begins: buckets are full then, and soon gone."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._engine = engine
        self._sent: dict[Any, tuple[int, int]] = {}
        self.most_bytes: dict[str, int] = {}
        """By field of `Memory`, activations aside: the most at any look."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # An all-to-all carries activations, those of tokens that ranks share.
        if func.namespace == "c10d" and "alltoall" not in func.name():
            self.look(one for one in tree_leaves(args) if isinstance(one, Tensor))
        return func(*args, **(kwargs or {}))

    def look(self, sent: Iterable[Tensor] = ()) -> None:
        """Count what is held now. `sent`: tensors of a collective, which count until their memory is freed."""
        reference: Any = StorageWeakRef
        self._sent |= {reference(one.untyped_storage()): _reach(one) for one in sent}
        self._sent = {storage: reach for storage, reach in self._sent.items() if not storage.expired()}
        held = self._engine.held()
        parameters, optimizer = _storages(held.parameters), _storages(held.optimizer)
        gradients = _without(_reaches(held.gradients), parameters)
        buckets = _without(_reaches((*held.buckets, *held.gathered)), parameters)
        buckets = {address: size - gradients.get(address, 0) for address, size in buckets.items()}
        sent_now = _without(dict(sorted(self._sent.values())), parameters | gradients | optimizer | buckets)
        found = {
            "parameters_bytes": sum(parameters.values()),
            "gradients_bytes": sum(gradients.values()),
            "optimizer_bytes": sum(_without(optimizer, parameters | gradients).values()),
            "buckets_bytes": sum(buckets.values()) + sum(sent_now.values()),
        }
        self.most_bytes = {field: max(size, self.most_bytes.get(field, 0)) for field, size in found.items()}


def _recorder(engine: Engine, saved: dict[int, int]) -> Callable[[Tensor], Tensor]:
    """A hook that notes address and bytes of what autograd saves, weights left out."""

    def pack(tensor: Tensor) -> Tensor:
        held = engine.held()
        saved.update(_without(_storages([tensor]), _storages((*held.parameters, *held.gathered))))
        return tensor

    return pack


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Address -> bytes of the storages of tensors, each once and whole: a view keeps all of it."""
    found = (_plain(tensor).untyped_storage() for tensor in tensors)
    return {one.data_ptr(): one.nbytes() for one in found if one.nbytes()}


def _reaches(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Address of each storage -> bytes in it up to the end of the last of its tensors."""
    return dict(sorted(_reach(tensor) for tensor in tensors if tensor.numel()))


def _plain(tensor: Tensor) -> Tensor:
    """What a wrapper (DTensor, a collective's result on its way) holds; it has no memory of its own."""
    while hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        tensor = getattr(tensor, names[0])
    return tensor


def _reach(tensor: Tensor) -> tuple[int, int]:
    tensor = _plain(tensor)
    end = (
        int(tensor.storage_offset()) + 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    )
    return tensor.untyped_storage().data_ptr(), end * tensor.element_size()


def _without(found: dict[int, int], others: dict[int, int]) -> dict[int, int]:
    return {address: size for address, size in found.items() if address not in others}
