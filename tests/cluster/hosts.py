"""Studies on two hosts that are laid out on this machine."""

import os
import subprocess

from ranks import start

HOSTS = ("world_size=2", "nodes=2", "model.name=vit_tiny_patch16_224", "depth=4", "embed_dim=48", "global_batch=8")


def lab(store, out, *words, **more):
    """`vitscale run quick --launcher lab`, small, in a process of its own."""
    words = {word.partition("=")[0]: word for word in (*HOSTS, *words)}.values()
    return start(store, out, *words, flags=("--launcher", "lab"), preexec_fn=_ahead, **more)


def _ahead():
    """Before whatever else this machine does: what is tested is the link, and its kernel work takes processor time."""
    os.nice(-15)


def cut_off(process_id, host):
    """Take down the link of a host that a process has laid out."""
    switch = f"vitscale-{process_id}-switch"
    subprocess.run(["ip", "-n", switch, "link", "set", f"port{host}", "down"], check=True)


def unshared(results):
    """Words before a command whose results folder is its own: other hosts see an empty one there."""
    results.mkdir()
    return ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(results))
