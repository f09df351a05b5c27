"""Archives of `torch.save`: what tensors need passes, and every other thing a pickle can ask for is refused unread."""

import io
import os
import pickle
import struct
import zipfile

import pytest

from vitscale.records.archives import objection

HARMLESS = b"\x80\x02ccollections\nOrderedDict\n)R."
HOSTILE = b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00exit\x85R."


def archive(path, *members, comment=b""):
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members:
            file.writestr(name, data)
        file.comment = comment
    return path


def of_pickle(path, data):
    return objection(archive(path, ("a/data.pkl", data), ("a/data/0", b"weights")))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.pt"


def test_what_weights_need_passes(path):
    assert of_pickle(path, HARMLESS) is None


def test_tensors_of_every_number_format_and_plain_values_pass(path):
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.ones(3))
    formats = {str(kind): torch.ones(2, dtype=kind) for kind in (torch.bfloat16, torch.float16, torch.int64)}
    state = {"weight": weight, "betas": (0.9, 0.999), "large": 1 << 40, "none": None, "of": torch.float16, **formats}
    torch.save({**state, "shape": weight.shape, "device": weight.device}, path)
    assert objection(path) is None


@pytest.mark.parametrize(
    ("data", "asked"),
    [
        (HOSTILE, "asks for `posix.system`"),
        (HARMLESS.replace(b"OrderedDict", b"OrderedDict.update"), "asks for `collections.OrderedDict.update`"),
        (HARMLESS.replace(b"collections", b"torch.collections"), "asks for `torch.collections.OrderedDict`"),
        (b"\x80\x02ctorch\nload\n)R.", "asks for `torch.load`"),
        (b"\x80\x02ctorch\nhub.StringStorage\n)R.", "asks for `torch.hub.StringStorage`"),
        (b"(S'exit'\nios\nsystem\n.", "`STRING`"),
        (pickle.dumps(os.system, 4), "`FRAME`"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "`SHORT_BINUNICODE`"),
        (b"\x80\x02\x82\x01.", "`EXT1`"),
        (HARMLESS[:-1], "damaged"),
        (b"", "damaged"),
    ],
)
def test_any_other_name_or_opcode_is_refused(path, data, asked):
    assert asked in of_pickle(path, data)


def test_what_two_readers_could_see_differently_is_refused(path):
    pickled = ("a/data.pkl", HARMLESS)
    with pytest.warns(UserWarning, match="Duplicate"):
        archive(path, pickled, ("a/data.pkl", HOSTILE))
    assert "as `torch.save` writes it" in objection(path)
    assert "other pickles" in objection(archive(path, pickled, ("a/constants.pkl", HOSTILE)))
    assert "other pickles" in objection(archive(path, ("a/b/data.pkl", HARMLESS)))
    assert "other pickles" in objection(archive(path, ("a/data/0", b"")))
    assert "as `torch.save` writes it" in objection(archive(path, pickled, ("b/data.pkl", HOSTILE)))
    assert "as `torch.save` writes it" in objection(archive(path, pickled, comment=b"more"))
    whole = archive(path, pickled).read_bytes()
    path.write_bytes(HOSTILE + whole)
    assert objection(path) == "is not an archive of `torch.save`"


@pytest.mark.parametrize("name", ["a/DATA.PKL", "a/data.Pkl", "a/constants.PKL"])
def test_names_that_differ_in_case_only_are_one_name_to_torch(path, name):
    assert objection(archive(path, ("a/data.pkl", HARMLESS), (name, HOSTILE)))


def members(data):
    """What an archive of one member holds before its directory, and the directory."""
    buffer = io.BytesIO()
    archive(buffer, ("a/data.pkl", data))
    whole = buffer.getvalue()
    size, offset = struct.unpack("<2I", whole[-10:-2])
    return whole[:offset], whole[offset : offset + size]


def end(size, offset):
    return b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 1, 1, size, offset, 0)


def end_64(size, offset):
    return b"PK\x06\x06" + struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, 1, 1, size, offset)


def at(directory, offset):
    return directory[:42] + struct.pack("<I", offset) + directory[46:]


def test_a_second_directory_before_the_last_is_refused(path):
    hostile, listed = members(HOSTILE + bytes(400))
    harmless, last = members(HARMLESS)
    # Python's reader takes the last directory and moves every offset by what lies before it, torch's the one named.
    last = at(last, len(hostile) - len(harmless))
    path.write_bytes(hostile + listed + harmless + last + end(len(last), len(hostile)))
    with zipfile.ZipFile(path) as file:
        assert file.read("a/data.pkl") == HARMLESS
    assert objection(path) == "is not an archive as `torch.save` writes it"


def test_a_second_directory_of_64_bits_is_refused(path):
    hostile, listed = members(HOSTILE)
    harmless, last = members(HARMLESS)
    named = hostile + listed + end_64(len(listed), len(hostile))
    whole = named + harmless + at(last, len(named))
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, len(hostile) + len(listed), 1)
    tail = end_64(len(last), len(named) + len(harmless)) + locator
    path.write_bytes(whole + tail + b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, *[0xFFFF] * 2, *[0xFFFFFFFF] * 2, 0))
    with zipfile.ZipFile(path) as file:
        assert file.read("a/data.pkl") == HARMLESS
    assert objection(path) == "is not an archive as `torch.save` writes it"


def test_a_member_that_cannot_be_unpacked_is_damage(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", HARMLESS * 9)
    whole = bytearray(path.read_bytes())
    whole[40] ^= 0xFF  # the first byte of the deflated stream
    path.write_bytes(whole)
    assert "damaged" in objection(path)


def test_a_bare_pickle_is_no_archive(path):
    path.write_bytes(HOSTILE)
    assert objection(path) == "is not an archive of `torch.save`"


def test_a_pickle_of_many_bytes_is_refused_before_it_is_unpacked(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", bytes((64 << 20) + 1))
    assert objection(path) == "holds a pickle of 67,108,865 bytes"


def test_cut_anywhere_it_is_refused(path):
    buffer = io.BytesIO()
    archive(buffer, ("a/data.pkl", HARMLESS), ("a/data/0", b"w" * 50))
    whole = buffer.getvalue()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert objection(path), length
