"""An adapter that this release cannot apply in full is refused when its tables are built, never applied in part."""

from __future__ import annotations

import pytest
from made_by_hand import every_method

from npti_export.errors import NptiError
from npti_export.steering.tables import steering_rows

WIDTHS = [12, 8, 8]


@pytest.mark.parametrize(
    ("personality", "message"),
    [
        ("wit+", "Personality wit\\+: the method hybrid adds to the residual stream, which this release cannot do"),
        ("openness+,wit-0.5", "routed experts cannot be steered"),
        ("wit-0.5", "Personality wit-0.5: the method residual adds to the residual stream"),
        ("openness+", "routed experts cannot be steered"),
        ("extraversion-", "routed experts cannot be steered"),
    ],
)
def test_residuals_and_experts_are_refused(personality, message):
    adapter = every_method()
    with pytest.raises(NptiError, match=message):
        steering_rows(adapter, adapter.personality(personality), WIDTHS)
