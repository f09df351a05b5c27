"""Reading the files that people write: studies, DeepSpeed's, hostfiles."""

from __future__ import annotations

from pathlib import Path

LARGEST_BYTES = 1 << 18
"""A file that a person wrote is smaller. Somebody else's study may name anything, `/dev/zero` too."""


def read_text(path: Path) -> str:
    """Text of a file of at most `LARGEST_BYTES`; every line ends with a line feed.

    Raises:
        ValueError: why it cannot be read, in a few words.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise ValueError(error.strerror) from None
    except ValueError:
        raise ValueError("it is no path") from None
    if len(data) > LARGEST_BYTES:
        raise ValueError(f"it is larger than {LARGEST_BYTES:,} bytes")
    try:
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
