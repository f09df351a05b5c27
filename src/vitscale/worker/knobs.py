"""Knobs of the study's `[engine]` that concern the model, whatever engine wraps it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitscale.config.knobs import EngineSection

_KERNELS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


def apply(knobs: EngineSection, model: nn.Module) -> None:
    """Change how a timm ViT, not yet wrapped by an engine, computes; its parameters stay the same objects."""
    blocks: Any = model.get_submodule("blocks")
    if knobs.channels_last:
        model.to(memory_format=torch.channels_last)
    if knobs.activation_checkpointing:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    if knobs.compile:
        torch.compiler.reset()  # else a shape other than those of a run before is compiled for any shape
        mode = {"mode": knobs.compile_mode} if knobs.compile_mode else {}
        for block in blocks:
            block.compile(**mode)
        if mode:  # what a CUDA graph returned may be written over from here on
            begin: Any = torch.compiler.cudagraph_mark_step_begin
            model.register_forward_pre_hook(lambda *_: begin())


def attention(knobs: EngineSection) -> AbstractContextManager[Any]:
    """While it lasts, attention uses the one kernel that is asked for, or fails."""
    return sdpa_kernel(_KERNELS[knobs.sdpa]) if knobs.sdpa else nullcontext()
