import os
import pickle
import pickletools
import struct
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published import protocol2, publish

from vitscale.data import cifar, unpickler
from vitscale.errors import DataError


class Runs:
    """Calls whatever it is given when it is unpickled by Python's own reader."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def python2_pickle(pixels, labels):
    """What Python 2 and NumPy 1.6 wrote: byte strings, `numpy.core.multiarray`, and the raw bytes as they are."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    shape = b"".join(b"M" + struct.pack("<H", side) for side in pixels.shape)
    raw = pixels.tobytes()
    return b"".join(
        (
            b"\x80\x02}q\x01(",
            text(b"data"),
            b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85q\x04",
            text(b"b"),
            b"\x87q\x05Rq\x06(K\x01",
            shape + b"\x86q\x07",
            b"cnumpy\ndtype\nq\x08" + text(b"u1") + b"K\x00K\x01\x87q\x09Rq\x0a(K\x03" + text(b"|"),
            b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tq\x0bb",
            b"\x89" + b"T" + struct.pack("<i", len(raw)) + raw + b"tq\x0cb",
            text(b"labels") + b"]q\x0d(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e",
            b"u.",
        )
    )


def test_the_original_python_2_form_is_read():
    pixels = np.arange(600, dtype=np.uint16).astype(np.uint8).reshape(2, 300)
    loaded = unpickler.load(python2_pickle(pixels, [3, 7]), "data_batch_1")
    assert (loaded["data"] == pixels).all()
    assert loaded["labels"] == [3, 7]


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpys_own_forms_are_read(protocol, order):
    pixels = np.asarray(np.arange(200, dtype=np.uint8).reshape(4, 50), order=order)
    if protocol == 5:
        with pytest.raises(DataError, match=r"_frombuffer|uses the opcode `BYTEARRAY8`"):
            unpickler.load(pickle.dumps({"data": pixels}, protocol=5), "x")
        return
    assert (unpickler.load(pickle.dumps({"data": pixels}, protocol=protocol), "x")["data"] == pixels).all()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_runs_a_command_is_refused_by_name_and_nothing_runs(tmp_path, protocol):
    canary = tmp_path / "canary"
    attack = pickle.dumps({"data": Runs(os.system, f"touch {canary}")}, protocol=protocol)
    with pytest.raises(DataError, match=r"`data_batch_1` (asks for `posix.system`|uses the opcode)"):
        unpickler.load(attack, "data_batch_1")
    assert not canary.exists()
    pickle.loads(attack)
    assert canary.exists(), "the attack itself does not work, so its refusal shows nothing"


@pytest.mark.parametrize(
    "call", [(eval, "1"), (exec, "1"), (getattr, 1, "real"), (__import__, "os"), (np.load, "x"), (np.dtype, "O")]
)
def test_no_other_callable_gets_in(call):
    pickled = protocol2({"data": Runs(*call)})
    if call[0] is np.dtype:
        # A dtype may be named, being part of an array; on its own it stays an inert stand-in.
        assert not isinstance(unpickler.load(pickled, "x")["data"], np.dtype)
    else:
        with pytest.raises(DataError, match="asks for"):
            unpickler.load(pickled, "x")


def test_a_malicious_batch_behind_a_matching_checksum_still_does_not_run(tmp_path):
    canary = tmp_path / "canary"
    evil = publish("cifar10", "python", lambda content: protocol2({"data": Runs(os.system, f"touch {canary}")}))
    with pytest.raises(DataError, match=r"posix.system"):
        cifar.content("cifar10", evil.folder(tmp_path), [evil.release])
    assert not canary.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": np.zeros((20, 3072), dtype=np.float32)}, "not uint8"),
        ({"data": np.zeros((20, 3072), dtype=object)}, "not uint8|without its bytes"),
        ({"data": np.zeros((19, 3072), dtype=np.uint8)}, r"shape \(19, 3072\), expected \(20, 3072\)"),
        ({"data": [1, 2]}, "shape None"),
        ({"data": np.zeros((20, 3072), dtype=np.uint8), "labels": list(range(19))}, "20 whole numbers"),
        ({"data": np.zeros((20, 3072), dtype=np.uint8), "labels": [0.5] * 20}, "opcode `BINFLOAT`"),
        ({"data": np.zeros((20, 3072), dtype=np.uint8), "labels": [1 << 80] * 20}, "64 bits"),
        ({"data": np.zeros((20, 3072), dtype=np.uint8), "labels": [-1] * 20}, "the label -1, expected 0 to 9"),
        ([1, 2], "holds a list, not a dict"),
    ],
)
def test_content_of_another_kind_or_shape_is_refused(tmp_path, content, message):
    odd = publish("cifar10", "python", lambda _: protocol2(content))
    with pytest.raises(DataError, match=message):
        cifar.content("cifar10", odd.folder(tmp_path), [odd.release])


def array_state(shape, raw):
    """A pickle of one array whose state claims this shape for these bytes."""
    state = pickle.dumps((1, shape, None, False, raw), protocol=3)[2:-1]
    head = b"\x80\x03}C\x04datacnumpy.core.multiarray\n_reconstruct\n)R"
    return head + state.replace(b"N", b"cnumpy\ndtype\nC\x02u1\x85R", 1) + b"bs."


def test_an_array_state_as_numpy_writes_it_is_read():
    assert unpickler.load(array_state((2, 3), b"abcdef"), "x")["data"].tolist() == [[97, 98, 99], [100, 101, 102]]


@pytest.mark.parametrize("shape", [(10, 10), (-2, -3), (1 << 62, 4), ("a",), 6])
def test_a_shape_that_its_bytes_do_not_fill_is_refused(shape):
    with pytest.raises(DataError, match="holds an array"):
        unpickler.load(array_state(shape, b"abcdef"), "x")


def test_a_memo_place_that_would_take_all_memory_is_refused():
    with pytest.raises(DataError, match="memo places"):
        unpickler.load(b"\x80\x02}r\xff\xff\xff\x7f.", "x")


def test_a_pickle_of_endless_opcodes_is_refused(monkeypatch):
    monkeypatch.setattr(unpickler, "MAX_OPCODES", 100)
    with pytest.raises(DataError, match="more than 100 opcodes"):
        unpickler.load(protocol2({"a": list(range(200)) + [1.5] * 0}), "x")


@pytest.mark.parametrize("target", sorted(unpickler._STAND_INS))
def test_a_pickle_cannot_alter_the_stand_ins(target):
    module, name = (part.encode() for part in target)
    attack = b"\x80\x02}U\x01ac" + module + b"\n" + name + b"\nN}U\x0c__defaults__K\x05\x85s\x86bs."
    stand_in = unpickler._STAND_INS[target]
    before = dict(getattr(stand_in, "__dict__", {}))
    with pytest.raises(DataError):
        unpickler.load(attack, "x")
    assert dict(getattr(stand_in, "__dict__", {})) == before


@pytest.fixture(scope="module")
def whole():
    return protocol2({"data": np.arange(256, dtype=np.uint8).reshape(2, 128), "labels": [1, 2]})


@settings(max_examples=60)
@given(st.floats(0, 0.999))
def test_a_pickle_cut_short_anywhere_is_refused(whole, share):
    with pytest.raises(DataError):
        unpickler.load(whole[: int(len(whole) * share)], "x")


@settings(max_examples=150, deadline=None)
@given(st.binary(min_size=1, max_size=80))
def test_random_bytes_are_refused_or_harmless(data):
    modules = set(sys.modules)
    try:
        loaded = unpickler.load(data + b".", "x")
    except DataError:
        pass
    else:
        assert isinstance(loaded, dict)
    assert set(sys.modules) == modules


def test_every_allowed_opcode_exists_and_none_of_them_makes_objects_by_class():
    known = {opcode.name for opcode in pickletools.opcodes}
    assert known >= unpickler._OPCODES
    assert not unpickler._OPCODES & {
        "INST",
        "OBJ",
        "NEWOBJ",
        "NEWOBJ_EX",
        "EXT1",
        "EXT2",
        "EXT4",
        "PERSID",
        "BINPERSID",
    }
