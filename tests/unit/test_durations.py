"""How durations are written: the larger unit begins where the smaller one's rounding would reach it."""

import pytest

from vitscale.units import seconds


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3599.2, "59 min 59 s"), (3599.6, "1 h 00 min"), (-3599.99, "-1 h 00 min"), (12_000.0, "3 h 20 min"),
        (125.0, "2 min 05 s"), (4.56, "4.56 s"), (0.0123, "12.3 ms"), (850e-6, "850 µs"), (None, "n/a"),
    ],
)  # fmt: skip
def test_a_duration_is_written_in_the_unit_that_it_fills(value, text):
    assert seconds(value) == text
