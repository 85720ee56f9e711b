"""An adapter's folder: written the same every time, read back equal, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_by_hand import base_model, neurons, trait_record
from safetensors import safe_open
from safetensors.numpy import load

from npti_export.adapter.adapter import PersonalityAdapter, read_base_model
from npti_export.adapter.base_model import LayerNeurons
from npti_export.adapter.records import DosePoint, Method, PoleRecord, TraitRecord
from npti_export.adapter.residual import ResidualShift
from npti_export.errors import NptiError
from npti_export.traits import Pole

STEADY = settings(deadline=None, derandomize=True)

FILES = ["README.md", "config.json", "neuroticism.safetensors", "openness.safetensors", "wit.safetensors"]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_saved_read_and_saved_again_is_the_same_adapter_and_the_same_bytes(adapter, folder, tmp_path):
    read = PersonalityAdapter.from_pretrained(folder)
    assert read == adapter
    assert list(read.traits) == list(adapter.traits) == ["openness", "neuroticism", "wit"]
    read.save_pretrained(str(tmp_path / "again"))
    assert contents(tmp_path / "again") == contents(folder)
    assert sorted(contents(folder)) == FILES
    read.save_pretrained(folder)
    assert contents(tmp_path / "again") == contents(folder)


def test_equality_sees_every_part(adapter):
    openness = adapter.traits["openness"]
    high = openness.poles[Pole.HIGH]
    target = high.neurons.target.copy()
    target[2] = np.nextafter(target[2], np.float32(9))

    def with_high(record):
        return adapter.with_trait(replace(openness, poles={**openness.poles, Pole.HIGH: record}))

    assert with_high(replace(high)) == adapter
    assert with_high(replace(high, neurons=replace(high.neurons, target=target))) != adapter
    assert with_high(replace(high, neurons=replace(high.neurons, effect_size=None))) != adapter
    assert with_high(replace(high, dose_curve=(DosePoint(0.7, 0.31, 1.26),))) != adapter
    assert replace(adapter, base_model=base_model("someone/other")) != adapter
    assert replace(adapter, traits={"openness": openness}) != adapter


def test_order_of_traits_and_poles_does_not_change_the_bytes(adapter, folder, tmp_path):
    turned = {
        name: replace(trait, poles=dict(reversed(trait.poles.items())))
        for name, trait in reversed(adapter.traits.items())
    }
    replace(adapter, traits=turned).save_pretrained(tmp_path / "turned")
    assert contents(tmp_path / "turned") == contents(folder)


def test_another_process_writes_the_same_bytes(adapter, folder, tmp_path):
    program = (
        "import sys; from npti_export.adapter.adapter import PersonalityAdapter;"
        "PersonalityAdapter.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", program, folder, tmp_path / "other"], check=True, env=environment)
    assert contents(tmp_path / "other") == contents(folder)


def test_whole_numbers_are_written_as_they_will_be_read(adapter, tmp_path):
    record = adapter.traits["wit"].poles[Pole.HIGH]
    target, delta = record.neurons.target, record.neurons.delta
    method = Method(percentile=90, steepness=10, midpoint=0, min_difference=0)
    whole = PoleRecord(
        replace(record.neurons, shift=method.shift(1, target, delta)), 1, method, dose_curve=(DosePoint(1, 0, 1),)
    )
    changed = adapter.with_trait(TraitRecord("wit", {**adapter.traits["wit"].poles, Pole.HIGH: whole}))
    changed.save_pretrained(tmp_path / "a")
    PersonalityAdapter.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert PersonalityAdapter.from_pretrained(tmp_path / "a") == changed


def test_the_config_is_as_the_format_describes(folder):
    data = (folder / "config.json").read_bytes()
    config = json.loads(data)
    assert set(config) == {"format_version", "library_name", "config_sha256", "base_model", "traits"}
    assert (config["format_version"], config["library_name"]) == (1, "npti-export")
    assert data == (json.dumps(config, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()
    emptied = data.replace(config["config_sha256"].encode(), b"")
    assert hashlib.sha256(emptied).hexdigest() == config["config_sha256"]
    openness = config["traits"]["openness"]
    assert openness["sha256"] == hashlib.sha256((folder / "openness.safetensors").read_bytes()).hexdigest()
    assert openness["file"] == "openness.safetensors"
    assert config["base_model"]["neurons_per_layer"] == [{"dense": 12, "experts": 0, "per_expert": 0, "shared": 0}] * 3
    assert openness["poles"]["low"] == {
        "neurons": 3,
        "gamma": 0.7,
        "calibrated": False,
        "caps": "none",
        "positions": "all",
        "dropout": 0.1,
        "method": {
            "name": "npti",
            "min_difference": 0.1,
            "percentile": 95.0,
            "shift": {"kind": "sigmoid", "steepness": 10.0, "midpoint": 0.15},
        },
        "dose_curve": [],
        "scores": {},
    }


def test_a_traits_file_says_by_itself_what_it_belongs_to(folder):
    with safe_open(folder / "openness.safetensors", "numpy") as file:
        assert list(file.metadata()) == ["npti_export"]
        text = file.metadata()["npti_export"]
        assert {name: str(file.get_tensor(name).dtype) for name in file.keys() if name.startswith("low")} == {  # noqa: SIM118
            "low.layer": "int16",
            "low.index": "int32",
            "low.shift": "float32",
            "low.target": "float32",
            "low.delta": "float32",
            "low.mean_difference": "float32",
            "low.effect_size": "float32",
        }
    header = json.loads(text)
    assert text == json.dumps(header, sort_keys=True, separators=(",", ":"))
    assert set(header) == {"format_version", "base_model", "trait", "num_layers", "neurons_per_layer", "poles"}
    assert (header["trait"], header["base_model"], header["num_layers"]) == ("openness", "someone/small-chat", 3)
    assert header["poles"]["high"]["method"]["name"] == "npti"


def test_the_shift_on_disk_is_gamma_target_f_delta(folder):
    config = json.loads((folder / "config.json").read_bytes())
    for name, trait in config["traits"].items():
        tensors = load((folder / f"{name}.safetensors").read_bytes())
        for pole, fields in trait["poles"].items():
            numbers = zip(*(tensors[f"{pole}.{what}"] for what in ("shift", "target", "delta")), strict=True)
            for shift, target, delta in numbers:
                weight = 1 / (1 + math.exp(-10 * (abs(float(delta)) - 0.15)))
                assert shift == pytest.approx(fields["gamma"] * float(target) * weight, rel=2**-23)


FLOATS = st.floats(np.float32(1e-6), 1, width=32)


@STEADY
@given(
    arrays(np.float32, 5, elements=FLOATS),
    arrays(np.float32, 5, elements=FLOATS),
    st.floats(0, 10),
    st.floats(0, 1e300),
    st.floats(0, 1),
)
def test_shift_for_any_numbers(target, delta, gamma, steepness, midpoint):
    def exact(a, d):
        exponent = -steepness * (float(d) - midpoint)
        return gamma * float(a) * (1 / (1 + math.exp(exponent)) if exponent < 700 else 0.0)

    shift = Method(steepness=steepness, midpoint=midpoint).shift(gamma, target, delta)
    assert shift.dtype == np.float32
    expected = np.array([exact(a, d) for a, d in zip(target, delta, strict=True)])
    np.testing.assert_allclose(shift, expected, rtol=2e-7, atol=1e-44)


def test_experts_and_the_shared_one(tmp_path):
    mixture = base_model(layer=LayerNeurons(experts=4, per_expert=6, shared=8))
    # As the format sorts them: -1, the shared expert, comes before the routed ones.
    places = [(0, -1, 7), (0, 0, 5), (0, 3, 0), (2, 3, 5)]
    poles = {pole: PoleRecord(neurons(places, 1.4, at, experts=True), 1.4) for at, pole in enumerate(Pole)}
    made = PersonalityAdapter(mixture, {"wit": TraitRecord("wit", poles)})
    made.save_pretrained(tmp_path / "mixture")
    read = PersonalityAdapter.from_pretrained(tmp_path / "mixture")
    assert read == made
    assert read.traits["wit"].poles[Pole.LOW].neurons.expert.tolist() == [-1, 0, 3, 3]


def test_a_pole_without_any_neuron_and_an_adapter_without_any_trait(tmp_path):
    poles = {pole: PoleRecord(neurons([], 1.4, 0), 1.4) for pole in Pole}
    for name, traits in (("none", {}), ("empty", {"wit": TraitRecord("wit", poles)})):
        made = PersonalityAdapter(base_model(), traits)
        made.save_pretrained(tmp_path / name)
        assert PersonalityAdapter.from_pretrained(tmp_path / name) == made


def test_a_trait_is_added_or_replaced_in_canonical_order(adapter):
    grown = adapter.with_trait(trait_record("extraversion"))
    assert list(grown.traits) == ["openness", "extraversion", "neuroticism", "wit"]
    replaced = grown.with_trait(trait_record("openness", seed=77))
    assert list(replaced.traits) == list(grown.traits)
    assert replaced.traits["openness"] != grown.traits["openness"]
    assert adapter.traits.keys() == {"openness", "neuroticism", "wit"}


def test_the_adapters_own_traits_are_the_ones_that_a_spec_may_name(adapter):
    assert str(adapter.personality("WIT-, openness+2")) == "openness+2,wit-"
    with pytest.raises(NptiError, match=r"there is no trait 'extraversion' \(there is openness, neuroticism, wit\)"):
        adapter.personality("extraversion+")


def test_what_it_prints(adapter):
    assert repr(adapter) == "PersonalityAdapter(someone/small-chat: openness 4+/3-, neuroticism 4+/3-, wit 4+/3-)"
    assert repr(PersonalityAdapter(base_model(), {})) == "PersonalityAdapter(someone/small-chat: no traits)"


def test_what_it_prints_of_other_methods_than_the_papers(mixture):
    assert repr(mixture) == (
        "PersonalityAdapter(someone/mixture: openness 4+/3-, extraversion 4+ mean-shift/3-, wit 4+ hybrid/3- residual)"
    )


def test_the_base_model_is_read_from_the_config_alone(adapter, folder):
    for path in folder.glob("*.safetensors"):
        path.unlink()
    assert read_base_model(folder) == adapter.base_model


def test_files_that_are_links_as_in_the_cache_of_the_hub_are_read_and_never_written_through(adapter, folder, tmp_path):
    blobs = tmp_path / "models--user--name" / "blobs"
    blobs.parent.mkdir()
    folder.rename(blobs)
    folder = blobs.parent / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).symlink_to(f"../../blobs/{name}")
    before = contents(blobs)
    assert PersonalityAdapter.from_pretrained(folder) == adapter
    adapter.with_trait(trait_record("wit", seed=88)).save_pretrained(folder)
    assert contents(blobs) == before
    assert not (folder / "wit.safetensors").is_symlink()
    assert PersonalityAdapter.from_pretrained(folder) != adapter


def test_what_lies_beside_an_adapter_stays(adapter, folder):
    (folder / "transcripts").mkdir()
    (folder / "transcripts" / "openness.jsonl").write_text("{}\n")
    (folder / "notes.txt").write_text("mine")
    adapter.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "transcripts", "notes.txt"])
    assert PersonalityAdapter.from_pretrained(folder) == adapter


@contextmanager
def full_disk():
    """No file may grow above 2 KB within the block: the tensors fit, config.json does not.

    Round the call alone, since the limit holds for the file that the test runner's own output may go to as well.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_leaves_the_adapter_that_was_there(adapter, folder):
    before = contents(folder)
    message = r"cannot be written to .*adapter \(File too large\); choose another"
    with pytest.raises(NptiError, match=message), full_disk():
        adapter.with_trait(trait_record("wit", seed=88)).save_pretrained(folder)
    assert contents(folder) == before


def test_a_write_that_fails_leaves_nothing_half_written(adapter, tmp_path):
    with pytest.raises(NptiError, match="cannot be written"), full_disk():
        adapter.save_pretrained(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_in_the_place_of_a_file_is_found_before_anything_is_written(adapter, tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(NptiError, match=r"config.json is a folder"):
        adapter.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_file_in_the_place_of_the_folder(adapter, tmp_path):
    (tmp_path / "taken").write_text("mine")
    for place in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(NptiError, match="cannot be written to"):
            adapter.save_pretrained(place)
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": {"local": {"effect": [math.nan, 0.0, 0.0]}}}, "config holds what JSON cannot"),
        ({"scores": {"local": np.float32(1)}}, "config holds what JSON cannot"),
        ({"positions": "sometimes"}, "positions: Input should be"),
        ({"caps": "both"}, "caps: Input should be"),
        ({"dropout": 1.0}, "dropout: Input should be less than 1"),
        ({"gamma": -0.7}, "shift is not gamma"),
        ({"gamma": math.inf}, "shift is not gamma"),
        ({"method": Method(name="magic")}, "method.name: Input should be 'npti'"),
        ({"method": Method(name="mean-shift")}, "method mean-shift has no min_effect_size, which it is made of"),
        ({"method": Method(min_effect_size=0.8)}, "method npti has no min_effect_size, and 0.8 was given"),
        ({"residual": ResidualShift(np.array([1], np.int16), np.ones((1, 4), np.float32))}, "residual is there, and"),
        ({"method": Method(percentile=100.0)}, "percentile: Input should be less than 100"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(adapter, tmp_path, change, message):
    wit = adapter.traits["wit"]
    record = replace(wit.poles[Pole.LOW], **change)
    broken = adapter.with_trait(replace(wit, poles={**wit.poles, Pole.LOW: record}))
    with pytest.raises(NptiError, match=message):
        broken.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["neutral", "Wit", "../wit", "", "wit "])
def test_names_that_no_trait_may_have(tmp_path, name):
    with pytest.raises(NptiError, match=r"neutral|pattern"):
        PersonalityAdapter(base_model(), {name: trait_record(name)}).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_trait_under_another_name_and_a_trait_of_one_pole(tmp_path):
    with pytest.raises(NptiError, match="The trait under 'bite' is called 'wit'"):
        PersonalityAdapter(base_model(), {"bite": trait_record("wit")})
    half = trait_record("wit")
    del half.poles[Pole.LOW]
    with pytest.raises(NptiError, match=r"wit has the poles \['high'\], expected high and low"):
        PersonalityAdapter(base_model(), {"wit": half}).save_pretrained(tmp_path / "new")
