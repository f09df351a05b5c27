"""Memory of a predicted rank is that of its optimizer and knobs."""

from dataclasses import replace

import pytest

from vitscale.cost import models, vit
from vitscale.cost.scaling import Layout
from vitscale.predict.candidates import Candidate, Pool, Way, needed
from vitscale.predict.memory import rank_bytes
from vitscale.predict.series import Series

MODEL = "vit_base_patch16_224"
AT = Layout(1, 1, 64, 1)
SERIES = Series("memory", (), model=MODEL, engine="ddp", precision="fp32")
WEIGHTS = vit.parameters(models.shape(MODEL))


@pytest.mark.parametrize(
    ("optimizer", "moments"), [(None, 2), ("adamw", 2), ("AdamW", 2), ("Adam", 2), ("LAMB", 2), ("sgd", 1), ("lion", 1)]
)
def test_memory_is_the_optimizers(optimizer, moments):
    two = rank_bytes(SERIES, AT)
    assert rank_bytes(replace(SERIES, optimizer=optimizer), AT) == two - 4 * WEIGHTS * (2 - moments)


def test_memory_of_an_optimizer_that_is_not_known_is_not_told():
    assert rank_bytes(replace(SERIES, optimizer="shampoo"), AT) is None


def test_checkpointed_activations_are_not_kept():
    whole, again = (rank_bytes(replace(SERIES, knobs=knobs), AT) for knobs in ({}, {"activation_checkpointing": True}))
    assert again < 0.5 * whole


def test_a_candidate_of_a_checkpointed_study_needs_less():
    one = Candidate(Pool("h100", 1, None, None), Way("ddp", None, "fp32"), AT)
    whole, again = (needed(one, models.shape(MODEL), "adamw", checkpointing=given) for given in (False, True))
    assert again.median_bytes < 0.6 * whole.median_bytes
