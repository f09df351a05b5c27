"""Studies on two hosts that are laid out on this machine."""

import os

from ranks import start

HOSTS = ("world_size=2", "nodes=2", "model.name=vit_tiny_patch16_224", "depth=4", "embed_dim=48", "global_batch=8")


def lab(store, out, *words, **more):
    """`vitscale run quick --launcher lab`, small, in a process of its own."""
    words = {word.partition("=")[0]: word for word in (*HOSTS, *words)}.values()
    return start(store, out, *words, flags=("--launcher", "lab"), preexec_fn=_ahead, **more)


def _ahead():
    """Before whatever else this machine does: what is tested is the link, and its kernel work takes processor time."""
    os.nice(-15)
