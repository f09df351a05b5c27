"""What `make generate` writes is what is committed, and it says what the code does."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest

from vitscale.config.keys import leaf_paths
from vitscale.config.load import load, shipped
from vitscale.errors import UsageError

ROOT = Path(__file__).parents[2]
STUDY = """
name = "mine"
protocol = ["strong", "weak"]
[model]
name = "vit_tiny_patch16_224"
[data]
name = "digits"
[axes]
world_size = [1, 2]
global_batch = 64
"""


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from tools import reference, study_schema

    return reference, study_schema


@pytest.fixture(scope="module")
def accepts():
    schema = json.loads((ROOT / "src/vitscale/config/study.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema).is_valid


def test_the_reference_pages_are_the_ones_the_code_gives(tools):
    pages = tools[0].pages()
    assert {path.name for path in pages} == {"study.md", "records.md", "exit-codes.md"}
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run `make generate`"


def test_the_schema_is_the_one_the_code_gives(tools):
    assert tools[1].TARGET.read_text(encoding="utf-8") == tools[1].generate(), "run `make generate`"


def test_the_deepspeed_keys_are_the_ones_the_installed_deepspeed_reads():
    program = (
        "import sys\n"
        "from tools import deepspeed_keys as keys\n"
        "sys.exit(0 if keys.generate() == keys.TARGET.read_text() else 'run `make generate`')"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_every_study_key_is_on_its_page_once_with_what_it_means(tools):
    page = next(text for path, text in tools[0].pages().items() if path.name == "study.md")
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.+) \| (.+) \| (.+) \|$", page, re.MULTILINE)
    assert sorted(row[0] for row in rows) == sorted(leaf_paths())


def test_the_pages_have_no_noise_of_python_types(tools):
    for path, text in tools[0].pages().items():
        assert not re.search(r"Annotated|Optional\[|NoneType|typing\.|<class|Undefined|Literal\[", text), path.name
        for target in re.findall(r"\]\(#([^)]+)\)", text):
            assert re.search(rf"^##+ {target}$", text, re.MULTILINE | re.IGNORECASE), f"{path.name} links to #{target}"


@pytest.mark.parametrize("name", shipped())
def test_the_schema_accepts_the_shipped_studies(accepts, name):
    assert accepts(tomllib.loads(load(name).text))


@pytest.mark.parametrize(
    "more",
    [
        "",
        "zero_stage = [0, 1]\nnodes = 1\n",
        'precision = "bf16"\n"model.name" = ["a", "b"]\n',
        'model.name = ["a", "b"]\n',
        '"optimizer.lr" = 0.1\n"data.flip" = [true, false]\n',
        '"deepspeed.zero_optimization.overlap_comm" = [true, false]\n',
        "deepspeed.zero_optimization.overlap_comm = [true, false]\n",
        "[measure]\nsteps = 5\n[optimizer]\nlr = 1\n",
        "[deepspeed]\nzero_optimization = { overlap_comm = true }\nsteps_per_print = 5\n",
    ],
)
def test_the_schema_accepts_what_the_loader_reads(accepts, tmp_path, more):
    path = tmp_path / "mine.toml"
    path.write_text(STUDY + more)
    load(str(path))
    assert accepts(tomllib.loads(STUDY + more))


@pytest.mark.parametrize(
    "more",
    [
        "wold_size = 3\n",
        "world_sizes = [1]\n",
        'swept = { "model.name" = ["a"] }\n',
        '"model.nme" = ["a"]\n',
        '"measure.launches" = [1, 2]\n',
        "zero_stage = 7\n",
        "zero_stage = []\n",
        "zero_stage = [0, 0]\n",
        'precision = ["fp32", "fp64"]\n',
        '"optimizer.lr" = [0.1, -1]\n',
        "[measure]\nwarm_up_steps = 1\n",
        "[measure]\nlaunches = 0\n",
        '[optimizer]\nlr = "0.1"\n',
        "[measur]\nsteps = 1\n",
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(accepts, tmp_path, more):
    path = tmp_path / "mine.toml"
    path.write_text(STUDY + more)
    with pytest.raises(UsageError):
        load(str(path))
    assert not accepts(tomllib.loads(STUDY + more))


@pytest.mark.parametrize("key", ["name", "protocol", "model", "data"])
def test_the_schema_asks_for_what_the_loader_asks_for(accepts, key):
    study = tomllib.loads(STUDY)
    assert accepts(study)
    del study[key]
    assert not accepts(study)
