"""The logit lens: what a direction in the residual stream adds to the logits."""

from __future__ import annotations

import torch
from tiny_models import tiny

from npti_export.steering.lens import Lens


def test_last_norm_without_weights_in_bfloat16() -> None:
    """OLMo's; the directions are brought to the head's dtype."""
    model = tiny("Olmo").to(torch.bfloat16)
    directions = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    centred = directions - directions.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    found = Lens.of(model).read(directions)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, normed @ model.lm_head.weight.float().T, rtol=0.02, atol=0.01)
