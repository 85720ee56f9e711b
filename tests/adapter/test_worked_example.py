"""The worked example of docs/format.md, read from the document's own bytes with ``struct`` and ``json`` alone."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from pathlib import Path

import pytest

from npti_export.adapter.adapter import PersonalityAdapter

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"
FORMATS = {"I16": "h", "I32": "i", "F32": "f"}


def block(language: str) -> str:
    """The one fenced block of that language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    return found


@pytest.fixture(scope="module")
def config() -> bytes:
    return block("json").encode()


@pytest.fixture(scope="module")
def data() -> bytes:
    """The bytes of the hexdump: offset, two blanks, at most 64 digits, and the characters, which are not read."""
    pieces = []
    for line in block("hexdump").splitlines():
        assert int(line[:8], 16) == sum(map(len, pieces))
        pieces.append(bytes.fromhex(line[10:74]))
        assert line[76:] == "".join(chr(byte) if 32 <= byte < 127 else "." for byte in pieces[-1])
    return b"".join(pieces)


@pytest.fixture(scope="module")
def tensors(data) -> dict[str, tuple[list[int], tuple[float, ...]]]:
    """Shape and numbers of every tensor, as the document says how to read them."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]
    found, filled = {}, 0
    for name, described in sorted(header.items(), key=lambda entry: entry[1]["data_offsets"]):
        begin, end = described["data_offsets"]
        assert begin == filled
        filled = end
        form = f"<{math.prod(described['shape'])}{FORMATS[described['dtype']]}"
        assert struct.calcsize(form) == end - begin
        found[name] = described["shape"], struct.unpack_from(form, data, 8 + length + begin)
    assert 8 + length + filled == len(data)
    return found


def test_the_tables_and_sentences_of_the_document_are_what_the_bytes_say(data, tensors):
    text = DOCUMENT.read_text()
    columns = [tensors[f"high.{name}"][1] for name in ("layer", "expert", "index", "target", "delta", "shift")]
    rows = re.findall(r"^\| (\d), (−?\d), (\d) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    said = [tuple(float(number.replace("−", "-")) for number in row) for row in rows]
    assert len(said) == 3
    for row, found in zip(said, zip(*columns, strict=True), strict=True):
        assert row[:5] == found[:5]
        assert struct.pack("<f", row[5]) == struct.pack("<f", found[5])
    low = {name: numbers for name, (_, numbers) in tensors.items() if name.startswith("low.")}
    assert low == {
        "low.layer": (0,),
        "low.expert": (-1,),
        "low.index": (6,),
        "low.shift": (0.0,),
        "low.target": (0.75,),
        "low.delta": (0.5,),
        "low.residual_layer": (0,),
        "low.residual": (0.5, -0.25, 0.0, 2.0),
    }
    assert tensors["low.residual"][0] == [1, 4]
    (length,) = struct.unpack_from("<Q", data)
    assert f"the header has {length} bytes" in text
    assert f"begin at byte {8 + length}." in text
    assert block("text").strip() == data[8 : 8 + length].decode().strip()
    begin, end, digits = re.search(r"the bytes (\d+) to (\d+) of the file, `([0-9a-f]+)`", text).groups()
    assert data[int(begin) : int(end)].hex() == digits
    assert struct.unpack("<3f", bytes.fromhex(digits)) == tensors["high.shift"][1]


def test_the_config_says_the_same(config, data, tensors):
    fields = json.loads(config)
    emptied = config.replace(fields["config_sha256"].encode(), b"")
    assert hashlib.sha256(emptied).hexdigest() == fields["config_sha256"]
    wit = fields["traits"]["wit"]
    assert wit["sha256"] == hashlib.sha256(data).hexdigest()
    for pole, said in wit["poles"].items():
        assert tensors[f"{pole}.layer"][0] == [said["neurons"]]
    high = wit["poles"]["high"]
    form = high["method"]["shift"]
    numbers = zip(*(tensors[f"high.{name}"][1] for name in ("target", "delta", "shift")), strict=True)
    for target, delta, shift in numbers:
        weight = 1 / (1 + math.exp(-form["steepness"] * (delta - form["midpoint"])))
        assert math.isclose(shift, high["gamma"] * target * weight, rel_tol=1e-6)
    length = int.from_bytes(data[:8], "little")
    described = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["npti_export"])
    assert described == {
        "format_version": 1,
        "base_model": fields["base_model"]["id"],
        "trait": "wit",
        "num_layers": 2,
        "neurons_per_layer": fields["base_model"]["neurons_per_layer"],
        "poles": {pole: {"method": said["method"]} for pole, said in wit["poles"].items()},
    }


def test_the_package_reads_it_and_writes_it_the_same(config, data, tensors, tmp_path):
    (tmp_path / "config.json").write_bytes(config)
    (tmp_path / "wit.safetensors").write_bytes(data)
    read = PersonalityAdapter.from_pretrained(tmp_path)
    for pole, record in read.traits["wit"].poles.items():
        for name, array in record.neurons.arrays().items():
            assert tuple(array.tolist()) == tensors[f"{pole}.{name}"][1]
    read.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == config
    assert (tmp_path / "again" / "wit.safetensors").read_bytes() == data
