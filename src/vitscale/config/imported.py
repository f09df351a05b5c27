"""ImportedSpec: what another tool's log or table tells of one run. It takes RunSpec's place in an imported launch.

A source tells some things and not others: every field but the series and the world size may be null, and none is
filled in from what is usual.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from vitscale.config.frozen import Frozen, Text
from vitscale.config.runspec import slug

SCHEMA_VERSION: Literal[1] = 1

# Where the figures were found, not what was run.
_ORIGIN = ("schema_version", "source", "format", "series", "protocol", "file", "line", "sha256", "row")


class ImportedSpec(Frozen):
    """One run as its source tells it."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Version of this format."""
    source: Literal["imported"] = "imported"
    """Tells this record from a RunSpec."""
    format: Text
    """Format the source was read as, for example `table`."""
    series: Annotated[Text, Field(min_length=1)]
    """Series: a table's own column; of logs, what they tell of the run but its size and batch."""
    world_size: PositiveInt
    """Ranks in all."""
    nodes: PositiveInt | None = None
    """Hosts."""
    ranks_per_node: PositiveInt | None = None
    """Ranks on each host."""
    device: Text | None = None
    """Name of the device as the source has it."""
    model: Text | None = None
    """Name of the model as the source has it."""
    dataset: Text | None = None
    """Name of the data set as the source has it."""
    images_per_epoch: PositiveInt | None = None
    """Images in one epoch, over all ranks."""
    micro_batch: PositiveInt | None = None
    """Images per rank and forward pass."""
    grad_accum: PositiveInt | None = None
    """Micro-steps per optimizer step."""
    global_batch: PositiveInt | None = None
    """Images per optimizer step over all ranks."""
    engine: Text | None = None
    """Owner of parallelism as the source has it."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """ZeRO stage."""
    precision: Text | None = None
    """Number format as the source has it."""
    optimizer: Text | None = None
    """Name of the optimizer as the source has it."""
    protocol: Text | None = None
    """What the source calls its protocol; what it is, is inferred from the whole series."""
    file: Text
    """Name of the source file, below the folder that the files of one import have in common."""
    line: PositiveInt
    """Line of that file at which the run begins, from 1."""
    sha256: str
    """Of the source file, hex."""
    row: dict[str, str] = Field(default_factory=dict)
    """The source's own words, as read."""

    @property
    def run_id(self) -> str:
        """Readable slug and 8 hex digits of the hash of everything above, series and row included."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return f"{slug(self.series, 80)}-w{self.world_size}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def told(self) -> dict[str, object]:
        """What was run, by field, without where it was found."""
        return {key: value for key, value in self.model_dump(mode="json").items() if key not in _ORIGIN}
