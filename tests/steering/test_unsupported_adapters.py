"""An adapter that this release cannot apply in full is refused when its tables are built, never applied in part."""

from __future__ import annotations

import pytest
from made_by_hand import every_method

from npti_export.errors import NptiError
from npti_export.steering.tables import steering_rows

WIDTHS = [12, 8, 8]


@pytest.mark.parametrize("personality", ["wit+", "openness+,wit-0.5", "wit-0.5", "openness+", "extraversion-"])
def test_experts_are_refused(personality):
    adapter = every_method()
    with pytest.raises(NptiError, match="routed experts cannot be steered"):
        steering_rows(adapter, adapter.personality(personality), WIDTHS)
