"""Where a forward pass is on the roofline: each class of layer timed by hooks, in a few steps of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

from torch import nn

from vitscale.config.runspec import RunSpec
from vitscale.cost.layers import PLAIN_MLP, layer_costs
from vitscale.cost.models import shape
from vitscale.records.layers import LayerRecord
from vitscale.worker.clock import NoClock
from vitscale.worker.engines import Engine
from vitscale.worker.loop import Losses, run_steps
from vitscale.worker.pipeline import Batches
from vitscale.worker.timeline import Stamp, Timeline

STEPS = 3
"""The first is not counted."""
_LAYERS = {
    r"patch_embed\.proj": "patch_embed",
    r"blocks\.\d+\.norm[12]|norm": "norm",
    r"blocks\.\d+\.attn\.qkv": "qkv",
    r"blocks\.\d+\.attn\.proj": "proj",
    r"blocks\.\d+\.mlp\.fc1": "fc1",
    r"blocks\.\d+\.mlp\.fc2": "fc2",
    r"head": "head",
}
"""Names of a timm ViT's modules."""
Span = tuple[str, Stamp, Stamp]


def refusal(spec: RunSpec) -> str | None:
    """Why layers are not timed, where they are not."""
    if spec.sequence_parallel or spec.tensor_parallel:
        return "ranks share the layers"
    if spec.knobs is not None and spec.knobs.compile:
        return "compiled blocks have no layers"
    if spec.knobs is not None and spec.knobs.activation_checkpointing:
        return "layers are computed again in backward passes"
    plain = shape(spec.model.name, **spec.model.sizes).mlp == PLAIN_MLP
    return None if plain else "its MLP is gated"


def measure(
    model: nn.Module,
    engine: Engine,
    batches: Batches,
    spec: RunSpec,
    timeline: Timeline,
    peak_flop_per_s: float | None,
    beat: Callable[[], None],
) -> list[LayerRecord]:
    """Take steps in which every layer is timed. All ranks at once; `beat` is called after each step.

    Args:
        model: the timm ViT inside of `engine`.
        engine: it has taken steps.
        batches: for it.
        spec: the run's, of which `refusal` has nothing to say.
        timeline: of the device.
        peak_flop_per_s: of a matrix product on it.
        beat: tells that this rank is alive.
    """
    spans: list[Span] = []

    def after_step(step: int) -> None:
        if step == 0:
            spans.clear()
        beat()

    with _timed(model, timeline, spans):
        run_steps(range(STEPS), engine, batches, NoClock(), Losses(spec.grad_accum), spec.grad_accum, after_step)
    at = timeline.read([stamp for _, *both in spans for stamp in both])
    times: dict[str, list[float]] = {}
    for (layer, _, _), begin, end in zip(spans, at[::2], at[1::2], strict=True):
        times.setdefault(layer, []).append((end - begin) / 1e9)
    # Layers of a class are alike, so the median is free of those in which the host did something else.
    seconds = {layer: median(of_calls) * len(of_calls) / (STEPS - 1) for layer, of_calls in times.items()}
    return records(spec, seconds, peak_flop_per_s)


def records(spec: RunSpec, seconds: dict[str, float], peak_flop_per_s: float | None) -> list[LayerRecord]:
    """Lines of the classes that took time; `seconds` are those of a step by class."""
    images = spec.micro_batch * spec.grad_accum
    costs = layer_costs(shape(spec.model.name, **spec.model.sizes), images, spec.grad_accum, spec.precision)
    return [
        LayerRecord(
            layer=layer,
            seconds_per_step=seconds[layer],
            flop_per_step=cost.flop,
            bytes_per_step=cost.bytes,
            peak_share=cost.flop / seconds[layer] / peak_flop_per_s if cost.flop and peak_flop_per_s else None,
        )
        for layer, cost in costs.items()
        if seconds.get(layer, 0) > 0
    ]


@contextmanager
def _timed(model: nn.Module, timeline: Timeline, spans: list[Span]) -> Iterator[None]:
    """Note begin and end of each layer. An engine's own hooks, which gather weights and let them go, stay outside."""
    begins: dict[str, Stamp] = {}

    def begin(layer: str) -> Callable[..., None]:
        def hook(*_told: Any) -> None:
            begins[layer] = timeline.now()

        return hook

    def end(layer: str) -> Callable[..., None]:
        def hook(*_told: Any) -> None:
            spans.append((layer, begins[layer], timeline.now()))

        return hook

    handles: list[Any] = []
    for layer, module in layers_of(model):
        if layer == "proj":  # what follows qkv and comes before proj
            handles.append(module.register_forward_pre_hook(end("attention"), prepend=True))
        handles.append(module.register_forward_pre_hook(begin(layer)))
        handles.append(module.register_forward_hook(end(layer), prepend=True))
        if layer == "qkv":
            handles.append(module.register_forward_hook(begin("attention")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layers_of(model: nn.Module) -> Sequence[tuple[str, nn.Module]]:
    """Class and module of each layer that is timed."""
    return [
        (layer, module)
        for name, module in model.named_modules()
        for pattern, layer in _LAYERS.items()
        if re.fullmatch(pattern, name)
    ]
