"""What a device needs beside the tensors, and whether it fits: against batches that fitted 24 GB or did not."""

import pytest
from benchmarks import memory_brackets as brackets
from benchmarks.memory_brackets import Bracket
from hypothesis import given
from hypothesis import strategies as st

from vitscale.cost import device_memory, models, vit
from vitscale.cost.device_memory import DeviceNeed

# Facts of pytorch-image-models, results/benchmark-train-amp-{nchw,nhwc}-pt112-cu113-rtx3090.csv (Apache-2.0): AMP,
# SGD with momentum. The benchmark begins at 512 and goes down until a batch fits, so the next larger one did not.
ROWS = (
    ("vit_small_patch16_224", 224, 384, 512),
    ("vit_base_patch32_384", 384, 256, 384),
    ("vit_large_patch32_224", 224, 256, 384),
    ("vit_base_patch16_224", 224, 192, 256),
    ("vit_small_patch16_384", 384, 64, 96),
    ("vit_large_patch16_224", 224, 64, 96),
    ("vit_base_patch16_384", 384, 32, 48),
    ("vit_base_patch8_224", 224, 24, 32),
    ("deit3_huge_patch14_224", 224, 16, 24),
    ("vit_large_patch16_384", 384, 12, 16),
    ("vit_giant_patch14_224", 224, 8, 12),
)


@pytest.mark.parametrize(("name", "img_size", "fits", "too_large"), ROWS)
def test_published_brackets_are_hit_or_missed_by_one_step(name, img_size, fits, too_large):
    row = Bracket(name, img_size, fits, too_large, "1.12")
    assert abs(brackets.steps_off(row)) <= 1
    assert brackets.need(row, fits).fit_probability(brackets.LIMIT_BYTES) > 0.1
    assert brackets.need(row, too_large).fit_probability(brackets.LIMIT_BYTES) < 0.7


def test_four_of_five_published_brackets_are_hit():
    off = [brackets.steps_off(Bracket(*row, "1.12")) for row in ROWS]
    assert sum(one == 0 for one in off) >= 0.8 * len(off)


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12))
def test_more_memory_never_fits_less(allocated, one, other):
    need, (small, large) = DeviceNeed("cuda", allocated, 10**9), sorted((one, other))
    assert 0 <= need.fit_probability(small) <= need.fit_probability(large) <= 1


def test_the_quantiles_are_those_of_the_probability():
    need = DeviceNeed("cuda", 10**10, 10**9)
    assert need.fit_probability(need.median_bytes) == pytest.approx(0.5, abs=1e-6)
    assert need.fit_probability(need.low95_bytes) == pytest.approx(0.025, abs=1e-4)
    assert need.fit_probability(need.high95_bytes) == pytest.approx(0.975, abs=1e-4)


def test_a_device_smaller_than_the_context_fits_nothing():
    assert DeviceNeed("cuda", 1, 10**9).fit_probability(10**9) == 0.0


@given(st.sampled_from(models.names()), st.integers(1, 64), st.sampled_from(["fp32", "bf16", "fp16", vit.AUTOCAST]))
def test_workspace_is_proportional_to_images_and_far_below_what_is_kept(name, micro_batch, precision):
    shape = models.shape(name)
    one = device_memory.workspace_bytes(shape, 1, precision)
    assert device_memory.workspace_bytes(shape, micro_batch, precision) == micro_batch * one
    assert 0 < one < vit.activation_bytes(shape, 1, precision)


# ViT-S/16 at 224, micro-batch 16 and 8, AdamW, fp32, launcher local: tensors by the closed forms, peak resident set.
PEAKS = ((1412, 2377), (922, 1871), (1412, 2804), (879, 2105), (1499, 2746), (922, 2191), (1586, 2906), (880, 2538))


def test_resident_sets_of_cpu_ranks_lie_where_the_range_says():
    needs = [(device_memory.device_need("cpu", allocated * 10**6), peak * 10**6) for allocated, peak in PEAKS]
    assert sum(need.low95_bytes <= peak <= need.high95_bytes for need, peak in needs) >= 7
    assert sum(peak > need.median_bytes for need, peak in needs) in (3, 4, 5)


def test_written_out_attention_grows_with_the_square_of_the_tokens():
    small, large = (models.shape("vit_base_patch16_224", img_size=size) for size in (224, 448))
    ratio = vit.scores_bytes(large, "bf16") / vit.scores_bytes(small, "bf16")
    assert ratio == pytest.approx((large.tokens / small.tokens) ** 2, rel=0.01)


def test_ranks_that_share_tokens_write_the_scores_of_own_heads_to_all_tokens():
    shape = models.shape("vit_base_patch16_gap_224", img_size=1024)  # 16 heads, 4,096 tokens
    whole, shared = (
        device_memory.workspace_bytes(shape, 1, "bf16", fused_attention=False, ranks=ranks) for ranks in (1, 4)
    )
    assert 4 * shared == whole
