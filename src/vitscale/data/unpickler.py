"""A reader for the pickles of CIFAR's Python release that runs nothing.

Three walls, and the checksum before them (a file is only read here after its bytes matched the published ones):
1. a walk over the opcodes lets only those pass that build numbers, strings, lists, tuples, dicts and arrays;
2. a global that an array of bytes does not need is refused by name;
3. what an array needs is replaced by inert stand-ins, so that not even NumPy's own unpickling code meets the bytes.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import numpy as np
import numpy.typing as npt

from vitscale.errors import DataError

MAX_OPCODES = 2_000_000

_OPCODES = frozenset(
    [
        "PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL",
        "REDUCE", "BUILD", "NONE", "NEWTRUE", "NEWFALSE", "INT",
        "BININT", "BININT1", "BININT2", "LONG", "LONG1", "STRING",
        "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES",
        "SHORT_BINBYTES", "BINBYTES8", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2",
        "TUPLE3", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT",
        "DICT", "SETITEM", "SETITEMS", "PUT", "BINPUT", "LONG_BINPUT",
        "MEMOIZE", "GET", "BINGET", "LONG_BINGET",
    ]
)  # fmt: skip
_MEMO = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET"})


class _Array:
    """Stand-in for an array under reconstruction: keeps the state it is given."""

    def __init__(self) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


class _Dtype:
    """Stand-in for a dtype: keeps its code, ignores its state (byte order means nothing for one byte)."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = _text(code)

    def __setstate__(self, state: Any) -> None:
        pass


class _Reconstruct:
    """Stand-in for NumPy's `_reconstruct`. An object without attributes, so that BUILD has nothing to alter."""

    __slots__ = ()

    def __call__(self, *_: Any) -> _Array:
        return _Array()


class _Encode:
    """Stand-in for `_codecs.encode`, for the one codec NumPy uses."""

    __slots__ = ()

    def __call__(self, text: Any, codec: Any = "latin1") -> bytes:
        if not isinstance(text, str) or _text(codec) not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("encodes what is not latin1 text")
        return text.encode("latin1")


# numpy.core is NumPy 1's name, numpy._core is NumPy 2's. The class itself is only ever an argument.
_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encode(),
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, what: str) -> None:
        super().__init__(io.BytesIO(data), fix_imports=False, encoding="bytes")
        self._what = what

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise refused(self._what, f"asks for `{module}.{name}`, which images do not need")
        return _STAND_INS[module, name]


def load(data: bytes, what: str) -> dict[str, Any]:
    """Read one pickled dict: keys become text, arrays become uint8 arrays, everything else plain values.

    Args:
        data: the pickle. Hash it first: these are the bytes that are parsed.
        what: what to call it in an error.

    Raises:
        DataError: a global, an opcode or a value that the release does not have, or a pickle that is cut short.
    """
    _walk(data, what)
    try:
        loaded = _Unpickler(data, what).load()
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 -- a hostile pickle can raise anything
        raise refused(what, f"does not read: {error}") from None
    if not isinstance(loaded, dict):
        raise refused(what, f"holds a {type(loaded).__name__}, not a dict")
    return {_text(key): _array(value, what) if isinstance(value, _Array) else value for key, value in loaded.items()}


def _walk(data: bytes, what: str) -> None:
    """Refuse opcodes that are not needed, too many of them, and memo numbers that make Python allocate without end."""
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if opcode.name not in _OPCODES:
                raise refused(what, f"uses the opcode `{opcode.name}`, which images do not need")
            if count >= MAX_OPCODES or (opcode.name in _MEMO and not 0 <= int(str(argument)) < MAX_OPCODES):
                raise refused(what, f"needs more than {MAX_OPCODES:,} opcodes or memo places")
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 -- pickletools raises whatever the damage leads to
        raise refused(what, f"is not a pickle: {error}") from None


def _array(array: _Array, what: str) -> npt.NDArray[np.uint8]:
    """The array of bytes that a stand-in's state describes."""
    state = array.state
    if not (isinstance(state, tuple) and len(state) == 5):
        raise refused(what, "holds an array without its state")
    _, shape, dtype, fortran, raw = state
    if not isinstance(dtype, _Dtype) or dtype.code not in ("u1", "|u1", "uint8"):
        raise refused(what, "holds an array that is not uint8")
    if not isinstance(shape, tuple) or not all(isinstance(side, int) and side >= 0 for side in shape):
        raise refused(what, "holds an array without a shape")
    if not isinstance(raw, bytes):
        raise refused(what, "holds an array without its bytes")
    total = 1
    for side in shape:
        total *= side
    if len(raw) != total:
        raise refused(what, f"holds an array of {len(raw)} bytes whose shape {shape} has {total}")
    return np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def refused(what: str, why: str) -> DataError:
    """The error for a pickle that is not what the release holds."""
    return DataError(f"`{what}` {why}", "get the published archive again; this file was not run")
