"""What has to be there before anything is started."""

from __future__ import annotations

from importlib.util import find_spec

from vitscale.errors import SetupError

_NEEDED = ("torch", "torchvision", "timm", "deepspeed", "safetensors")


def require_training_packages() -> None:
    """Look for what a rank imports, without importing it.

    Raises:
        SetupError: naming what is missing; the base install reads, plans and reports only.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise SetupError(
            f"training needs {', '.join(f'`{name}`' for name in missing)}, not installed here",
            "pip install 'vitscale[train]'",
        )
