"""Seeded ways to damage the files of an adapter, and to put its hashes right again, without the package's own code."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

Files = dict[str, "bytes | Path"]
"""Files of a folder by name; a path is a symbolic link to it."""

NAMES = ["../x", "..", ".", "/etc/passwd", "x/../openness", "openness", "a\0b", "a\nb", "neutral", "A", "", "x" * 300]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 2**15, 2**31 - 1, 2**31, 2**63, 10**30, 0.0, -0.0, 0.5, 1.0, -1e-3, 1e-320,
    1e300, float("nan"), float("inf"), "", "1", "npti", "mean-shift", "residual", "hybrid", "fitted", "none",
    "opposite", "answer", "I16", "F64", [], {}, [[]], [0, 8], [1], "\ud800", "\u202e", "a" * 5000, *NAMES,
]  # fmt: skip
NUMBERS = [0x7FC00000, 0x7F800000, 0xFF800000, 0x80000000, 0, 1, 0xFFFFFFFF, 0x7F7FFFFF, 0x3F800000, 0x00010000]
"""Bit patterns: float32 NaN, both infinities, -0, 0, the smallest number, -1 as an integer, the largest, 1."""


def mutate(random: Random, files: Files, outside: Path) -> str:
    """Damages the files in one way, and says in which.

    Args:
        random: Decides everything.
        files: The files of the folder; changed in place.
        outside: A folder with the same files elsewhere, for links to lead to.
    """
    kinds: list[Callable[[Random, Files, Path], None]] = [
        _header_bytes, _header_json, _description, _tensor_bytes, _tensor_numbers, _tensor_rows, _config_json,
        _config_json, _config_bytes, _file_names, _link, _whole_files,
    ]  # fmt: skip
    kind = random.choice(kinds)
    kind(random, files, outside)
    return kind.__name__


def rehash(files: Files) -> None:
    """Puts every hash of the folder right, as far as its config can still be read."""
    try:
        config = json.loads(_content(files["config.json"]))
        for name, trait in config["traits"].items():
            data = files.get(f"{name}.safetensors")
            if data is not None:
                trait["sha256"] = hashlib.sha256(_content(data)).hexdigest()
        config["config_sha256"] = ""
        config["config_sha256"] = hashlib.sha256(_pretty(config)).hexdigest()
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError):
        return  # no config of ours any more: there is nothing to put right
    if isinstance(files["config.json"], bytes):
        files["config.json"] = _pretty(config)


def _content(file: bytes | Path) -> bytes:
    if isinstance(file, bytes):
        return file
    return file.read_bytes() if file.is_file() and not str(file).startswith("/dev") else b""


def _pretty(config: Any) -> bytes:
    return (json.dumps(config, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def _trait_file(random: Random, files: Files) -> str:
    return random.choice(sorted(name for name in files if name.endswith(".safetensors")))


def _parts(data: bytes) -> tuple[bytes, bytes]:
    """The header's JSON and the tensors' bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    return data[8:end], data[end:]


def _joined(header: bytes, tensors: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + tensors


def _scrambled(random: Random, data: bytes, begin: int, end: int) -> bytes:
    """Some bytes between two places replaced, put in or taken out."""
    changed = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        at = random.randrange(begin, min(end, len(changed)))
        match random.randrange(5):
            case 0 | 1:
                changed[at] ^= 1 << random.randrange(8)
            case 2:
                changed[at] = random.choice(b'\0\xff"{}[]:,0919-. \n')
            case 3:
                changed.insert(at, random.randrange(256))
            case 4:
                del changed[at]
    return bytes(changed)


def _header_bytes(random: Random, files: Files, _outside: Path) -> None:
    name = _trait_file(random, files)
    data = files[name]
    end = 8 + len(_parts(data)[0])
    begin = random.choice([0, 8])
    files[name] = _scrambled(random, data, begin, random.choice([8, end, end]) if begin == 0 else end)


def _header_json(random: Random, files: Files, _outside: Path) -> None:
    name = _trait_file(random, files)
    header, tensors = _parts(files[name])
    text = _text(_changed(random, json.loads(header)))
    if random.random() < 0.1:  # the first name twice
        text = text.replace("{", '{"high.layer":{"dtype":"I16","shape":[4],"data_offsets":[0,8]},', 1)
    files[name] = _joined(text.encode(errors="replace"), tensors)


def _description(random: Random, files: Files, _outside: Path) -> None:
    name = _trait_file(random, files)
    header, tensors = _parts(files[name])
    fields = json.loads(header)
    described = _changed(random, json.loads(fields["__metadata__"]["npti_export"]))
    fields["__metadata__"]["npti_export"] = random.choice([_text(described), described, _text(described) * 2])
    files[name] = _joined(_text(fields).encode(errors="replace"), tensors)


def _tensor_bytes(random: Random, files: Files, _outside: Path) -> None:
    name = _trait_file(random, files)
    data = files[name]
    files[name] = _scrambled(random, data, len(data) - len(_parts(data)[1]), len(data))


def _tensor_numbers(random: Random, files: Files, _outside: Path) -> None:
    """A whole number of some tensor put in another's place, or moved by a little."""
    name = _trait_file(random, files)
    header, tensors = _parts(files[name])
    begin, size, count = _tensor(random, header)
    at = begin + size * random.randrange(count)
    bits = int.from_bytes(tensors[at : at + size], "little")
    bits = random.choice([random.choice(NUMBERS), bits + 1, bits - 1, bits ^ (1 << (8 * size - 1))])
    changed = (bits % 2 ** (8 * size)).to_bytes(size, "little")
    files[name] = _joined(header, tensors[:at] + changed + tensors[at + size :])


def _tensor_rows(random: Random, files: Files, _outside: Path) -> None:
    """Two neurons of a pole change places, or one is there twice; in every tensor or in one."""
    name = _trait_file(random, files)
    header, tensors = _parts(files[name])
    pole, alone = random.choice(["high.", "low."]), random.random() < 0.5
    described = {key: value for key, value in json.loads(header).items() if key.startswith(pole)}
    first, second = random.sample(range(described[f"{pole}layer"]["shape"][0]), 2)
    both = random.random() < 0.5
    changed = bytearray(tensors)
    for key in [random.choice(sorted(described))] if alone else described:
        if "residual" in key:
            continue
        begin, end = described[key]["data_offsets"]
        size = (end - begin) // described[key]["shape"][0]
        places = [slice(begin + size * row, begin + size * (row + 1)) for row in (first, second)]
        changed[places[0]] = tensors[places[1]]
        if both:
            changed[places[1]] = tensors[places[0]]
    files[name] = _joined(header, bytes(changed))


def _tensor(random: Random, header: bytes) -> tuple[int, int, int]:
    """Where a tensor begins, the size of its numbers, and how many there are."""
    described = json.loads(header)
    described.pop("__metadata__")
    found = described[random.choice(sorted(described))]
    begin, end = found["data_offsets"]
    size = {"I16": 2, "I32": 4, "F32": 4}[found["dtype"]]
    return begin, size, (end - begin) // size


def _config_json(random: Random, files: Files, _outside: Path) -> None:
    config = json.loads(files["config.json"])
    for _ in range(random.choice([1, 1, 2])):
        config = _changed(random, config)
    files["config.json"] = _text(config, indent=2).encode(errors="replace") + b"\n"


def _config_bytes(random: Random, files: Files, _outside: Path) -> None:
    files["config.json"] = _scrambled(random, files["config.json"], 0, len(files["config.json"]))


def _file_names(random: Random, files: Files, _outside: Path) -> None:
    """A trait that names another file, or that is itself called otherwise, with or without its file."""
    config = json.loads(files["config.json"])
    trait = random.choice(sorted(config["traits"]))
    new = random.choice(NAMES)
    match random.randrange(3):
        case 0:
            config["traits"][trait]["file"] = random.choice([new, f"{new}.safetensors"])
        case 1:
            config["traits"][new] = config["traits"].pop(trait)
        case 2:
            config["traits"][new] = config["traits"].pop(trait) | {"file": f"{new}.safetensors"}
            if new and "/" not in new and "\0" not in new and len(new) < 200:
                files[f"{new}.safetensors"] = files.pop(f"{trait}.safetensors")
    files["config.json"] = _pretty(config)


def _link(random: Random, files: Files, outside: Path) -> None:
    name = random.choice(sorted(files))
    targets = [
        outside / name,
        Path("/dev/zero"),
        Path(name),
        Path("gone"),
        Path("wit.safetensors"),
        Path(".."),
        outside,
    ]
    files[name] = random.choice(targets)


def _whole_files(random: Random, files: Files, _outside: Path) -> None:
    """A file gone, cut, prolonged, or in another's place."""
    name = random.choice(["config.json", _trait_file(random, files)])
    data = files[name]
    match random.randrange(5):
        case 0:
            del files[name]
        case 1:
            files[name] = data[: random.randrange(len(data))]
        case 2:
            files[name] = data + random.randbytes(random.choice([1, 8, 5000]))
        case 3:
            files[name] = files[random.choice(sorted(files))]
        case 4:
            files[name] = random.choice([b"", b"\0" * 8, b"\xff" * 64, b"\x80\x04\x95" + data, b"[" * 100_000, b"null"])


def _text(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, sort_keys=True)


def _changed(random: Random, value: Any) -> Any:
    """A JSON value with something in it replaced, moved a little, taken out, put in or exchanged."""
    places = _places(value)
    container, key = random.choice(places)
    old = container[key]
    match random.randrange(6):
        case 0 | 1:
            container[key] = random.choice(VALUES)
        case 2:
            if isinstance(old, bool):
                container[key] = not old
            elif isinstance(old, int | float):
                container[key] = random.choice([old + 1, old - 1, -old, old * 2, float(old), old * (1 + 1e-9)])
            elif isinstance(old, str) and old:
                at = random.randrange(len(old))
                container[key] = old[:at] + random.choice(["", "/", "\0", "x", "é", "\n", old[at] * 2]) + old[at + 1 :]
            else:
                container[key] = random.choice(VALUES)
        case 3:
            del container[key]
        case 4:
            if isinstance(container, dict):
                container[random.choice([*NAMES, "extra", "layers", "min_effect_size"])] = random.choice([*VALUES, old])
            else:
                container.insert(key, old)
        case 5:
            other, elsewhere = random.choice(places)
            container[key] = json.loads(json.dumps(other[elsewhere]))
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Everything that can be changed: containers with the keys within them."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def write(folder: Path, files: Files) -> None:
    """Makes the folder hold these files and nothing else."""
    for path in folder.iterdir():
        path.unlink()
    for name, file in files.items():
        if isinstance(file, Path):
            os.symlink(file, folder / name)
        else:
            (folder / name).write_bytes(file)
