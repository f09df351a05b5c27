"""The shape of every plain timm ViT, by name, from `models.toml` (generated from timm; a test compares the two)."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from vitscale.errors import Infeasible, UsageError

Pooling = Literal["token", "avg", "map"]
Mlp = Literal["mlp", "glu", "swiglu"]


@dataclass(frozen=True)
class ViTShape:
    """A Vision Transformer as far as its cost goes: sizes and which optional parts it has. Names follow timm.

    `mlp_width` is the width that enters the MLP's last projection: a gated MLP ("glu": one packed projection,
    "swiglu": two) computes twice that in its first.
    """

    name: str
    depth: int
    width: int
    heads: int
    mlp_width: int
    patch_size: int
    img_size: int
    num_classes: int
    class_token: bool = True
    reg_tokens: int = 0
    pos_embed_prefix: bool = True
    """The position embedding covers the prefix tokens too."""
    patch_bias: bool = True
    patch_norm: bool = False
    """A norm in the patch embedding."""
    qkv_bias: bool = True
    proj_bias: bool = True
    """Biases of the attention's output projection and of the MLP."""
    qk_norm: bool = False
    attn_norm: bool = False
    """A norm between the attention and its output projection."""
    mlp_norm: bool = False
    """A norm before the MLP's last projection."""
    layer_scale: bool = False
    pre_norm: bool = False
    """A norm between the embeddings and the first block."""
    final_norm: bool = True
    """A norm after the last block, before pooling."""
    fc_norm: bool = False
    """A norm after pooling, before the head."""
    norm_bias: bool = True
    """LayerNorm has a bias, RMSNorm has none."""
    mlp: Mlp = "mlp"
    global_pool: Pooling = "token"
    pool_mlp_width: int = 0
    """Width of the MLP in the attention pooling; 0 without one."""
    tensor_parallel: int = 1
    """Ranks that share heads and MLP of each block: figures made of the shape are then one rank's (`cost.tensor`)."""

    @property
    def patches(self) -> int:
        """Image patches, `(img_size / patch_size)²`."""
        return (self.img_size // self.patch_size) ** 2

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: class token and registers."""
        return int(self.class_token) + self.reg_tokens

    @property
    def tokens(self) -> int:
        """Tokens that go through the blocks."""
        return self.patches + self.prefix_tokens

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


def names() -> tuple[str, ...]:
    """Return the names of the models whose cost is known, sorted."""
    return tuple(_table())


def shape(
    name: str,
    img_size: int | None = None,
    patch_size: int | None = None,
    num_classes: int = 1000,
    depth: int | None = None,
    embed_dim: int | None = None,
    num_heads: int | None = None,
) -> ViTShape:
    """Return the shape of a timm ViT, at other sizes if asked, exactly as timm builds it.

    Raises:
        UsageError: the model is not in the table.
        Infeasible: patches do not tile the image, or heads do not divide the width.
    """
    row = _row(name)
    image = row["img_size"] if img_size is None else img_size
    patch = row["patch_size"] if patch_size is None else patch_size
    # Some timm models crop at their own size (384 by 14); timm then floors, and so does `patches`.
    if (image, patch) != (row["img_size"], row["patch_size"]):
        _check_tiling(image, patch)
    if num_classes < 1:
        raise UsageError(f"`num_classes = {num_classes}` leaves no head to train", "give at least 1 class")
    known = {field.name for field in fields(ViTShape)}
    values = {key: value for key, value in row.items() if key in known}
    width, heads = embed_dim or row["width"], num_heads or row["heads"]
    if width % heads:
        near = width // heads * heads or heads
        raise Infeasible(f"`embed_dim = {width}` is not a multiple of `num_heads = {heads}`", f"embed_dim={near}")
    # timm gives the MLP as a ratio of the width.
    sizes = {"width": width, "heads": heads, "mlp_width": row["mlp_width"] * width // row["width"]}
    sizes |= {"depth": depth or row["depth"], "img_size": image, "patch_size": patch, "num_classes": num_classes}
    return ViTShape(**{**values, **sizes, "name": name})


def _check_tiling(img_size: int, patch_size: int) -> None:
    if img_size < 1 or patch_size < 1:
        raise UsageError(f"`img_size = {img_size}` and `patch_size = {patch_size}` must both be at least 1")
    if img_size % patch_size == 0:
        return
    below, above = img_size // patch_size * patch_size, -(-img_size // patch_size) * patch_size
    fitting = [size for size in range(1, img_size + 1) if img_size % size == 0]
    nearest = min(fitting, key=lambda size: (abs(size - patch_size), size))
    sizes = " or ".join(str(size) for size in (below, above) if size > 0)
    raise Infeasible(
        f"`img_size = {img_size}` is not a multiple of `patch_size = {patch_size}`",
        f"use `img_size = {sizes}`, or `patch_size = {nearest}`",
    )


def _row(name: str) -> Mapping[str, Any]:
    table = _table()
    if name in table:
        return table[name]
    close = difflib.get_close_matches(name, table, n=3, cutoff=0.5)
    example = "vit_tiny_patch16_224"
    hint = f"did you mean {' or '.join(f'`{found}`' for found in close)}?" if close else f"for example `{example}`"
    raise UsageError(f"no plain timm ViT is called `{name}`", hint)


@cache
def _table() -> Mapping[str, Mapping[str, Any]]:
    text = files("vitscale.cost").joinpath("models.toml").read_text(encoding="utf-8")
    models: dict[str, dict[str, Any]] = tomllib.loads(text)["models"]
    return models
