"""The shipped studies of the paper: each can be planned, on its GPUs and here, and asks what its figure asks."""

from pathlib import Path

import pytest

from vitscale.config.load import load, shipped
from vitscale.cost import models, vit
from vitscale.data.catalog import DatasetFacts, describe
from vitscale.errors import UsageError
from vitscale.hardware.probe import Machine
from vitscale.study.grid import Images, Where, build

LAPTOP = Machine(2, (0, 1), 16 << 30, "a CPU", (), "NVML sees no GPU", None)
HERE, T4 = Where(LAPTOP), Where(LAPTOP, "t4")
IMAGENET100 = DatasetFacts("imagenet100", 100, 126_689, 5_000, 256, 256, 3, "a folder of one's own")
PAPER = [name for name in shipped() if name.startswith("paper/")]
TWINS = [name for name in PAPER if name.endswith("_cpu")]
ORIGINALS = [name for name in PAPER if name not in TWINS]
SCALING = [name for name in PAPER if "fig07" not in name]  # figure 7 is about accuracy, at one world size
SEVERAL_HOSTS = ("paper/fig04_05", "paper/fig14", "paper/fig15")


def images_of(section):
    facts = IMAGENET100 if section.name == "imagenet100" else describe(section.name, Path())
    return Images(facts, "0123456789abcdef")


def grid(name, where, *words):
    return build(load(name, words).study, where, images_of)


def sizes(study):
    """The world sizes of which there are runs, by protocol."""
    found = {}
    for run in study.runs:
        found.setdefault(run.protocol, set()).add(run.world_size)
    return found


def test_every_figure_of_the_paper_has_a_study_and_a_twin():
    figures = ["04_05", "06", "07", "08_09", "10_11", "12_13", "14", "15", "16_17"]
    wanted = [*(f"paper/fig{number}" for number in figures), "paper/imagenet100"]
    assert wanted == ORIGINALS
    assert [f"{name}_cpu" for name in wanted] == TWINS


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_study_is_the_papers_model_at_224_px_on_each_of_its_world_sizes(name):
    study = load(name).study
    runs = grid(name, T4).runs
    assert {(run.model.name, run.model.img_size) for run in runs} == {("vit_base_patch16_224", 224)}
    assert {(run.precision, run.zero_stage, run.optimizer.lr) for run in runs} == {("fp32", 0, 1e-4)}
    assert {run.world_size for run in runs} == set(study.axes.world_size)


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_can_be_planned_here_with_one_and_two_processes(name):
    runs = grid(name, HERE).runs
    assert {run.device for run in runs} == {"cpu"}
    assert max(run.world_size for run in runs) == 2
    assert not any(run.oversubscribed for run in runs)


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_asks_what_its_study_asks(name):
    twin, study = load(name).study, load(name.removesuffix("_cpu")).study
    assert twin.protocol == study.protocol
    given = [{key for key, value in one.axes.model_dump().items() if value} for one in (twin, study)]
    assert given[0] == given[1]
    many = [{key for key, value in one.axes.model_dump().items() if len(value or ()) > 1} for one in (twin, study)]
    assert many[0] >= many[1]
    assert twin.train.trains == study.train.trains


@pytest.mark.parametrize("name", SCALING)
def test_the_papers_protocol_stands_beside_the_strong_scaling_it_never_ran(name):
    found = sizes(grid(name, HERE if name in TWINS else T4))
    assert len(found["strong"]) > 1
    assert found["strong"] <= found["strong_fixed_micro"]


@pytest.mark.parametrize("name", [name for name in TWINS if load(name).study.train.trains])
def test_a_twin_that_trains_sees_few_images(name):
    seen = [
        run.train.total_steps(run.data.images, run.global_batch) * run.global_batch for run in grid(name, HERE).runs
    ]
    assert max(seen) <= 10 * 1437
    assert sum(seen) <= 80_000


@pytest.mark.parametrize("name", [f"{name}_cpu" for name in SEVERAL_HOSTS])
def test_runs_over_several_hosts_are_skipped_here_with_their_rule(name):
    made = grid(name, HERE)
    assert {run.nodes for run in made.runs} == {1}
    away = [one for one in made.skipped if "ranks are started on this host only" in one.why]
    assert len(away) == len(load(name).study.protocol)


def test_where_no_run_fits_this_host_the_study_is_refused_with_the_rule():
    with pytest.raises(UsageError, match=r"`world_size = 2` is possible: `nodes = 2`: ranks are started on this host"):
        grid("paper/fig14", HERE)


def test_accumulation_keeps_the_global_batch_of_figure_7():
    runs = grid("paper/fig07", T4).runs
    by_batch = {}
    for run in runs:
        by_batch.setdefault(run.global_batch, set()).add((run.micro_batch, run.grad_accum))
    assert by_batch[64] == {(32, 1), (16, 2), (8, 4)}
    assert {len(pairs) for pairs in by_batch.values()} == {3}


def test_one_gpu_per_node_to_32_nodes():
    runs = grid("paper/fig14", T4).runs
    assert {(run.nodes, run.ranks_per_node) for run in runs} == {(size, 1) for size in (1, 2, 4, 8, 16, 32)}


def test_inter_and_intra_node_stand_side_by_side():
    runs = grid("paper/fig15", T4).runs
    fixed = [(run.world_size, run.nodes) for run in runs if run.protocol == "strong_fixed_micro"]
    assert sorted(fixed) == [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)]


def test_the_recipe_for_cifar10_is_one_run_of_vit_lites_size():
    (run,) = grid("cifar10", Where(LAPTOP, "h100")).runs
    assert run.train.total_steps(run.data.images, run.global_batch) == 200 * (50_000 // 128)
    shape = models.shape(**run.model.model_dump())
    assert (shape.img_size, shape.patch_size, shape.depth, shape.width, shape.heads) == (32, 4, 7, 256, 4)
    assert 5.5e6 < vit.parameters(shape) < 5.6e6


def test_the_guide_has_every_study_of_the_paper():
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "paper.md").read_text()
    assert [name for name in PAPER if f"`{name}`" not in guide] == []
