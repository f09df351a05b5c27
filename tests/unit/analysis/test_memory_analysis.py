"""What ranks hold beside the closed forms: the highest counts, the figure, the table, and the finding."""

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.config.knobs import EngineSection
from vitscale.records.schema import Memory
from vitscale.report.document import document
from vitscale.report.figures import draw
from vitscale.report.memory_tables import largest_table, memory_table
from vitscale.report.rows.memory import memory_data

MIB = 2**20
DERIVED = {"parameters": 20 * MIB, "gradients": 10 * MIB, "optimizer": 30 * MIB, "activations": 40 * MIB, "buckets": 0}


def counted(**sizes):
    return Memory(**{f"{name}_bytes": sizes.get(name, size) for name, size in DERIVED.items()})


@pytest.fixture
def study(make, tmp_path):
    """The analysis of a run whose launches held these bytes."""

    def study(*memories, estimate=DERIVED, knobs=None):
        spec = make.make_spec(2, knobs=knobs)
        run = {"run_id": spec.run_id, "series": spec.series, "spec": spec.model_dump(mode="json")}
        root = make.write_study(tmp_path, plan={"runs": [{**run, "estimate": {"memory_bytes": estimate}}]})
        for launch, memory in enumerate(memories):
            make.write_launch(root, spec, launch, memory=memory)
        return analyse(root)

    return study


def findings(result):
    return [one for one in result.analysis.findings if one.kind == "memory_differs"]


def test_the_highest_of_ranks_and_launches_stands_beside_the_closed_form(study):
    result = study(counted(), counted(gradients=10 * MIB + 5), counted())
    memory = result.analysis.runs[0].memory
    assert memory.gradients.model_dump() == {"measured_bytes": 10 * MIB + 5, "derived_bytes": 10 * MIB}
    assert memory.measured
    assert findings(result) == []


def test_a_class_far_from_its_closed_form_is_a_finding(study):
    (one,) = findings(study(counted(gradients=12 * MIB, optimizer=32 * MIB)))
    assert one.severity == "note"
    assert "gradients take 12.0 MiB, by the closed form 10.0 MiB (20.0 % off)" in one.evidence
    assert "optimizer" not in one.evidence


def test_a_block_that_backward_makes_again_is_in_the_closed_form_alone(study):
    few = counted(activations=10 * MIB, gradients=12 * MIB)
    (one,) = findings(study(few, knobs=EngineSection(activation_checkpointing=True)))
    assert "gradients" in one.evidence
    assert "activations" not in one.evidence


def test_memory_where_the_closed_form_has_none_is_a_finding_if_it_matters(study):
    assert findings(study(counted(buckets=MIB // 2))) == []
    (one,) = findings(study(counted(buckets=5 * MIB)))
    assert "buckets take 5.00 MiB, by the closed form 0 B" in one.evidence


def test_bars_are_stacked_and_end_at_the_sum(study):
    data = memory_data(study(counted()))
    assert [row["end"] for row in data.rows] == [20, 30, 60, 100, 100]
    assert {row["unit"] for row in data.rows} == {"MiB"}
    assert data.rows[-1]["derived"] == 100


def test_the_table_has_measured_closed_form_and_ratio(study):
    table = memory_table(study(counted(gradients=11 * MIB)))
    assert table.rows[1][1:] == ("gradients", "11.0 MiB", "10.0 MiB", "1.10")
    assert table.rows[4][1:] == ("buckets and gathered weights", "0 B", "0 B", "n/a")


def test_a_study_that_counted_nothing_has_no_such_part(study):
    result = study(None)
    assert result.analysis.runs[0].memory.gradients.model_dump() == {
        "measured_bytes": None, "derived_bytes": 10 * MIB,
    }  # fmt: skip
    assert findings(result) == []
    assert "memory" not in {part.name for part in document(result, draw(result)).parts}


def test_a_plan_without_estimates_is_drawn_without_the_stroke(study):
    result = study(counted(), estimate={})
    assert all("derived" not in row for row in memory_data(result).rows)
    assert "memory" in {part.name for part in document(result, draw(result)).parts}


def test_a_study_of_stages_says_what_fits_and_what_was_not_measured(make, tmp_path):
    specs = [make.make_spec(2, zero_stage=stage) for stage in (0, 3)]
    estimate = {"memory_bytes": {}, "memory_limit_bytes": 2**30}
    runs = [
        {"run_id": one.run_id, "series": one.series, "spec": one.model_dump(mode="json"), "estimate": estimate}
        for one in specs
    ]
    skipped = [{"label": f"offload, {ranks}", "reason": "no GPU"} for ranks in (1, 2)]
    root = make.write_study(tmp_path, plan={"runs": runs, "skipped": skipped})
    make.write_launch(root, specs[0])
    result = analyse(root)
    table = largest_table(result)
    assert [row[:2] for row in table.rows[2:]] == [("offload, 1, and 1 more", "n/a (no GPU)")]
    assert [row[2] for row in table.rows[:2]] == ["1.00 GiB", "1.00 GiB"]
    assert table.rows[1][1] == "n/a"
    assert "largest" in {part.name for part in document(result, draw(result)).parts}


def test_a_study_of_one_stage_does_not_ask_what_fits(study):
    assert largest_table(study(counted())).rows == ()
