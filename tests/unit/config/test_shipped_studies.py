import re
import shlex
import tomllib
from importlib import resources

import pytest

from vitscale.config.keys import full_path
from vitscale.config.load import load, shipped

# The file of the design, value by value.
QUICK = {
    "schema_version": 1,
    "name": "quick",
    "question": "Does a second process help a tiny ViT on this machine?",
    "protocol": ["strong", "weak"],
    "model": {"name": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 4},
    "data": {"name": "digits"},
    "axes": {
        "world_size": [1, 2],
        "engine": "deepspeed",
        "zero_stage": 0,
        "precision": "fp32",
        "global_batch": 64,
        "micro_batch": 32,
        "grad_accum": 1,
    },
    "measure": {"launches": 3},
}


def header(name):
    text = resources.files("vitscale").joinpath(f"studies/{name}.toml").read_text(encoding="utf-8")
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return lines


def test_quick_is_shipped_as_designed():
    assert tomllib.loads(load("quick").text) == QUICK


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_study_is_read_as_it_stands(name):
    loaded = load(name)
    assert loaded.study.name == name
    assert loaded.study.question


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_study_says_its_command_its_time_and_what_it_answers(name):
    command, *rest = header(name)
    words = shlex.split(command)
    assert words[0] == "vitscale"
    assert words[1] in ("run", "train")
    assert words[2] == name
    rest_of_command = words[3:] if "--launcher" not in words else words[words.index("--launcher") + 2 :]
    for word in rest_of_command:
        full_path(word.partition("=")[0])
    text = "\n".join(rest)
    assert re.search(r"^Expected: .*\d.*(second|minute|hour)", text, re.MULTILINE)
    assert re.search(r"^Answers: .+", text, re.MULTILINE)
