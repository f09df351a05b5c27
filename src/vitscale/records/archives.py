"""What `torch.save` writes, looked at without loading it: an archive whose one pickle asks for nothing but tensors.

DeepSpeed unpickles its checkpoints freely, and a pickle is a program. Before a rank meets one, the opcodes of its
pickle are walked here: nothing runs, and only names that weights and optimizer state need may be asked for.
"""

from __future__ import annotations

import os
import pickletools
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

_LARGEST_PICKLE_BYTES = 64 << 20
"""The pickle holds names and shapes, not weights: a large ViT's has less than 1 MiB."""

# How a ZIP file ends: record of 64 bits, its locator, record of 32 bits (APPNOTE.TXT 4.3.14 to 4.3.16).
_END_64, _LOCATOR, _END = struct.Struct("<4s28x3Q"), struct.Struct("<4s4xQ4x"), struct.Struct("<4s6xHIIH")
_MOST = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
"""What the record of 32 bits says where a figure needs 64."""

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
            with zipfile.ZipFile(file) as archive:
                members = len(archive.infolist())
                return _of_members(archive) if _one_directory(file, members) else _OTHER_FORM
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError, struct.error) as error:
        return f"is a damaged archive: {error}"


_OTHER_FORM = "is not an archive as `torch.save` writes it"


def _one_directory(file: BinaryIO, members: int) -> bool:
    """Whether the list of members ends where the file's end says, with nothing before, between or behind.

    Of two lists Python's reader takes the one that lies last, torch's the one that is named.
    """
    end = file.seek(-_END.size, os.SEEK_END)
    signature, *told, comment = _END.unpack(file.read(_END.size))
    file.seek(max(end - _LOCATOR.size, 0))
    locator, record = _LOCATOR.unpack(file.read(_LOCATOR.size))
    if locator == b"PK\x06\x07":
        end -= _LOCATOR.size + _END_64.size
        file.seek(end)
        signature_64, *told_64 = _END_64.unpack(file.read(_END_64.size))
        short = [min(value, most) for value, most in zip(told_64, _MOST, strict=True)]
        if record != end or signature_64 != b"PK\x06\x06" or told != short:
            return False
        told = told_64
    count, size, offset = told
    return signature == b"PK\x05\x06" and not comment and count == members and offset + size == end


def _of_members(archive: zipfile.ZipFile) -> str | None:
    # torch finds `DATA.PKL` where it looks for `data.pkl`.
    names = [one.filename.lower() for one in archive.infolist()]
    pickles = [one for one in archive.infolist() if one.filename.lower().endswith(".pkl")]
    if len(set(names)) != len(names) or len({name.partition("/")[0] for name in names}) != 1:
        return _OTHER_FORM
    if len(pickles) != 1 or pickles[0].filename.count("/") != 1 or not pickles[0].filename.endswith("/data.pkl"):
        return "holds other pickles than the one of its tensors"
    if pickles[0].header_offset or pickles[0].extra:
        return _OTHER_FORM
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
