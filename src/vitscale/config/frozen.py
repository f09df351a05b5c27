"""What tables of a study and specs of a run are made of: frozen, strict about keys, printable in one line."""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

# Control and format characters, lone surrogates, line separators: they would break a line or steer a terminal.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    """The text itself, if it is one line without control characters."""
    if any(unicodedata.category(character) in _UNPRINTABLE for character in text):
        raise ValueError("one line of printable text is wanted, without control characters")
    return text


Text = Annotated[str, AfterValidator(printable)]


class Frozen(BaseModel):
    """Frozen configuration data that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


class Section(Frozen):
    """A table as a user writes it: values of another kind are refused, `"2"` is no number."""

    model_config = ConfigDict(strict=True)
