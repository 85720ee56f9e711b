"""Where an adapter is looked for when none is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from npti_export.adapter.find import (
    DEMO_ID,
    adapter_folder_name,
    bundled_folder,
    cache_folder,
    default_adapter_folder,
    find_adapter,
    id_of_model_name,
    last_written_adapter,
)
from npti_export.errors import NptiError

MODEL = "someone/small-chat"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The working directory's and the user's folder for the model's adapter, neither of them there yet."""
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    monkeypatch.setenv("NPTI_EXPORT_HOME", str(tmp_path / "home"))
    return Path("adapters/someone--small-chat"), tmp_path / "home" / "someone--small-chat"


def put(folder, name="config.json"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("{}")


def test_the_working_directory_comes_first_then_the_users_own(places):
    here, own = places
    with pytest.raises(NptiError) as caught:
        find_adapter(MODEL)
    assert f"adapters/someone--small-chat or {own}" in str(caught.value)
    assert "npti-export identify --model someone/small-chat" in str(caught.value)
    put(own)
    assert find_adapter(MODEL) == own
    (own / "config.json").unlink()
    put(here)
    assert find_adapter(MODEL) == here


def test_two_that_fit_are_an_error(places):
    here, own = places
    put(here)
    put(own)
    with pytest.raises(NptiError, match="Two adapters fit someone/small-chat") as caught:
        find_adapter(MODEL)
    assert str(here) in str(caught.value)
    assert str(own) in str(caught.value)


def test_of_two_the_one_last_written_is_known(places):
    here, own = places
    with pytest.raises(NptiError, match="No adapter for someone/small-chat was found"):
        last_written_adapter(MODEL)
    put(here)
    assert last_written_adapter(MODEL) == here
    put(own)
    for older, newer in ((here, own), (own, here)):
        os.utime(older / "config.json", (1000, 1000))
        os.utime(newer / "config.json", (2000, 2000))
        assert last_written_adapter(MODEL) == newer


@pytest.mark.parametrize("name", ["..", ".", "", "a\\b", "a\nb", "a\0b"])
def test_a_model_whose_name_would_leave_the_folder(places, name):
    with pytest.raises(NptiError, match="is no name of a base model"):
        find_adapter(name)
    assert adapter_folder_name("../x") == "..--x"


def test_one_folder_under_two_names_is_one_adapter(places):
    here, own = places
    put(own)
    here.parent.mkdir()
    here.symlink_to(own)
    assert find_adapter(MODEL) == here


def test_a_folder_without_a_config_is_no_adapter(places):
    here, own = places
    put(here, "transcripts.jsonl")
    put(own)
    assert find_adapter(MODEL) == own


def test_another_models_adapter_is_not_taken(places):
    put(places[0])
    for other in ("small-chat", "someone/small", "else/small-chat"):
        with pytest.raises(NptiError, match=f"No adapter for {other}"):
            find_adapter(other)


def test_the_id_of_a_model_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert id_of_model_name("~/small-chat") == "small-chat"


def test_the_users_own_places(monkeypatch, tmp_path):
    monkeypatch.setenv("NPTI_EXPORT_HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home"
    monkeypatch.setenv("NPTI_EXPORT_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "npti-export"
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for unset in ("", None):
        monkeypatch.setenv("XDG_CACHE_HOME", unset) if unset is not None else monkeypatch.delenv("XDG_CACHE_HOME")
        assert cache_folder() == tmp_path / "user" / ".cache" / "npti-export"


def test_the_bundled_adapter_is_the_demo_models_and_the_last_choice(places, tmp_path):
    assert bundled_folder().name == DEMO_ID
    assert bundled_folder().is_absolute()
    put(tmp_path / "home" / DEMO_ID)
    assert find_adapter(DEMO_ID) == tmp_path / "home" / DEMO_ID


def test_where_identify_writes_is_where_it_is_found(places):
    assert default_adapter_folder(MODEL) == places[0]
    put(default_adapter_folder(MODEL))
    assert find_adapter(MODEL) == default_adapter_folder(MODEL)
    assert adapter_folder_name("small-chat") == "small-chat"
