"""``load_personality`` straight from the Hub: it steers as the same adapter in memory does, also without the Hub."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hub_process import started
from small_hub import TOKEN, no_hub, small_hub

from npti_export import load_personality

REPO = "me/personalities"
LOAD = """
import json, sys, numpy, torch
from transformers import AutoModelForCausalLM
from npti_export import load_personality
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
options = json.loads(sys.argv[3])
with load_personality(model, "openness+", adapter=sys.argv[2], positions="all", **options), torch.no_grad():
    numpy.save(sys.argv[4], model(torch.arange(1, 11)[None]).logits.numpy())
"""


@pytest.fixture
def hub():
    with small_hub() as running:
        yield running


def logits(model, adapter):
    with load_personality(model, "openness+", adapter=adapter, positions="all"), torch.no_grad():
        return model(torch.arange(1, 11)[None]).logits.numpy()


def test_from_the_hub_by_revision_and_token_then_without_it(hub, tmp_path, tiny_llama, tiny_adapter):
    tiny_llama.save_pretrained(tmp_path / "model")
    tiny_llama.config._name_or_path = str(tmp_path / "model")
    older, newer = (tiny_adapter(tiny_llama, seed=seed, traits=("openness",)) for seed in (1, 2))
    first = hub.create(REPO, older.contents(REPO), private=True)
    hub.commit(REPO, newer.contents(REPO))

    def loaded(where, **options):
        place = tmp_path / "logits.npy"
        arguments = [str(tmp_path / "model"), REPO, json.dumps(options), str(place)]
        done = started(LOAD, arguments, where, tmp_path, token=None)
        assert done.returncode == 0, done.stderr
        return np.load(place)

    expected = {"older": logits(tiny_llama, older), "newer": logits(tiny_llama, newer)}
    assert not np.allclose(expected["older"], expected["newer"], atol=1e-2)
    np.testing.assert_allclose(loaded(hub, token=TOKEN), expected["newer"], atol=1e-4)
    np.testing.assert_allclose(loaded(hub, token=TOKEN, revision=first), expected["older"], atol=1e-4)
    with no_hub() as nowhere:
        np.testing.assert_allclose(loaded(nowhere), expected["newer"], atol=1e-4)
