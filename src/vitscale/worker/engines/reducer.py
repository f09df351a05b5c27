"""Gradients averaged in buckets while backward goes on, for an engine that would send them after it.

As torch's DistributedDataParallel does it, in whose sizes buckets are: the first one is small, since it starts the
sending. A hook of each weight counts, and nothing is known of how backward runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

FIRST_BUCKET_BYTES, BUCKET_BYTES = 1 << 20, 25 << 20


class Reducer:
    """Averages the gradients of a backward pass over ranks.

    Args:
        weights: of a model, in the order in which forward uses them; backward makes their gradients from the last on.
        group: the ranks that take other images for the same weights; None is all.
    """

    def __init__(self, weights: Iterable[nn.Parameter], group: dist.ProcessGroup | None) -> None:
        self._group, self._ranks = group, dist.get_world_size(group)
        self._buckets = list(_buckets([weight for weight in weights if weight.requires_grad]))
        self._missing: list[int] = []
        self._sent: list[tuple[dist.Work, Tensor, list[Tensor]]] = []
        self._hooks = [
            weight.register_post_accumulate_grad_hook(partial(self._arrived, number))  # type: ignore[no-untyped-call]
            for number, bucket in enumerate(self._buckets)
            for weight in bucket
        ]

    def arm(self) -> None:
        """Send what the next backward pass makes of the gradients; without this it adds to them only."""
        self._missing, self._sent = [len(bucket) for bucket in self._buckets], []

    def finish(self) -> None:
        """Wait until all gradients are the mean over ranks. All ranks at once.

        A weight that backward did not use has zeros, so that ranks send alike.
        """
        for weight in (one for bucket in self._buckets for one in bucket if one.grad is None):
            weight.grad = torch.zeros_like(weight)
        self._missing = [0] * len(self._buckets)
        self._send()
        for work, flat, gradients in self._sent:
            work.wait()
            flat.mul_(1 / self._ranks)
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            shaped = [part.view(one.shape) for part, one in zip(parts, gradients, strict=True)]
            torch._foreach_copy_(gradients, shaped)
        self._missing, self._sent = [], []

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._buckets = []

    def _arrived(self, bucket: int, _weight: Tensor) -> None:
        if self._missing:
            self._missing[bucket] -= 1
            self._send()

    def _send(self) -> None:
        """Start all buckets that are full, in order: a collective of one rank has to meet the same of the others."""
        while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
            weights = self._buckets[len(self._sent)]
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            work = dist.all_reduce(flat, group=self._group, async_op=True)
            assert work is not None
            self._sent.append((work, flat, gradients))


def _buckets(weights: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """From the last weight on, each bucket closed by the weight that fills it."""
    bucket: list[nn.Parameter] = []
    held, limit = 0, FIRST_BUCKET_BYTES
    for weight in reversed(weights):
        bucket.append(weight)
        held += weight.nbytes
        if held >= limit:
            yield bucket
            bucket, held, limit = [], 0, BUCKET_BYTES
    if bucket:
        yield bucket
