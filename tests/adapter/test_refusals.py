"""Every way in which an adapter's folder can be wrong is refused with one sentence that names the file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_by_hand import base_model, write_config
from safetensors.numpy import load, save

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.config import read_config
from npti_export.errors import NptiError

STEADY = settings(deadline=None, derandomize=True)


def refusal(folder):
    """The sentence with which the folder is refused."""
    with pytest.raises(NptiError) as caught:
        PersonalityAdapter.from_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def test_the_way_of_tampering_is_itself_taken(tamper, adapter):
    assert PersonalityAdapter.from_pretrained(tamper()) == adapter


def put(name, value):
    def change(tensors):
        tensors[name] = value(tensors[name]) if callable(value) else value

    return change


def at(position, value):
    def change(array):
        array = array.copy()
        array[position] = value
        return array

    return change


def reversed_high(tensors):
    for name in list(tensors):
        if name.startswith("high."):
            tensors[name] = np.ascontiguousarray(tensors[name][::-1])


def residual_for_low(layer, vector):
    def change(tensors):
        tensors["low.residual_layer"] = layer.astype(np.int16)
        tensors["low.residual"] = vector.astype(np.float32)

    return change


def shortened_high(tensors):
    for name in list(tensors):
        if name.startswith("high."):
            tensors[name] = tensors[name][:-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("high.index", lambda a: a[:-1]), "high: index is int32 [3], expected int32 [4]"),
        (put("high.target", lambda a: a.reshape(2, 2)), "high: target is float32 [2, 2], expected float32 [4]"),
        (put("high.layer", np.array(1, np.int16)), "high: layer is int16 [], expected int16 [1]"),
        (put("low.layer", lambda a: a.astype(np.int32)), "the tensor 'low.layer' is 'I32', expected 'I16'"),
        (put("low.shift", lambda a: a.astype(np.float64)), "the tensor 'low.shift' is 'F64', expected 'F32'"),
        (put("low.index", lambda a: a.astype(np.uint32)), "the tensor 'low.index' is 'U32', expected 'I32'"),
        (put("low.expert", np.zeros(3, np.int32)), "the tensor 'low.expert' is 'I32', expected 'I16'"),
        (put("high.layer", at(3, 3)), "high: a layer lies outside 0 to 2"),
        (put("high.layer", at(0, -1)), "high: a layer lies outside 0 to 2"),
        (put("high.index", at(3, 12)), "neuron 2:12 (expert -1) is not in the base model"),
        (put("high.index", at(0, -1)), "neuron 0:-1 (expert -1) is not in the base model"),
        (put("low.expert", np.zeros(3, np.int16)), "(expert 0) is not in the base model, whose layer 0 has 0 experts"),
        (put("low.expert", np.full(3, -2, np.int16)), "(expert -2) is not in the base model"),
        (put("low.expert", np.full(3, -1, np.int16)), "low: the tensor expert is there, and the base model has no"),
        (put("low.index", lambda a: a.reshape(3, 1, 1)), "'low.index' has the shape [3, 1, 1], expected one or two"),
        (put("low.residual", np.ones((1, 4), np.float32)), "low has one of residual and residual_layer; both or"),
        (residual_for_low(np.array([1]), np.ones((1, 4))), "low: the tensor residual is there, and the method is npti"),
        (put("high.delta", at(1, 1.5)), "high: a delta lies outside -1 to 1"),
        (put("high.delta", at(1, 0.0)), "high: a delta is not above 0"),
        (put("high.delta", at(1, -0.2)), "high: a delta is not above 0"),
        (put("high.target", at(1, 0.0)), "high: a target is not above 0"),
        (put("high.shift", at(1, np.nan)), "high: shift holds a value that is not finite"),
        (put("low.target", at(1, np.inf)), "low: target holds a value that is not finite"),
        (put("low.effect_size", at(0, np.nan)), "low: effect_size holds a value that is not finite"),
        (put("low.mean_difference", at(0, -np.inf)), "low: mean_difference holds a value that is not finite"),
        (reversed_high, "high: the neurons are not sorted by (layer, expert, index)"),
        (put("high.index", at(0, 8)), "high: the neurons are not sorted by (layer, expert, index)"),
        (put("high.index", at(1, 3)), "high: neuron 0:3 stands there twice"),
        (put("high.shift", at(1, 0.123)), "high: a shift is not gamma · target · f(delta) with the gamma of 0.7"),
        (put("high.shift", lambda a: a * np.float32(1.0001)), "high: a shift is not gamma"),
        (lambda tensors: tensors.pop("low.target"), "the tensor 'low.target' is missing"),
        (put("low.weight", np.zeros(3, np.float32)), "unknown tensor 'low.weight'"),
        (shortened_high, "high has 3 neurons; config.json says 4"),
    ],
)
def test_tensors(tamper, change, message):
    found = refusal(tamper(tensors=change))
    assert message in found
    assert "openness.safetensors" in found


def set_at(*path_and_value):
    *path, last, value = path_and_value

    def change(fields):
        for key in path:
            fields = fields[key]
        fields[last] = value

    return change


OPENNESS = ("traits", "openness")
HIGH = (*OPENNESS, "poles", "high")


def take(*path):
    def change(fields):
        for key in (*HIGH, *path[:-1]):
            fields = fields[key]
        del fields[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_at("format_version", 2), "has format version 2; this release reads version 1: update npti-export"),
        (set_at("format_version", "1"), "has format version 1; this release reads"),
        (set_at("format_version", True), "has format version True"),
        (set_at("format_version", 1.0), "has format version 1.0"),
        (lambda fields: fields.pop("format_version"), "has format version None"),
        (set_at("library_name", "transformers"), "is not the config of a personality adapter"),
        (set_at("extra", 1), "field extra: Extra inputs are not permitted"),
        (lambda fields: fields["base_model"].pop("gated"), "field base_model.gated: Field required"),
        (set_at("base_model", "num_layers", 2), "neurons_per_layer has 3 entries for 2 layers"),
        (set_at("base_model", "num_layers", 0), "num_layers: Input should be greater than or equal to 1"),
        (set_at("base_model", "gated", 1), "base_model.gated: Input should be a valid boolean"),
        (set_at("base_model", "id", ""), "base_model.id"),
        (set_at("base_model", "fingerprint", "abc"), "base_model.fingerprint"),
        (set_at("base_model", "neurons_per_layer", 0, "dense", -1), "neurons_per_layer.0.dense"),
        (set_at("base_model", "neurons_per_layer", 0, "dense", 10**30), "neurons_per_layer.0.dense"),
        (set_at("base_model", "neurons_per_layer", 0, "experts", 2**15), "neurons_per_layer.0.experts"),
        (set_at("base_model", "neurons_per_layer", 1, "experts", 4), "layer 1 has 4 experts of 0 neurons; both or"),
        (set_at("base_model", "id", "/home/me/model"), "base_model.id"),
        (set_at("base_model", "id", "a/b/c"), "base_model.id"),
        (set_at("base_model", "id", ".."), "base_model.id: '..' is no Hub id and no name of a folder"),
        (set_at("base_model", "id", "a\\b"), "base_model.id"),
        (set_at("base_model", "id", "a\nb"), "base_model.id"),
        (set_at("base_model", "id", "a\u202eb"), "base_model.id"),
        (set_at("base_model", "model_type", "llama\x1b[2J"), "base_model.model_type"),
        (set_at("base_model", "revision", "a" * 301), "base_model.revision"),
        (set_at("a\nb", 1), r"field a\nb: Extra inputs"),
        (set_at("a" * 1000, 1), "Extra inputs are not permitted"),
        (set_at(*OPENNESS, "file", "../openness.safetensors"), "is '../openness.safetensors', expected 'openness.s"),
        (set_at(*OPENNESS, "file", "/etc/passwd"), "is '/etc/passwd', expected 'openness.safetensors'"),
        (set_at(*OPENNESS, "file", "wit.safetensors"), "the file of openness is 'wit.safetensors'"),
        (set_at(*OPENNESS, "sha256", "A" * 64), "openness.sha256"),
        (set_at(*OPENNESS, "poles", "middle", {}), "poles.middle"),
        (lambda fields: fields["traits"]["openness"]["poles"].pop("low"), "has the poles ['high'], expected high and"),
        (lambda fields: fields["traits"].update({"Wit": fields["traits"]["wit"]}), "traits.Wit"),
        (lambda fields: fields["traits"].update({"neutral": fields["traits"]["wit"]}), "a trait is called 'neutral'"),
        (lambda fields: fields["traits"].update({"../x": fields["traits"]["wit"]}), "traits.../x"),
        (set_at(*HIGH, "gamma", -1.0), "poles.high.gamma"),
        (set_at(*HIGH, "gamma", "0.7"), "poles.high.gamma"),
        (set_at(*HIGH, "gamma", 10**400), "poles.high.gamma"),
        (set_at(*HIGH, "dropout", 1.0), "poles.high.dropout"),
        (set_at(*HIGH, "caps", "both"), "poles.high.caps"),
        (set_at(*HIGH, "positions", "prompt"), "poles.high.positions"),
        (set_at(*HIGH, "method", "name", "magic"), "poles.high.method.name"),
        (set_at(*HIGH, "method", "shift", "kind", "step"), "poles.high.method.shift.kind"),
        (set_at(*HIGH, "method", "shift", "kind", "none"), "shift.kind is 'none', expected 'sigmoid' for npti"),
        (set_at(*HIGH, "method", "name", "mean-shift"), "is 'sigmoid', expected 'mean-difference' for mean-shift"),
        (set_at(*HIGH, "method", "min_effect_size", 0.8), "method has the fields ['min_difference', 'min_effect_size'"),
        (set_at(*HIGH, "method", "min_difference", None), "poles.high.method.min_difference"),
        (take("method", "min_difference"), "expected ['min_difference', 'name', 'percentile', 'shift'] for npti"),
        (take("method", "shift", "midpoint"), "expected ['kind', 'midpoint', 'steepness'] for npti"),
        (set_at(*HIGH, "dose_curve", 0, "gamma", -0.1), "dose_curve.0.gamma"),
        (set_at(*HIGH, "dose_curve", 0, "fluency", -0.1), "dose_curve.0.fluency"),
        (set_at(*HIGH, "neurons", 37), "openness high has 37 neurons, and the base model 36"),
        (set_at(*HIGH, "dose_curve", 0, "effect", float("nan")), "dose_curve.0.effect"),
        (set_at(*HIGH, "scores", {"local": float("nan")}), "holds what JSON cannot"),
        (set_at(*HIGH, "scores", {"local": float("inf")}), "holds what JSON cannot"),
        (set_at(*HIGH, "neurons", 5), "high has 4 neurons; config.json says 5"),
        (set_at(*HIGH, "gamma", 0.8), "f(delta) with the gamma of 0.8 given"),
        (set_at(*HIGH, "gamma", 1e300), "f(delta) with the gamma of 1e+300 given"),
        (set_at(*OPENNESS, "identification", "source", "found"), "identification.source"),
        (set_at(*OPENNESS, "identification", "tokens", "high", -1), "identification.tokens.high"),
        (set_at(*OPENNESS, "identification", "tokens", {"high": 1}), "openness has no identification.tokens of both"),
        (set_at(*OPENNESS, "identification", "seed", 2**63), "identification.seed"),
        (set_at(*OPENNESS, "identification", "split_half_reliability", 1.01), "identification.split_half_reliability"),
        (set_at(*OPENNESS, "identification", "versions", {"torch": "2\n"}), "identification.versions.torch"),
    ],
)
def test_config_fields(tamper, change, message):
    found = refusal(tamper(config=change))
    assert message in found
    assert "adapter/config.json" in found or "adapter/openness.safetensors" in found


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (set_at("trait", "wit"), "openness.safetensors: its header describes another"),
        (set_at("base_model", "someone/other"), "openness.safetensors: its header describes another"),
        (set_at("num_layers", 4), "openness.safetensors: its header describes another"),
        (set_at("format_version", 2), "openness.safetensors: its header describes another"),
        (set_at("poles", "low", "method", "percentile", 90.0), "openness.safetensors: its header describes another"),
        (lambda header: header.clear(), "openness.safetensors: its header describes another"),
        (set_at("format_version", True), "(format_version is true, expected 1)"),
        (set_at("num_layers", 3.0), "(num_layers is 3.0, expected 3)"),
        (set_at("extra", None), "(extra is null, expected missing)"),
        (set_at("neurons_per_layer", []), "(neurons_per_layer is [], expected"),
        (set_at("neurons_per_layer", 0, "layers", 2**31), "(neurons_per_layer is"),
        (set_at("neurons_per_layer", 0, "layers", True), "(neurons_per_layer is"),
    ],
)
def test_header(tamper, change, named):
    assert named in refusal(tamper(header=change))


def replace_openness(folder, data):
    """Other bytes as the trait's file, with their own hash in the config."""
    (folder / "openness.safetensors").write_bytes(data)
    fields = json.loads((folder / "config.json").read_bytes())
    fields["traits"]["openness"]["sha256"] = hashlib.sha256(data).hexdigest()
    write_config(folder, fields)


def bfloat16_file():
    header = json.dumps({"high.layer": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    return len(header).to_bytes(8, "little") + header + b"\0\0"


@pytest.mark.parametrize(
    "data",
    [b"", b"abc", b"\xff" * 100, b"\x80\x04\x95" + b"\0" * 50, bfloat16_file(), save({"a": np.zeros(1)})],
    ids=["empty", "short", "header too large", "pickle", "bfloat16", "somebody else's"],
)
def test_files_that_are_no_traits_file(folder, data):
    replace_openness(folder, data)
    assert "openness.safetensors" in refusal(folder)


def test_a_file_without_a_header_of_ours(tamper, folder):
    replace_openness(folder, save(load((folder / "openness.safetensors").read_bytes())))
    assert "openness.safetensors: its header holds no npti_export description" in refusal(folder)


@pytest.mark.parametrize("described", ["not JSON", "[" * 100_000, "null", '{"a":NaN}'])
def test_a_header_that_is_nonsense(folder, described):
    tensors = load((folder / "openness.safetensors").read_bytes())
    replace_openness(folder, save(tensors, metadata={"npti_export": described}))
    assert "openness.safetensors: its header" in refusal(folder)


def declaring(**described):
    """A file of a few bytes whose header declares one tensor, ``high.layer``."""
    entry = {"dtype": "I16", "shape": [4], "data_offsets": [0, 8]} | described
    header = json.dumps({"high.layer": entry}).encode()
    return len(header).to_bytes(8, "little") + header + b"\0" * 8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff" * 8 + b"{}", "declares a header of 18446744073709551615 bytes"),
        ((2**40).to_bytes(8, "little") + b"{}", "declares a header of 1099511627776 bytes; it has 10 bytes"),
        ((1_000_001).to_bytes(8, "little") + b" " * 1_000_100, "a header at most 1000000"),
        (declaring(shape=[2**31 - 1]), "expected 4294967294 bytes within these"),
        (declaring(shape=[2**31 - 1], data_offsets=[0, 2**32 - 2]), "is said to lie in bytes 0 to 4294967294 of 8"),
        (declaring(shape=[2**31 - 1, 2**31 - 1], data_offsets=[0, 2**63]), "is said to lie in bytes 0 to 92233720368"),
        (declaring(shape=[2**31]), "has the shape [2147483648], expected one or two sizes of at most 2147483647"),
        (declaring(shape=[10**300]), "has the shape [1000000"),
        (declaring(shape=[-4]), "has the shape [-4]"),
        (declaring(shape=[True]), "has the shape [True]"),
        (declaring(shape=[4.0]), "has the shape [4.0]"),
        (declaring(data_offsets=[8, 0]), "is said to lie in bytes 8 to 0 of 8"),
        (declaring(data_offsets=[-8, 0]), "is said to lie in bytes -8 to 0 of 8"),
        (declaring(data_offsets=[False, 8]), "is said to lie in bytes False to 8 of 8"),
        (declaring(shape=[2], data_offsets=[4, 8]), "overlap or leave a gap at byte 0"),
        (declaring(shape=[2], data_offsets=[0, 4]), "bytes, expected"),
        (declaring(data_offsets=[0]), "is not described by dtype, shape and two data_offsets"),
        (declaring(extra=1), "is not described by dtype, shape and two data_offsets"),
        (declaring(dtype="I8"), "is 'I8', expected 'I16'"),
    ],
)
def test_declared_sizes_are_held_against_the_file_before_memory_is_taken(folder, data, message):
    replace_openness(folder, data)
    tracemalloc.start()
    try:
        assert message in refusal(folder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000 + 2 * len(data)


def test_tensors_that_lie_on_one_another(folder):
    path = folder / "openness.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["high.delta"]["data_offsets"] = header["high.target"]["data_offsets"]
    text = json.dumps(header).encode()
    replace_openness(folder, len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert "openness.safetensors: its tensors overlap or leave a gap at byte" in refusal(folder)


def test_a_name_that_stands_twice_in_a_header(folder):
    path = folder / "openness.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].replace(b"{", b'{"__metadata__":{},', 1)
    replace_openness(folder, len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert "its header is no JSON (the name '__metadata__' stands there twice)" in refusal(folder)


def test_damage_and_truncation_are_found_by_the_hash(folder):
    path = folder / "openness.safetensors"
    whole = path.read_bytes()
    for data in (whole[:-1], whole[:100], whole + b"\0", whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(data)
        assert "openness.safetensors is damaged or was replaced (its SHA-256" in refusal(folder)


def test_another_traits_file(folder):
    replace_openness(folder, (folder / "wit.safetensors").read_bytes())
    assert "openness.safetensors: its header describes another trait" in refusal(folder)


def test_files_that_are_not_there(folder, tmp_path):
    (folder / "wit.safetensors").unlink()
    assert "wit.safetensors is not there" in refusal(folder)
    (folder / "config.json").unlink()
    assert "config.json is not there" in refusal(folder)
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} holds no whole personality adapter" in refusal(tmp_path / "empty")


@pytest.mark.parametrize("name", ["config.json", "openness.safetensors"])
def test_what_is_no_plain_file_is_not_opened(folder, name):
    path = folder / name
    path.unlink()
    path.mkdir()
    assert f"{name} is no plain file" in refusal(folder)
    path.rmdir()
    os.mkfifo(path)
    assert f"{name} is no plain file" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "openness.safetensors", "README.md"])
@pytest.mark.parametrize("target", ["/dev/zero", "gone", "itself", "elsewhere", "wit.safetensors", ".."])
def test_symbolic_links_are_not_followed(folder, tmp_path, name, target):
    path = folder / name
    shutil.copy(path, tmp_path / "elsewhere")
    path.unlink()
    path.symlink_to({"itself": path, "elsewhere": tmp_path / "elsewhere"}.get(target, target))
    assert f"{name} is a symbolic link, and only the file itself is read" in refusal(folder)
    other = PersonalityAdapter(base_model("someone/other"), {})
    other.save_pretrained(tmp_path / "other")  # nor is a card taken over through one
    if name == "README.md":
        with pytest.raises(NptiError, match=r"README\.md is a symbolic link"):
            other.save_pretrained(folder)


def test_links_out_of_the_cache_of_the_hub_are_not_followed(folder, tmp_path):
    """Only the blobs beside the snapshots are the cache's own."""
    snapshot = tmp_path / "snapshots" / "commit"
    shutil.copytree(folder, snapshot)
    for place in (tmp_path / "elsewhere", tmp_path / "blobs" / "below"):
        place.mkdir(parents=True)
        (snapshot / "config.json").unlink()
        (snapshot / "config.json").symlink_to(shutil.copy(folder / "config.json", place / "config"))
        assert "config.json is a symbolic link" in refusal(snapshot)


@pytest.mark.parametrize(
    ("name", "size"), [("config.json", 4_000_001), ("README.md", 4_000_001), ("openness.safetensors", 10**12)]
)
def test_files_that_are_too_large_are_not_read(folder, name, size):
    os.truncate(folder / name, size)  # sparse: takes no room on the disk
    assert f"{name} has {size} bytes, at most" in refusal(folder)


def test_a_config_changed_by_hand(folder):
    path = folder / "config.json"
    text = path.read_text()
    for changed in (text.replace('"transcripts": 60', '"transcripts": 61'), text.replace("  ", " "), text + "\n"):
        assert changed != text
        path.write_text(changed)
        assert "config.json was changed after it was written" in refusal(folder)


def test_a_key_given_twice(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"format_version": 1,', '"format_version": 2,\n  "format_version": 1,'))
    assert "config.json was changed after it was written" in refusal(folder)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"{}",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"9" * 10_000,
        b'{"library_name": "npti-export"}',
        b'{"library_name": "npti-export", "format_version": 1}',
        b'{"library_name": "npti-export", "format_version": ' + b"9" * 4000 + b"}",
        b'{"library_name": "npti-export", "format_version": 1, "x": ' + b"9" * 4000 + b"}",
        b'{"library_name": "npti-export", "format_version": 1, "x": ' + b"[" * 500 + b"]" * 500 + b"}",
        '{"library_name": "npti-export", "format_version": 1}'.encode("utf-16"),
    ],
)
def test_configs_that_are_no_config(folder, data):
    (folder / "config.json").write_bytes(data)
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize(
    "scores",
    ["[" * 150 + "]" * 150, "[" * 400 + "]" * 400, "1e999", "-Infinity", '"\\ud800"', "9" * 4000, "9" * 5000],
)
def test_anything_in_the_free_field_is_read_or_refused(folder, scores):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"scores": {}', f'"scores": {{"x": {scores}}}', 1))
    assert "config.json" in refusal(folder)


@STEADY
@given(st.binary(max_size=200))
def test_any_bytes_as_config(data):
    with pytest.raises(NptiError, match=r"^place/config\.json"):
        read_config(data, "place/config.json")


@settings(STEADY, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_byte_of_a_folder_changed(folder, tmp_path_factory, data):
    """Flipped bytes, with the file's hash put right, are read as an adapter or refused; nothing else is raised."""
    copy = tmp_path_factory.mktemp("copy") / "adapter"
    shutil.copytree(folder, copy)
    content = bytearray((copy / "openness.safetensors").read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[position] ^= data.draw(st.integers(1, 255))
    replace_openness(copy, bytes(content))
    try:
        read = PersonalityAdapter.from_pretrained(copy)
    except NptiError as error:
        found = str(error)
    else:
        found = f"openness.safetensors is read: {read!r}"
    assert "openness.safetensors" in found
