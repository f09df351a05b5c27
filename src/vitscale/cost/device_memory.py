"""What a device has to hold beside the tensors that are kept, and whether it fits: a probability, not a promise.

need = context + slack · (model state + buckets + activations + workspace). Context and workspace are here, the others
in `memory` and `vit`. Slack is what the allocator adds by rounding and fragments and what the forms miss or count
twice: log-normal, fitted to brackets of batches that fitted and did not (`python -m benchmarks memory_brackets`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitscale.cost.models import ViTShape
from vitscale.cost.sequence import shares
from vitscale.cost.vit import PRECISION_BYTES, PRODUCT_BYTES

CONTEXT_BYTES = {"cuda": 300 * 10**6, "cpu": 900 * 10**6}
"""What a rank takes before its first tensor. cuda: context and kernels, loaded as they are used since CUDA 11.7, before
that over 1 GB (cited: pytorch#107667). cpu: the resident set of a rank with torch, timm and DeepSpeed at work
(ViT-S/16, 1 and 2 ranks at ZeRO-0: what is left of the peak as the tensors go to 0)."""

SLACK = {"cuda": 1.068, "cpu": 1.3}
"""Median of the slack. cuda: the 109 brackets of torch 1.11 and 1.12 leave 1.065 to 1.071 (torch 1.10: about 1.2). cpu:
peaks of 8 runs, ZeRO-0 to 3 on 1 and 2 ranks, 1.05 to 1.84."""

SLACK_SIGMA = {"cuda": 0.06, "cpu": 0.2}
"""Standard deviation of its logarithm; cuda: over all three versions of torch."""

_Z80, _Z95 = 1.2816, 1.96


@dataclass(frozen=True)
class DeviceNeed:
    """Memory that one rank will have taken at its peak, as a distribution."""

    device: str
    """"cuda" or "cpu"."""
    allocated_bytes: int
    """All tensors at the peak of a step, by the closed forms."""
    context_bytes: int

    @property
    def median_bytes(self) -> int:
        """Half of all runs need more."""
        return self._quantile(0.0)

    @property
    def low80_bytes(self) -> int:
        """1 run of 10 needs less."""
        return self._quantile(-_Z80)

    @property
    def high80_bytes(self) -> int:
        """1 run of 10 needs more."""
        return self._quantile(_Z80)

    @property
    def low95_bytes(self) -> int:
        """1 run of 40 needs less."""
        return self._quantile(-_Z95)

    @property
    def high95_bytes(self) -> int:
        """1 run of 40 needs more."""
        return self._quantile(_Z95)

    def fit_probability(self, limit_bytes: int) -> float:
        """Return the probability that it is at most `limit_bytes`."""
        room_bytes = limit_bytes - self.context_bytes
        if room_bytes <= 0 or self.allocated_bytes <= 0:
            return float(room_bytes > 0)
        z = math.log(room_bytes / (SLACK[self.device] * self.allocated_bytes)) / SLACK_SIGMA[self.device]
        return 0.5 * math.erfc(-z / math.sqrt(2))

    def _quantile(self, z: float) -> int:
        slack = SLACK[self.device] * math.exp(z * SLACK_SIGMA[self.device])
        return self.context_bytes + round(slack * self.allocated_bytes)


def device_need(device: str, allocated_bytes: int) -> DeviceNeed:
    """Return the need of a rank on a device of today, from all that its tensors take at the peak of a step."""
    return DeviceNeed(device, allocated_bytes, CONTEXT_BYTES[device])


def workspace_bytes(
    shape: ViTShape, micro_batch: int, precision: str, *, fused_attention: bool = True, ranks: int = 1
) -> int:
    """Return what operators need for themselves when most is kept, at the beginning of backward, for one micro-batch.

    Per image, the larger of two moments in the last block; s bytes of the residual stream and p of a product:

    1. Backward of GELU: gradients of the stream sTD and of its branch pTD, of GELU's output and input 2pTM. What the
       last projection kept, pTM, has gone.
    2. Backward of the softmax, where attention is not fused: gradient of the stream sTD and of the T²H weights, p, and
       under autocast again in fp32, with that of the scores in fp32. What the MLP and its norm kept has gone.

    Args:
        shape, micro_batch, precision, fused_attention: as in `vit.activation_bytes`.
        ranks: that share the tokens of an image, and the heads of its attention.
    """
    own, own_heads = (shares(whole, ranks)[0] for whole in (shape.tokens, shape.heads))
    stream, product = PRECISION_BYTES[precision], PRODUCT_BYTES[precision]
    row, hidden = own * shape.width, own * shape.mlp_width // shape.tensor_parallel
    gated = 1 if shape.mlp == "mlp" else 2
    in_mlp = (stream + product) * row + gated * product * hidden
    if fused_attention:
        return micro_batch * in_mlp
    weights = own_heads // shape.tensor_parallel * shape.tokens**2
    in_scores = stream * row + weights * (2 * product if stream == product else product + 2 * stream)
    in_scores -= 2 * gated * product * hidden + (stream + product) * row
    return micro_batch * max(in_mlp, in_scores)
