"""What the documentation says can be typed, followed and looked up."""

import json
import re
import shlex
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer.main

from vitscale import cli
from vitscale.config.deepspeed import known_keys
from vitscale.config.keys import full_path, leaf_paths
from vitscale.config.load import load, shipped
from vitscale.config.study import Study

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Written by hand for users: their dotted words are study keys. Elsewhere `study.grid` is a module.
TOLD = [page for page in PAGES if page.parent.name in (ROOT.name, "guides", "concepts")]
COMMANDS = typer.main.get_command(cli.app).commands
RESULTS_PAGE = ROOT / "docs" / "concepts" / "results-folder.md"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_KEY = re.compile(r"[a-z_]+(?:\.[a-z_0-9]+)+")


def named(page):
    return str(page.relative_to(ROOT))


def fences(page, *languages):
    return [body for language, body in _FENCE.findall(page.read_text()) if language in languages]


def prose(page):
    return _FENCE.sub("", page.read_text())


def anchors(page):
    """Anchors of the headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        number = next(n for n in range(100) if (f"{slug}-{n}" if n else slug) not in found)
        found.add(f"{slug}-{number}" if number else slug)
    return found


def broken_links(page):
    for target in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            yield f"{target}: no such file"
        elif anchor and anchor not in anchors(file):
            yield f"{target}: no such heading"


def command_lines(page):
    """Words after `vitscale` of every command shown: in blocks, and inline where there is more than the verb."""
    lines = [line for body in fences(page, "sh", "console", "") for line in body.splitlines()]
    lines += _CODE.findall(prose(page))
    for line in lines:
        line = line.strip().removeprefix("$ ")
        if line.startswith("vitscale "):
            yield shlex.split(line, comments=True)[1:]


def shown(blocks):
    """Every block of every page as a test's parameter."""
    return [
        pytest.param(block, id=f"{named(page)} {number}") for page in PAGES for number, block in enumerate(blocks(page))
    ]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    assert list(broken_links(page)) == []


@pytest.mark.parametrize(("target", "works"), [("there.md#a-b_c", True), ("there.md#d", False), ("gone.md", False)])
def test_a_broken_link_is_noticed(tmp_path, target, works):
    (tmp_path / "there.md").write_text("# A, `b_c`!\n\n```sh\n# d\n```\n")
    page = tmp_path / "page.md"
    page.write_text(f"[text]({target})\n")
    assert (list(broken_links(page)) == []) is works


@pytest.mark.parametrize("words", shown(command_lines))
def test_every_command_shown_parses(words, tmp_path):
    verb, *arguments = words
    if verb == "--help":
        return
    assert verb in COMMANDS
    if not arguments:
        return
    parsed = COMMANDS[verb].make_context(verb, arguments).params
    overrides = [as_written_there(word, tmp_path) for word in parsed.get("overrides") or ()]
    if parsed.get("study") in shipped():
        load(parsed["study"], overrides)
    for word in overrides:
        full_path(word.partition("=")[0])


def as_written_there(word, folder):
    """An override that names a DeepSpeed file names one that exists."""
    if not word.startswith("deepspeed.file="):
        return word
    (folder / "ds_config.json").write_text('{"zero_optimization": {"overlap_comm": true}}')
    return f"deepspeed.file={folder / 'ds_config.json'}"


def test_the_pages_show_every_verb():
    assert {words[0] for page in TOLD for words in command_lines(page)} >= COMMANDS.keys()


@pytest.mark.parametrize("page", TOLD, ids=named)
def test_every_study_key_named_exists(page):
    named_keys = {found[0] for code in _CODE.findall(prose(page)) if (found := _KEY.match(code.strip('"')))}
    unknown = [key for key in named_keys if key.split(".")[0] in Study.model_fields and not exists(key)]
    assert unknown == []


def exists(key):
    table, _, rest = key.partition(".")
    if table != "deepspeed":
        return key in leaf_paths()
    return rest == "file" or rest.split(".")[0] in known_keys()["top_level"]


def test_a_key_that_does_not_exist_is_noticed():
    assert exists("measure.steps")
    assert exists("deepspeed.file")
    assert not exists("measure.step")
    assert not exists("deepspeed.micro_batch_per_gpu")


def studies(page):
    """TOML blocks, a Python project's own tables aside."""
    return [body for body in fences(page, "toml") if not body.lstrip().startswith("[project")]


@pytest.mark.parametrize("body", shown(studies))
def test_every_study_shown_validates(body, tmp_path):
    tree = tomllib.loads(body)
    # A block with only some of the keys is completed: what it says has to be valid, not what it leaves out.
    needed = {"schema_version": "1", "name": '"shown"', "protocol": '"weak"'}
    head = [f"{key} = {value}" for key, value in needed.items() if key not in tree]
    tail = [] if "model" in tree else ["[model]", 'name = "vit_tiny_patch16_224"']
    tail += [] if "data" in tree else ["[data]", 'name = "synthetic"']
    (tmp_path / "study.toml").write_text("\n".join([*head, body, *tail]))
    (tmp_path / "ds_config.json").write_text("{}")
    load(str(tmp_path / "study.toml"))


def test_the_example_on_the_results_page_recomputes_the_figures_of_the_analysis(tmp_path):
    folder = ROOT / "tests" / "golden" / "study"
    (program,) = fences(RESULTS_PAGE, "python")
    (tmp_path / "recompute.py").write_text(program)
    ran = subprocess.run(
        [sys.executable, str(tmp_path / "recompute.py"), str(folder)], check=True, capture_output=True, text=True
    )
    found = {}
    for line in ran.stdout.splitlines():
        run_id, step_s = line.split()
        found.setdefault(run_id, []).append(float(step_s))
    runs = json.loads((folder.parent / "analysis.json").read_text())["runs"]
    told = {run["run_id"]: run["step_s"]["median"] for run in runs if run["step_s"] is not None}
    assert {run_id: statistics.median(values) for run_id, values in found.items()} == pytest.approx(told)


FAULTS = {*map(str, range(1, 43)), *(f"P{number}" for number in range(1, 9))}
ATTACKS = {*map(str, range(1, 21))}


@pytest.mark.parametrize(("page", "numbers"), [("faults.md", FAULTS), ("security.md", ATTACKS)])
def test_every_fault_and_attack_told_has_its_test(page, numbers):
    text = (ROOT / "docs" / "concepts" / page).read_text()
    told = re.findall(r"^\| (P?\d+) \|.*`(test_\w+)` \|$", text, re.MULTILINE)
    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    lacking = [name for _, name in told if f"def {name}(" not in written]
    assert lacking == []
    assert {number for number, _ in told} >= numbers
