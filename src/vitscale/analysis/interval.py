"""What every result is made of: a frozen model, and a figure with its interval."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Frozen result."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class Interval(Frozen):
    """A median with its 95 % interval."""

    median: float
    """Median across launches."""
    low: float | None = None
    """Lower end; null where there are too few launches for an interval."""
    high: float | None = None
    """Upper end; null where there are too few launches for an interval."""
