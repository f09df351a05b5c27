"""What `torch.save` writes, looked at without loading it: an archive whose one pickle asks for nothing but tensors.

DeepSpeed unpickles its checkpoints freely, and a pickle is a program. Before a rank meets one, the opcodes of its
pickle are walked here: nothing runs, and only names that weights and optimizer state need may be asked for.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path

_LARGEST_PICKLE_BYTES = 64 << 20
"""The pickle holds names and shapes, not weights: a large ViT's has less than 1 MiB."""

_OPCODES = frozenset(
    [
        "APPEND", "APPENDS", "BINFLOAT", "BINGET", "BININT", "BININT1", "BININT2", "BINPERSID", "BINPUT",
        "BINUNICODE", "BUILD", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "GLOBAL", "LONG1", "LONG_BINGET",
        "LONG_BINPUT", "MARK", "NEWFALSE", "NEWOBJ", "NEWTRUE", "NONE", "PROTO", "REDUCE", "SETITEM", "SETITEMS",
        "STOP", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    ]
)  # fmt: skip
"""Of protocol 2, which `torch.save` writes."""

_NAMES = re.compile(
    r"collections OrderedDict"
    r"|torch (Size|Tensor|device|\w+Storage|b?float\d+|u?int\d+|bool)"
    r"|torch\.storage UntypedStorage"
    r"|torch\._utils _rebuild_(tensor_v2|parameter)"
    r"|torch\._tensor _rebuild_from_type_v2"
    r"|deepspeed\.runtime\.fp16\.loss_scaler (Dynamic)?LossScaler"
    r"|deepspeed\.runtime\.zero\.\w+ \w+Enum"
    r"|deepspeed\.utils\.tensor_fragment fragment_address"
)
"""Module and name of what DeepSpeed's checkpoints of stages 0 to 3 ask for."""


def objection(path: Path) -> str | None:
    """Why an engine's file is not to be loaded, or None.

    Two readers could see two things in one archive, so that whatever is ambiguous is refused too. A file of
    safetensors holds numbers only, and its reader runs nothing.
    """
    if path.suffix == ".safetensors":
        return None
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return "is not an archive of `torch.save`"
        with zipfile.ZipFile(path) as archive:
            return _of_members(archive)
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, EOFError) as error:
        return f"is a damaged archive: {error}"


def _of_members(archive: zipfile.ZipFile) -> str | None:
    names = archive.namelist()
    pickles = [one for one in archive.infolist() if one.filename.endswith(".pkl")]
    if len(set(names)) != len(names) or len({name.partition("/")[0] for name in names}) != 1 or archive.comment:
        return "is not an archive as `torch.save` writes it"
    if len(pickles) != 1 or pickles[0].filename.count("/") != 1 or not pickles[0].filename.endswith("/data.pkl"):
        return "holds other pickles than the one of its tensors"
    if pickles[0].file_size > _LARGEST_PICKLE_BYTES:
        return f"holds a pickle of {pickles[0].file_size:,} bytes"
    return _of_pickle(archive.read(pickles[0]))


def _of_pickle(data: bytes) -> str | None:
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in _OPCODES:
            return f"uses the pickle opcode `{opcode.name}`, which weights do not need"
        if opcode.name == "GLOBAL" and not _NAMES.fullmatch(str(argument)):
            return f"asks for `{str(argument).replace(' ', '.')}`, which weights do not need"
    return None
