"""How far a tracker has come in each launch: `trackers/<name>.json`, replaced whole after every batch of lines."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vitscale.errors import ResultsError
from vitscale.records.launches import read_document
from vitscale.records.writer import make_folder, write_json

_VERSION = 1


class Place(BaseModel):
    """Where reading a file of lines goes on."""

    model_config = ConfigDict(extra="ignore")

    offset: int = 0
    """Bytes of whole lines read."""
    last_step: int = -1
    """Highest step read; a line of this or an earlier one has been logged."""


class Progress(BaseModel):
    """One tracker in one launch."""

    model_config = ConfigDict(extra="ignore")

    key: str
    """Identity of the launch for the tracker."""
    closed: bool = False
    """The tracker knows how the launch ended."""
    elapsed_s: float = 0.0
    """Sum of the step times read."""
    steps: Place = Place()
    evaluations: Place = Place()


@dataclass
class Positions:
    """The file of one tracker."""

    root: Path
    """Results folder."""
    name: str
    """Tracker."""
    launches: dict[str, Progress] = field(default_factory=dict)
    """By launch folder, relative to the results folder."""

    @classmethod
    def read(cls, root: Path, name: str) -> Positions:
        """Read the file; empty where there is none.

        Raises:
            ResultsError: it is damaged or of a newer format.
        """
        path = _path(root, name)
        document: dict[str, Any] = read_document(root, path, _VERSION) or {}
        try:
            found = {key: Progress.model_validate(one) for key, one in document.get("launches", {}).items()}
        except (AttributeError, ValidationError):
            raise ResultsError(
                f"`{path.relative_to(root)}` is damaged",
                f"remove it and the folder `trackers/{name}`: launches are logged there again from their records",
            ) from None
        return cls(root, name, found)

    def of(self, launch: str) -> Progress:
        """A launch's progress, from the start where it is new."""
        # The same run_id on two machines is the same question, not the same launch: hence a random key.
        return self.launches.get(launch) or Progress(key=secrets.token_hex(8))

    def save(self, launch: str, progress: Progress) -> None:
        """Replace the file.

        Raises:
            ResultsError: it cannot be written.
        """
        self.launches[launch] = progress
        path = _path(self.root, self.name)
        make_folder(path.parent)
        launches = {key: one.model_dump(mode="json") for key, one in self.launches.items()}
        write_json(path, {"schema_version": _VERSION, "launches": launches})


def _path(root: Path, name: str) -> Path:
    return root / "trackers" / f"{name}.json"
