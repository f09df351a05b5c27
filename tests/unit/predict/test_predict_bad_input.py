"""What is asked of tables that are wrong, thin or odd: a refusal that names it, or a wider interval with the reason."""

from dataclasses import replace

import pytest

from vitscale.cost.scaling import Layout
from vitscale.errors import UsageError
from vitscale.predict.checks import checked
from vitscale.predict.document import prediction_document
from vitscale.predict.model import calibrate, predict
from vitscale.predict.read import of_table
from vitscale.predict.series import Observation, Series
from vitscale.units import ranks

HEADER = (
    "series,device,nodes,world_size,model,micro_batch,grad_accum,global_batch,engine,precision,epoch_s,"
    "images_per_epoch,step_s"
)


@pytest.fixture
def table(tmp_path):
    def write(*rows, header=HEADER):
        path = tmp_path / "t.csv"
        path.write_text("\n".join([header, *rows]) + "\n")
        return of_table(path)

    return write


def row(
    size, step_s, series="s", device="", micro="32", engine="ddp", accum="1", epoch="", images="", precision="fp32"
):
    run = f"{series},{device},1,{size},vit_base_patch16_224,{micro},{accum}"
    return f"{run},,{engine},{precision},{epoch},{images},{step_s}"


def width(series, size=8):
    return predict(calibrate(series), [size]).points[0].step_s.half_width


def test_zero_rows_are_refused(table):
    with pytest.raises(UsageError, match="no rows"):
        table()


def test_one_row_predicts_with_the_priors_width_and_says_so(table):
    (one,), (three,) = table(row(1, 1.0)), table(row(1, 1.0), row(2, 1.02), row(4, 1.03))
    found = predict(calibrate(one), [8])
    assert any("one world size was measured" in line for line in found.assumptions)
    assert width(one) > 1.5 * width(three)


def test_duplicates_that_disagree_a_little_widen_and_a_lot_are_refused(table):
    (same,) = table(row(1, 1.0), row(1, 1.001), row(2, 1.02))
    (apart,) = table(row(1, 1.0), row(1, 1.15), row(2, 1.02))
    assert any("1 rank on 1 node was told 2 times, 15.0% apart" in line for line in apart.remarks)
    assert width(apart, 2) > 1.5 * width(same, 2)
    with pytest.raises(UsageError, match="tells 1 rank on 1 node 2 times, 1 to 2"):
        table(row(1, 1.0), row(1, 2.5))


def test_milliseconds_are_noticed_beside_seconds(table):
    with pytest.raises(UsageError, match="2 ranks takes 1020") as caught:
        table(row(1, 1.0), row(2, 1020))
    assert "milliseconds" in caught.value.hint


def test_milliseconds_are_noticed_against_the_epoch(table):
    with pytest.raises(UsageError, match=r"`step_s` is 640, but epoch, images and batch give 0\.64 s") as caught:
        table(row(1, 640, epoch="1000", images="50000"))
    assert "milliseconds" in caught.value.hint


def test_milliseconds_are_noticed_against_the_device(table):
    with pytest.raises(UsageError, match="of the peak of t4") as caught:
        table(row(1, 1200, device="t4"))
    assert "write 1.2" in caught.value.hint
    with pytest.raises(UsageError, match="faster than t4 computes"):
        table(row(1, 0.0012, device="t4"))


@pytest.mark.parametrize(
    ("times", "facts"),
    [
        (((1, 256, 6.0), (256, 1, 8.0)), {}),
        (((1, 512, 6.0), (512, 1, 6 / 512)), {}),
        (((1, 1, 0.016),), {"model": "vit_tiny_patch16_224", "device": "h100", "precision": "bf16"}),
    ],
    ids=["scales-badly", "scales-perfectly", "small-micro-batch"],
)
def test_honest_tables_are_not_taken_for_milliseconds(times, facts):
    seen = tuple(Observation(Layout(size, 1, micro, 1), step_s) for size, micro, step_s in times)
    series = Series("s", seen, "strong", **{"model": "vit_base_patch16_224", "device": "t4", **facts})
    assert checked(series).measured == seen


@pytest.mark.parametrize("source", ["measured", "simulated"])
def test_times_of_our_own_records_are_in_seconds_whatever_they_are(source):
    seen = tuple(Observation(Layout(size, 1, 8, 1), step_s) for size, step_s in ((1, 0.01), (2, 20.0)))
    series = Series("s", seen, "weak", model="vit_base_patch16_224", device="t4", source=source)
    assert checked(series).measured == seen
    with pytest.raises(UsageError):
        checked(replace(series, source="imported"))


@pytest.mark.parametrize("value", ["fast", "-1", "0", "nan", "inf", "1e999"])
def test_times_that_are_none_are_refused_by_line_and_column(table, value):
    with pytest.raises(UsageError, match=r"t\.csv:3`: `step_s`"):
        table(row(1, 1.0), row(2, value))


def test_order_does_not_matter(table):
    rows = [row(1, 1.0), row(2, 1.02), row(4, 1.03)]
    (ordered,), (other,) = table(*rows), table(*rows[::-1])
    assert predict(calibrate(ordered), [8]).points == predict(calibrate(other), [8]).points


def test_mixed_devices_engines_and_protocols_are_refused(table):
    with pytest.raises(UsageError, match="mixes devices: a40, t4"):
        table(row(1, 1.0, device="t4"), row(2, 1.0, device="a40"))
    with pytest.raises(UsageError, match="mixes engines: ddp, fsdp"):
        table(row(1, 1.0), row(2, 1.0, engine="fsdp"))
    header = f"{HEADER},protocol"
    with pytest.raises(UsageError, match="mixes protocols: strong, weak"):
        table(row(1, 1.0) + ",weak", row(2, 1.0) + ",strong", header=header)


def test_an_unknown_gpu_is_said_and_costs_width(table):
    (known,) = table(row(1, 0.83, device="t4"))
    (unknown,) = table(row(1, 0.83, device="RTX 9090"))
    found = predict(calibrate(unknown), [8])
    assert any("`RTX 9090` is not in the catalog" in line for line in found.assumptions)
    assert not any("catalog" in line for line in predict(calibrate(known), [8]).assumptions)


def test_a_missing_micro_batch_is_said_and_widens(table):
    times = ((1, 1.0), (2, 1.01), (4, 1.015))
    (series,), (told,) = (table(*(row(*one, micro=micro) for one in times)) for micro in ("", "32"))
    assert width(series) > 1.2 * width(told)
    assert any("micro-batch is not told" in line for line in predict(calibrate(series), [4]).assumptions)


def test_an_epoch_without_its_images_is_refused(table):
    with pytest.raises(UsageError, match="`epoch_s` without `images_per_epoch`"):
        table(row(1, "", epoch="100"))


def test_blank_times_are_specs_only(table):
    (series,) = table(row(1, "", device="t4"), row(8, "", device="t4"))
    found = predict(calibrate(series), [8])
    assert any("nothing was measured" in line for line in found.assumptions)
    assert found.points[0].step_s.half_width > 0.25


@pytest.mark.parametrize(
    ("device", "sizes", "precision", "than"),
    [
        ("", (1, 2), "fp32", "peak of t4"),
        ("h100", (2, 4, 8), "bf16", "peak of h100"),
        ("RTX 9090", (2, 4), "bf16", "peak"),
    ],
)
def test_a_whole_table_in_milliseconds_is_remarked(table, device, sizes, precision, than):
    (slow,) = table(*(row(size, 160 + size, device=device, precision=precision, micro="64") for size in sizes))
    (told,) = [line for line in slow.remarks if "milliseconds" in line]
    assert told.startswith(f"{160 + sizes[0]} s a step at {ranks(sizes[0])} is 4")
    assert than in told
    (sound,) = table(*(row(size, 0.16, device=device, precision=precision, micro="64") for size in sizes))
    assert not any("milliseconds" in line for line in sound.remarks)


def test_a_cpu_may_be_slow_and_a_minute_for_a_micro_batch_of_anything_else_is_remarked(table):
    (cpu,) = table(row(1, 70.0, device="cpu"), row(2, 75.0))
    assert not any("milliseconds" in line for line in cpu.remarks)
    other = [line.replace("vit_base_patch16_224", "bert-large") for line in (row(1, 160.0), row(2, 170.0))]
    (long,) = table(*other)
    assert any("longer than a minute" in line for line in long.remarks)
    (accumulated,) = table(*(line.replace(",1,,ddp", ",8,,ddp") for line in other))
    assert not any("longer than a minute" in line for line in accumulated.remarks)


def test_mixed_protocols_that_nobody_told_are_remarked(table):
    (mixed,) = table(
        row(1, 1.0, micro="128"), row(2, 1.0, micro="128"), row(4, 0.3, micro="32"), row(8, 0.2, micro="16")
    )
    assert mixed.protocol is None
    assert any("protocols may be mixed" in line for line in mixed.remarks)
    (strong,) = table(row(1, 1.0, micro="64"), row(2, 0.6, micro="32"))
    (same,) = table(row(1, 1.0), row(2, 1.0))
    assert not any("protocols may be mixed" in line for line in (*strong.remarks, *same.remarks))


def test_what_some_rows_leave_blank_is_taken_from_the_others_and_said(table):
    (series,) = table(row(1, 0.83, device="t4"), row(2, 0.84), row(4, 0.85, engine=""))
    assert (series.device, series.engine) == ("t4", "ddp")
    assert "device is not told of 2 of 3 runs: taken as t4 there too" in series.remarks
    assert "engine is not told of 1 of 3 runs: taken as ddp there too" in series.remarks
    (whole,) = table(row(1, 0.83, device="t4"), row(2, 0.84, device="t4"))
    assert not any("not told of" in line for line in whole.remarks)


def test_without_a_micro_batch_there_are_no_images_and_a_reason(table):
    (series,) = table(*(row(size, 1.0, micro="") for size in (1, 2, 4)))
    found = predict(calibrate(series), [8, 16])
    assert [one.images_per_s for one in found.points] == [None, None]
    assert "micro-batch is not told" in found.reasons["images_per_s"]
    assert found.knee == 16
    document = prediction_document(found)
    assert document["points"][0]["images_per_s"] is document["points"][0]["memory_bytes"] is None
