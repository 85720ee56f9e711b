"""The four methods in the artefact: what each holds, what is checked of it, and how large a file becomes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_by_hand import base_model
from safetensors.numpy import load

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.base_model import LayerNeurons
from npti_export.adapter.neurons import NeuronSet
from npti_export.adapter.records import Method, PoleRecord, TraitRecord
from npti_export.adapter.residual import ResidualShift
from npti_export.errors import NptiError
from npti_export.traits import Pole


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def with_pole(adapter, trait, pole, **fields):
    """The adapter with some fields of a pole, or of its neurons, changed."""
    record = adapter.traits[trait].poles[pole]
    of_neurons = {name: value for name, value in fields.items() if hasattr(record.neurons, name)}
    of_pole = {name: value for name, value in fields.items() if name not in of_neurons}
    changed = replace(record, neurons=replace(record.neurons, **of_neurons), **of_pole)
    poles = {**adapter.traits[trait].poles, pole: changed}
    return adapter.with_trait(replace(adapter.traits[trait], poles=poles))


def test_every_method_is_read_equal_and_written_the_same(mixture, tmp_path):
    mixture.save_pretrained(tmp_path / "a")
    read = PersonalityAdapter.from_pretrained(tmp_path / "a")
    assert read == mixture
    read.save_pretrained(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    wit = load((tmp_path / "a" / "wit.safetensors").read_bytes())
    assert {name: (str(array.dtype), array.shape) for name, array in wit.items() if "residual" in name} == {
        "high.residual": ("float32", (1, 5)),
        "high.residual_layer": ("int16", (1,)),
        "low.residual": ("float32", (2, 5)),
        "low.residual_layer": ("int16", (2,)),
    }
    openness = load((tmp_path / "a" / "openness.safetensors").read_bytes())
    assert openness["high.expert"].dtype == np.int16
    assert not any("residual" in name for name in openness)


def test_equality_sees_the_residual(mixture):
    residual = mixture.traits["wit"].poles[Pole.LOW].residual
    assert with_pole(mixture, "wit", Pole.LOW, residual=replace(residual)) == mixture
    other = residual.vector.copy()
    other[1, 2] += 1
    assert with_pole(mixture, "wit", Pole.LOW, residual=replace(residual, vector=other)) != mixture
    assert with_pole(mixture, "wit", Pole.LOW, residual=None) != mixture


def residual(layers, shape, dtype=np.float32):
    return ResidualShift(np.array(layers, np.int16), np.ones(shape, dtype))


FOUR = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("trait", "pole", "change", "message"),
    [
        ("extraversion", Pole.HIGH, {"mean_difference": None}, "high: the tensor mean_difference is missing, which"),
        ("extraversion", Pole.HIGH, {"effect_size": None}, "high: the tensor effect_size is missing, which the method"),
        ("extraversion", Pole.HIGH, {"effect_size": FOUR * 0.79}, "below the method's min_effect_size of 0.8"),
        ("extraversion", Pole.HIGH, {"shift": FOUR}, "a shift is not gamma · mean difference with the gamma of 2.5"),
        ("extraversion", Pole.HIGH, {"gamma": 2.0}, "a shift is not gamma · mean difference with the gamma of 2 given"),
        ("extraversion", Pole.HIGH, {"target": -FOUR}, "high: a target is not above 0, and low caps these neurons"),
        ("extraversion", Pole.HIGH, {"residual": residual([0], (1, 5))}, "residual is there, and the method is mean-"),
        ("extraversion", Pole.HIGH, {"delta": FOUR * 2}, "high: a delta lies outside -1 to 1"),
        ("wit", Pole.HIGH, {"residual": None}, "high: the tensor residual is missing, and the method is hybrid"),
        ("wit", Pole.LOW, {"residual": None}, "low: the tensor residual is missing, and the method is residual"),
        ("wit", Pole.LOW, {"shift": FOUR[:3]}, "low: a shift is not 0 with"),
        ("wit", Pole.LOW, {"residual": residual([3], (1, 5))}, "a residual_layer lies outside 0 to 2"),
        ("wit", Pole.LOW, {"residual": residual([-1], (1, 5))}, "a residual_layer lies outside 0 to 2"),
        ("wit", Pole.LOW, {"residual": residual([1, 1], (2, 5))}, "the layers in residual_layer do not ascend"),
        ("wit", Pole.LOW, {"residual": residual([2, 1], (2, 5))}, "the layers in residual_layer do not ascend"),
        (
            "wit",
            Pole.LOW,
            {"residual": residual([1, 2], (1, 5))},
            r"residual is float32 \[1, 5\], expected float32 \[2, h",
        ),
        ("wit", Pole.LOW, {"residual": residual([1], (1, 0))}, r"residual is float32 \[1, 0\], expected"),
        ("wit", Pole.LOW, {"residual": residual([1], (5,))}, r"residual is float32 \[5\], expected"),
        ("wit", Pole.LOW, {"residual": residual([1], (1, 5), np.float64)}, r"residual is float64 \[1, 5\], expected"),
        ("wit", Pole.LOW, {"residual": residual([], (0, 5))}, r"residual_layer is int16 \[0\], expected int16 \[k\]"),
        (
            "wit",
            Pole.LOW,
            {"residual": residual([1], (1, 6))},
            "residuals are 5 and 6 wide; a model has one such width",
        ),
        (
            "openness",
            Pole.HIGH,
            {"expert": None},
            "high: the tensor expert is missing, and the base model has routed experts",
        ),
        ("openness", Pole.HIGH, {"expert": np.array([-1, -1, 4, 3], np.int16)}, r"neuron 1:5 \(expert 4\) is not in"),
        ("openness", Pole.HIGH, {"index": np.array([3, 7, 6, 0], np.int32)}, r"neuron 1:6 \(expert 0\) is not in"),
        ("openness", Pole.HIGH, {"index": np.array([3, 8, 5, 0], np.int32)}, r"neuron 1:8 \(expert -1\) is not in"),
    ],
)
def test_what_a_method_is_made_of_is_checked(mixture, tmp_path, trait, pole, change, message):
    with pytest.raises(NptiError, match=message):
        with_pole(mixture, trait, pole, **change).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_residual_that_is_not_finite(mixture, tmp_path, number):
    broken = residual([1], (1, 5))
    broken.vector[0, 3] = number
    with pytest.raises(NptiError, match="low: residual holds a value that is not finite"):
        with_pole(mixture, "wit", Pole.LOW, residual=broken).save_pretrained(tmp_path / "new")


def test_a_neuron_of_an_expert_that_stands_twice(mixture, tmp_path):
    record = mixture.traits["openness"].poles[Pole.LOW]
    index, expert = record.neurons.index, np.array([-1, 3, 3], np.int16)
    with pytest.raises(NptiError, match="neuron 1:5 of expert 3 stands there twice"):
        with_pole(mixture, "openness", Pole.LOW, index=index, expert=expert).save_pretrained(tmp_path / "new")


def test_the_rules_of_the_methods():
    target, delta, mean = (np.array(numbers, np.float32) for numbers in ([2.0], [0.15], [-0.5]))
    assert Method().shift(1.5, target, delta).tolist() == [1.5]  # f(0.15) is one half, to float32
    assert Method("mean-shift").shift(1.5, target, delta, mean).tolist() == [-0.75]
    assert Method("hybrid").shift(1.5, target, delta, mean).tolist() == [-0.75]
    assert Method("residual").shift(1.5, target, delta).tolist() == [0.0]
    assert Method("fitted").shift(1.5, target, delta).tolist() == [0.0]
    with pytest.raises(NptiError, match="mean-shift moves neurons by their mean difference, which is not given"):
        Method("mean-shift").shift(1.5, target, delta)


def large(layers, widths, count):
    """One trait with ``count`` neurons a pole and every array that there is."""
    random = np.random.default_rng(0)
    model = base_model("meta-llama/Meta-Llama-3-8B-Instruct", num_layers=layers, neurons_per_layer=(widths,) * layers)
    width = widths.dense or widths.per_expert
    experts = max(1, widths.experts)
    poles = {}
    for pole in Pole:
        flat = np.sort(random.choice(layers * experts * width, count, replace=False))
        target = random.uniform(0.05, 3, count).astype(np.float32)
        delta = random.uniform(0.1, 0.9, count).astype(np.float32)
        set_ = NeuronSet(
            layer=(flat // (experts * width)).astype(np.int16),
            index=(flat % width).astype(np.int32),
            shift=Method().shift(1.4, target, delta),
            target=target,
            delta=delta,
            expert=(flat // width % experts).astype(np.int16) if widths.experts else None,
            mean_difference=target,
            effect_size=delta,
        )
        poles[pole] = PoleRecord(set_, 1.4)
    return PersonalityAdapter(model, {"conscientiousness": TraitRecord("conscientiousness", poles)})


@pytest.mark.parametrize(
    ("layers", "widths", "bytes_of_one"),
    [(32, LayerNeurons(dense=14336), 26), (94, LayerNeurons(experts=128, per_expert=1536), 28)],
    ids=["dense", "mixture of experts"],
)
def test_a_neuron_takes_26_bytes_28_with_experts_and_a_file_2_kb_beside(tmp_path, layers, widths, bytes_of_one):
    made = large(layers, widths, 20_000)
    made.save_pretrained(tmp_path)
    size = (tmp_path / "conscientiousness.safetensors").stat().st_size
    assert size <= 2 * 20_000 * bytes_of_one + 2000
    assert PersonalityAdapter.from_pretrained(tmp_path) == made


def test_a_header_may_describe_every_layer_by_itself(tmp_path, tamper, adapter):
    """As the first adapters had it, before layers that are alike became one entry."""

    def one_by_one(header):
        (entry,) = header["neurons_per_layer"]
        assert entry.pop("layers") == 3
        header["neurons_per_layer"] = [entry] * 3

    assert PersonalityAdapter.from_pretrained(tamper(header=one_by_one)) == adapter
