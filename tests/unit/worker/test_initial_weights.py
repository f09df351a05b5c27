"""Files of weights to start from: whatever is in them, they are weights that fit or are refused in one line."""

import contextlib
import json
import os
import struct
import types

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from vitscale.errors import CheckpointError
from vitscale.records.writer import file_digest
from vitscale.worker.model import load_initial


@pytest.fixture(scope="module")
def model():
    return timm.create_model("test_vit", num_classes=3)


@pytest.fixture(scope="module")
def load(model, tmp_path_factory):
    """Start a model from a file of these bytes, as planned."""
    folder = tmp_path_factory.mktemp("weights")

    def from_bytes(data, ending="safetensors"):
        path = folder / f"start.{ending}"
        path.write_bytes(data)
        spec = types.SimpleNamespace(init=file_digest(path), model=types.SimpleNamespace(name="test_vit"))
        load_initial(model, spec, path)

    return from_bytes


def refused(load, data, ending="safetensors"):
    with pytest.raises(CheckpointError) as caught:
        load(data, ending)
    assert caught.value.message.startswith(f"`start.{ending}` ")
    assert "\n" not in caught.value.message


def header(document, data=b"", length=None):
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin, end, shape=(1,)):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}


def test_weights_that_fit_are_taken(load, model):
    wanted = {name: torch.full_like(value, 0.5) for name, value in model.state_dict().items()}
    load(save(wanted))
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        header({}, length=2**63),
        header({}, length=10**12),
        header(b"no json"),
        header(b"[" * 5000),
        header({"a": tensor(0, 4), "b": tensor(0, 4)}, b"\0" * 4),
        header({"a": tensor(0, 4), "b": tensor(2, 6)}, b"\0" * 6),
        header({"a": tensor(0, 4)}, b""),
        header({"a": tensor(8, 4)}, b"\0" * 8),
        header({"a": tensor(0, 4, (2**62, 2**62))}, b"\0" * 4),
        header({"a": tensor(0, 4, (-1,))}, b"\0" * 4),
        header({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
    ],
)
def test_a_header_that_lies_is_refused_in_one_line(load, data):
    refused(load, data)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_weights_of_any_bytes_are_refused_in_one_line(load, data):
    for ending in ("safetensors", "pth"):
        refused(load, data, ending)


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 400), value=st.integers(0, 255))
def test_one_changed_byte_of_a_header_is_an_error_of_ours_if_any(load, model, place, value):
    data = bytearray(save(model.state_dict()))
    data[place] = value
    with contextlib.suppress(CheckpointError):  # where the byte matters, it is this error and no other
        load(bytes(data))


class Runs:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def test_a_pickle_that_runs_a_command_never_runs(load, tmp_path):
    torch.save({"head.weight": Runs(tmp_path / "canary")}, tmp_path / "evil.pth")
    refused(load, (tmp_path / "evil.pth").read_bytes(), "pth")
    assert not (tmp_path / "canary").exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "canary").exists(), "the attack itself does not work, so its refusal shows nothing"
