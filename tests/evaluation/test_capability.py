"""Tasks of lm-eval on the steered model: unsteered as lm-eval alone, steered as the tokens say one by one."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from adapters_for_tests import make_adapter
from chat_models import tiny_chat_model, tiny_tokenizer
from one_by_one import logits_one_by_one

from npti_export.cli.further import task_names
from npti_export.errors import NptiError
from npti_export.evaluation.capability import by_document, measure_capability
from npti_export.evaluation.dose.capability_budget import SHARES, within_capability
from npti_export.evaluation.dose.trial import with_dose
from npti_export.traits import Pole

pytestmark = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")

CHOICES = ["no", "yes", "a", "b, that is"]
MULTIPLE_CHOICE = """\
task: parity
output_type: multiple_choice
doc_to_text: "Is {{number}} even?"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: mcc}]
"""
GENERATION = """\
task: echo
output_type: generate_until
doc_to_text: "Say {{number}}"
doc_to_target: "{{number}}"
generation_kwargs: {max_gen_toks: 8, until: ["\\n"]}
metric_list: [{metric: exact_match}]
"""
CORPUS = """\
task: corpus
output_type: multiple_choice
doc_to_text: "Is {{number}} even?"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: mcc}]
"""


def task_file(folder: Path, text: str) -> str:
    """A task of 10 documents, which needs nothing but these two files."""
    docs = [{"number": 3 * n, "choices": CHOICES, "answer": n % 2} for n in range(10)]
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    name = text.split()[1]
    data = (
        f"dataset_path: json\ntest_split: test\n"
        f"dataset_kwargs: {{cache_dir: {folder / 'cache'}, data_files: {{test: {folder / 'docs.jsonl'}}}}}\n"
    )
    path = folder / f"{name}.yaml"
    path.write_text(text + data)
    return str(path)


@pytest.fixture
def model():
    return tiny_chat_model(context=64)


def alone(model, tasks: list[str]) -> dict:
    """lm-eval without us."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    plain = HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=4)
    manager = TaskManager(include_defaults=False)
    return simple_evaluate(model=plain, tasks=tasks, task_manager=manager, log_samples=True, bootstrap_iters=2)


@pytest.mark.slow
def test_unsteered_is_lm_eval_alone(model, tmp_path: Path) -> None:
    tasks = [task_file(tmp_path, MULTIPLE_CHOICE), task_file(tmp_path, GENERATION)]
    results = alone(model, tasks)
    adapter = make_adapter(model)
    measured = measure_capability(model, tiny_tokenizer(), adapter, ["openness+"], tasks, batch_size=4)
    unsteered = measured.of("unsteered")
    assert [(score.task, score.metric) for score in unsteered] == [
        ("parity", "acc,none"),
        ("parity", "acc_norm,none"),
        ("echo", "exact_match,none"),
    ]  # the correlation is no mean over documents
    for score in unsteered:
        of_task = results["results"][score.task]
        assert score.value == of_task[score.metric]
        assert score.error == pytest.approx(of_task[score.metric.replace(",", "_stderr,")])
        assert (score.documents, score.change) == (10, None)


@pytest.mark.slow
def test_unsteered_likelihoods_are_lm_evals(model, tmp_path: Path) -> None:
    from npti_export import load_personality
    from npti_export.evaluation.lm_eval_model import LoadedTasks, SteeredLM

    tasks = [task_file(tmp_path, MULTIPLE_CHOICE), task_file(tmp_path, GENERATION)]
    expected = alone(model, tasks)["samples"]
    with load_personality(model, "neutral", make_adapter(model)) as personality:
        found = LoadedTasks(tasks, None).evaluate(SteeredLM(model, tiny_tokenizer(), personality, 4))["samples"]
    for task in ("parity", "echo"):
        for mine, theirs in zip(found[task], expected[task], strict=True):
            assert mine["arguments"] == theirs["arguments"]
            if task == "echo":
                assert mine["resps"] == theirs["resps"]
                continue
            pairs = zip(mine["resps"], theirs["resps"], strict=True)
            for ((log_probability, greedy),), ((its, its_greedy),) in pairs:
                assert float(log_probability) == pytest.approx(float(its), abs=1e-4)
                assert greedy == its_greedy


@pytest.mark.slow
@torch.no_grad()
def test_steered_choices_are_those_of_tokens_fed_one_by_one(model, tmp_path: Path) -> None:
    adapter, tokenizer = make_adapter(model), tiny_tokenizer()
    tasks = [task_file(tmp_path, MULTIPLE_CHOICE)]
    measured = measure_capability(model, tokenizer, adapter, ["openness+"], tasks, batch_size=4)
    right = {"unsteered": [], "openness+": []}
    for n in range(10):
        prompt = tokenizer(f"Is {3 * n} even?")["input_ids"]
        for name, steer in (("unsteered", False), ("openness+", True)):
            scores = []
            for choice in CHOICES:
                said = tokenizer(f" {choice}")["input_ids"]
                steered = [steer and at >= len(prompt) - 1 for at in range(len(prompt) + len(said))]
                logits = logits_one_by_one(model, adapter, torch.tensor(prompt + said), steered)
                of_said = logits[len(prompt) - 1 : -1].log_softmax(-1)
                scores.append(float(of_said[range(len(said)), said].sum()))
            right[name].append(float(np.argmax(scores) == n % 2))
    for name, values in right.items():
        accuracy = measured.of(name)[0]
        assert (accuracy.task, accuracy.metric, accuracy.value) == ("parity", "acc,none", np.mean(values))
    change = measured.of("openness+")[0].change
    assert change is not None
    assert change.mean == pytest.approx(100 * (np.mean(right["openness+"]) - np.mean(right["unsteered"])))
    assert change.low <= change.mean <= change.high
    assert not any("npti" in type(module).__module__ for module in model.modules())  # the model is as it was


def test_a_group_is_all_its_documents() -> None:
    """lm-eval knows groups among its own tasks only, which need the network; this is what it returns of one."""
    samples = {
        "first": [{"filter": "none", "acc": value} for value in (1.0, 0.0)],
        "second": [{"filter": "none", "acc": value} for value in (1.0, 1.0, 0.0, 1.0)],
    }
    of_task = {name: {"alias": name, "acc,none": np.mean([s["acc"] for s in of])} for name, of in samples.items()}
    results = {"results": of_task, "samples": samples, "group_subtasks": {"both": ["second", "first"]}}
    ((metric, values),) = by_document(results, "both")
    assert (metric, values.tolist()) == ("acc,none", [1, 0, 1, 1, 0, 1])
    of_task["first"]["acc,none"] = 0.9  # no mean over its documents
    assert list(by_document(results, "both")) == []
    assert [metric for metric, _ in by_document(results, "second")] == ["acc,none"]


@pytest.mark.slow
def test_what_cannot_be_measured_is_refused(model, tmp_path: Path) -> None:
    adapter = make_adapter(model)
    with pytest.raises(NptiError, match="corpus has no score that is a mean over documents"):
        measure_capability(model, tiny_tokenizer(), adapter, [], [task_file(tmp_path, CORPUS)])
    broken = tmp_path / "broken.yaml"
    broken.write_text("task: broken\noutput_type: multiple_choice\ndataset_path: json\n")
    with pytest.raises(NptiError, match=r"tasks .*broken\.yaml cannot be loaded by lm-eval"):
        measure_capability(model, tiny_tokenizer(), adapter, [], [str(broken)])
    with pytest.raises(NptiError, match="wit"):
        measure_capability(model, tiny_tokenizer(), adapter, ["wit+"], [str(broken)])


def test_task_files_that_are_not_there_are_refused() -> None:
    with pytest.raises(NptiError, match=r"There is no task file none\.yaml"):
        task_names("gsm8k,none.yaml")
    with pytest.raises(NptiError, match="names no task"):
        task_names(" , ")
    assert task_names("gsm8k, mmlu") == ["gsm8k", "mmlu"]


@pytest.mark.slow
def test_a_dose_that_loses_too_much_is_brought_down_and_no_other(model, tmp_path: Path) -> None:
    adapter, tasks = make_adapter(model, seed=3), [task_file(tmp_path, MULTIPLE_CHOICE)]
    arguments = (model, tiny_tokenizer(), adapter, ["openness"], tasks)
    same, at_whole = within_capability(*arguments, max_points=100.0)
    assert same == adapter
    assert [(found.share, found.affordable) for found in at_whole] == [(1.0, True)] * 2
    none, least = within_capability(*arguments, max_points=-100.0)
    assert [(found.share, found.affordable) for found in least] == [(SHARES[-1], False)] * 2
    for found in least:
        pole = Pole.HIGH if found.personality.endswith("+") else Pole.LOW
        record = adapter.traits["openness"].poles[pole]
        assert none.traits["openness"].poles[pole] == with_dose(record, record.gamma * SHARES[-1])
        measured = measure_capability(model, tiny_tokenizer(), none, [found.personality], tasks)
        assert max(-score.change.mean for score in measured.of(found.personality)) == found.points
    # A budget between what the poles lose brings down the worse one alone.
    worse = max(at_whole, key=lambda found: found.points)
    better = min(at_whole, key=lambda found: found.points)
    if worse.points > better.points:
        _, between = within_capability(*arguments, max_points=(worse.points + better.points) / 2)
        shares = {found.personality: found.share for found in between}
        assert shares[better.personality] == 1.0
        assert shares[worse.personality] < 1.0
