"""A model whose layers lie in several places (``device_map``) is measured as one that lies in one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from identify_process import TOKENIZER, chat_model, personas, questions
from transformers import AutoModelForCausalLM

from npti_export.cli import main
from npti_export.identification.elicit import elicit, plan
from npti_export.identification.measure import measure
from npti_export.identification.statistics import SUMS
from npti_export.pipeline import work_with

pytest.importorskip("accelerate")


def test_layers_in_memory_and_on_disk(tmp_path: Path) -> None:
    plain = chat_model()
    plain.save_pretrained(tmp_path / "tiny-chat")
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{layer}": "disk" if layer == 1 else "cpu" for layer in range(3)}
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path / "tiny-chat", device_map=places, offload_folder=tmp_path / "weights"
    )
    spread.generation_config = plain.generation_config
    assert any(parameter.is_meta for parameter in spread.parameters())
    planned = plan(questions("openness", 6), personas("openness"), seed=0)
    found = []
    for model in (plain, spread):
        work = work_with(model, TOKENIZER, batch_size=8)
        transcripts = elicit(model, TOKENIZER, planned, decoding=work.decoding)
        found.append((transcripts, measure(model, TOKENIZER, work.sites, transcripts, batch_size=8)))
    assert found[0][0] == found[1][0]
    one, other = found[0][1], found[1][1]
    assert one.whole.tokens > 50
    for name in SUMS:
        assert np.array_equal(getattr(one.whole, name), getattr(other.whole, name))
    assert np.array_equal(one.histogram, other.histogram)
    assert one.stream is not None
    assert np.array_equal(one.stream, other.stream)


def test_the_option_that_spreads_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a GPU all of it lies in memory; what comes out is that of a model that was put there."""
    chat_model().save_pretrained(tmp_path / "tiny-chat")
    TOKENIZER.save_pretrained(tmp_path / "tiny-chat")
    lines = [{"pole": pole, "question": f"{at}?", "answer": f"{pole} {at}"} for pole in ("high", "low") for at in "ab"]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ["--trait", "openness", "--model", str(tmp_path / "tiny-chat"), "-q", "--json"]
    for device in ("auto", "all"):
        where = ["--device", device, "--output", str(tmp_path / device)]
        for stage in (["elicit", "--transcripts", str(tmp_path / "given.jsonl")], ["measure"]):
            with pytest.raises(SystemExit) as stopped:
                main([*stage, *given, *where])
            assert stopped.value.code == 0, capsys.readouterr().err
    for pole in ("high", "low"):
        written = [tmp_path / device / "statistics" / f"openness_{pole}.safetensors" for device in ("auto", "all")]
        assert written[0].read_bytes() == written[1].read_bytes()
