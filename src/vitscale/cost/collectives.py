"""What each engine sends in one optimizer step, and how long a ring takes for it.

`bytes` of a collective are what nccl-tests calls its size: the whole gradient of an all-reduce, the gathered result
of an all-gather, the input of a reduce-scatter. The bus factor turns them into what crosses a rank's link.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from vitscale.cost.memory import BUCKET_ELEMENTS, PERSISTENCE_ELEMENTS, persistent_elements
from vitscale.cost.vit import PRECISION_BYTES

Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast"]

REUSE_ELEMENTS = 1_000_000_000
"""DeepSpeed's default `stage3_max_reuse_distance` (cited: DeepSpeed 0.19.8, zero/config.py)."""
PREFETCH_ELEMENTS = 50_000_000
"""DeepSpeed's default `stage3_prefetch_bucket_size` (cited, as above)."""
_DDP_BUCKET_BYTES = 25 * 1024**2  # cited: torch DistributedDataParallel, bucket_cap_mb
_DDP_FIRST_BUCKET_BYTES = 1024**2  # cited: torch.distributed._DEFAULT_FIRST_BUCKET_BYTES


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind in one optimizer step, as one rank sees them."""

    operation: Operation
    calls: int
    bytes: int
    """Payload of all calls together, before the bus factor."""


class LinkFigures(Protocol):
    """One class of connection; `Link` here and the catalog's `LinkSpec` are such."""

    @property
    def bytes_per_s(self) -> float:
        """Bandwidth in one direction."""

    @property
    def latency_s(self) -> float | None:
        """Delay of one hop, None if not known."""


class LinkPair(Protocol):
    """What connects ranks inside a node and between nodes; None where nothing is known."""

    @property
    def intra_node(self) -> LinkFigures | None:
        """One rank's link to its neighbours."""

    @property
    def inter_node(self) -> LinkFigures | None:
        """The network of one node, all its cards together."""


@dataclass(frozen=True)
class Link:
    """A measured or fitted connection."""

    bytes_per_s: float
    latency_s: float | None


@dataclass(frozen=True)
class Links:
    """Measured or fitted connections: one rank's inside a node, one node's to the others."""

    intra_node: LinkFigures | None
    inter_node: LinkFigures | None


def step_collectives(
    tensors: Sequence[int],
    *,
    engine: str,
    zero_stage: int | None,
    precision: str,
    data_parallel: int,
    grad_accum: int,
    reduce_bucket_elements: int = BUCKET_ELEMENTS,
    persistence_elements: int = PERSISTENCE_ELEMENTS,
    reuse_elements: int = REUSE_ELEMENTS,
    ddp_bucket_bytes: int | None = None,
    ddp_hook: str | None = None,
) -> tuple[Collective, ...]:
    """Return the collectives of one optimizer step, norms and overflow flags of a few bytes left out.

    With P parameters of b bytes and A micro-steps (measured on DeepSpeed 0.19.8 by counting the backend's calls, 2
    ranks):

    1. DDP and ZeRO-0: one all-reduce of bP per step, at the last micro-step; with DDP's hooks `fp16` and `bf16` of 2P.
    2. ZeRO-1: the same all-reduce and an all-gather of bP after the optimizer: 1.5 times DDP's link bytes, since an
       all-reduce costs as much as two all-gathers. `reduce_scatter` in the config does not change it: the multi-rank
       bucket is all-reduced (`use_multi_rank_bucket_allreduce`, the default).
    3. ZeRO-2: as ZeRO-1, but all-reduces every micro-step: A·bP.
    4. ZeRO-3: every micro-step an all-gather of the partitioned parameters, b(P - p + r), and a reduce-scatter of bP;
       after the optimizer one all-gather per persistent tensor, bp in all. r is what is gathered twice, see
       `regathered_elements`.

    Calls are counted by buckets: exact for one bucket, else within the packing of tensors into buckets.

    Args:
        tensors: elements of each parameter tensor, `vit.parameter_tensors(shape)`.
        engine: "deepspeed" or "ddp".
        zero_stage: 0 to 3, or None where the engine has none.
        precision: "fp32", "bf16", "fp16" or "bf16_autocast"; gradients travel in the weights' type.
        data_parallel: ranks that share the gradients; 1 gives ().
        grad_accum: micro-steps per optimizer step, A.
        reduce_bucket_elements, persistence_elements, reuse_elements: DeepSpeed's settings where they are not the
            defaults.
        ddp_bucket_bytes, ddp_hook: DDP's settings where they are not the defaults.
    """
    if data_parallel == 1:
        return ()
    weight_bytes = PRECISION_BYTES[precision]
    model_bytes = weight_bytes * sum(tensors)
    if engine != "deepspeed":
        bucket_bytes = ddp_bucket_bytes or _DDP_BUCKET_BYTES
        first_bytes = ddp_bucket_bytes or _DDP_FIRST_BUCKET_BYTES
        calls = 1 + max(0, -(-(model_bytes - first_bytes) // bucket_bytes))
        sent_bytes = 2 * sum(tensors) if ddp_hook else model_bytes
        return (Collective("all_reduce", calls, sent_bytes),)
    stage = zero_stage or 0
    buckets = -(-sum(tensors) // reduce_bucket_elements)
    if stage == 0:
        return (Collective("all_reduce", -(-sum(tensors) // BUCKET_ELEMENTS), model_bytes),)
    if stage == 3:
        return _zero3(tensors, weight_bytes, grad_accum, buckets, persistence_elements, reuse_elements)
    reductions = grad_accum if stage == 2 else 1
    return (
        Collective("all_reduce", reductions * buckets, reductions * model_bytes),
        Collective("all_gather", 1, model_bytes),
    )


def _zero3(
    tensors: Sequence[int], weight_bytes: int, grad_accum: int, buckets: int, threshold: int, reuse_elements: int
) -> tuple[Collective, ...]:
    persistent = persistent_elements(tensors, threshold)
    partitioned = sum(tensors) - persistent
    gathered = partitioned + regathered_elements(tensors, threshold, reuse_elements) if partitioned else 0
    # The prefetcher fills its bucket from the first module on; only that one's own weights, if partitioned, go alone.
    fetches = -(-gathered // PREFETCH_ELEMENTS) + int(tensors[0] >= threshold)
    small = sum(1 for size in tensors if size < threshold)
    return (
        Collective("all_gather", grad_accum * fetches + small, weight_bytes * (grad_accum * gathered + persistent)),
        Collective("reduce_scatter", grad_accum * buckets, grad_accum * weight_bytes * sum(tensors)),
    )


def regathered_elements(
    tensors: Sequence[int], threshold: int = PERSISTENCE_ELEMENTS, reuse_elements: int = REUSE_ELEMENTS
) -> int:
    """Return how many elements ZeRO-3 gathers a second time for backward, within one micro-step.

    1. A parameter at position f of P, in order of use, is needed again after the rest of forward and the same part of
       backward: 2(P - f) elements later.
    2. DeepSpeed releases it after forward only if that is beyond `stage3_max_reuse_distance`, R (and beyond what the
       prefetcher has already queued): f < P - R/2.
    3. So max(0, P - R/2) elements, less their persistent share, travel twice. With the default R = 1e9 no model below
       5e8 parameters gathers twice: measured 1.00 P by default, 2.00 P at R = 0, 1.44 P at R = P (1.5 by this form;
       whole modules are released at a time).
    """
    total = sum(tensors)
    twice = max(0.0, total - reuse_elements / 2)
    return round(twice * (total - persistent_elements(tensors, threshold)) / total)


def bus_factor(operation: str, ranks: int) -> float:
    """Return the bytes that cross one rank's link for each byte of a collective's size, in its bandwidth-optimal form.

    With N ranks: all-reduce 2(N-1)/N, all-gather, reduce-scatter and all-to-all (N-1)/N, broadcast and reduce 1
    (cited: NVIDIA nccl-tests, doc/PERFORMANCE.md). One rank sends nothing: 0.
    """
    if ranks <= 1:
        return 0.0
    factors = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "all_to_all": 1.0}
    return 1.0 if operation in ("broadcast", "reduce") else factors[operation] * (ranks - 1) / ranks


def _hops(operation: str, ranks: int) -> int:
    """Return how many messages follow one another in the ring: 2(N-1) for all-reduce, else N-1."""
    return (2 if operation == "all_reduce" else 1) * (ranks - 1)


def collective_seconds(
    operation: str,
    bytes: int,  # noqa: A002
    calls: int,
    *,
    ranks: int,
    ranks_per_node: int,
    links: LinkPair,
) -> float | None:
    """Return the seconds of `calls` collectives that carry `bytes` together, by a ring; None if a link is not known.

    1. Alpha-beta (Hockney): a message of n bytes takes alpha + n/beta.
    2. A ring of N ranks sends the size times the bus factor through every link, in 2(N-1) (all-reduce) or N-1 rounds of
       equal pieces, and each round is as slow as its slowest link: calls · rounds · alpha + bytes · factor / beta.
    3. Inside one node alpha and beta are the node's. Across nodes G ranks of a node run G rings, each laid node by
       node with 1/G of the data, so the size times the bus factor crosses each node's border once, whatever G: the
       network counts with the whole node's bandwidth, and beta is the smaller of the two. A round takes the larger
       alpha. Checked by a test: 4 GiB over 2 x 8 A100 with 8 x 200 Gbit/s took 42.7 ms (NVIDIA DeepOps), 40.3 ms here.
    4. Assumed: NCCL's trees lower the latency term at many nodes, NVLink SHARP halves what an all-reduce sends inside a
       node; neither is modelled, fitted links (`calibration.json`) absorb both.

    Args:
        operation: a `Collective.operation`.
        bytes: payload of all calls.
        calls: collectives, one after another.
        ranks: ranks in the group, N.
        ranks_per_node: how many of them share a node.
        links: what connects them.
    """
    if ranks <= 1 or calls == 0:
        return 0.0
    used = [links.intra_node] if min(ranks, ranks_per_node) > 1 else []
    if ranks > ranks_per_node:
        used.append(links.inter_node)
    known = [link for link in used if link is not None]
    latencies_s = [link.latency_s for link in known if link.latency_s is not None]
    if len(latencies_s) < len(used):
        return None
    beta_bytes_per_s = min(link.bytes_per_s for link in known)
    transfer_s = bytes * bus_factor(operation, ranks) / beta_bytes_per_s
    return calls * _hops(operation, ranks) * max(latencies_s) + transfer_s
