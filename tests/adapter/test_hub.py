"""From the Hub, over real HTTP with a small Hub on localhost: one commit, some traits, caches, and what goes wrong."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hub_process import PULL, runner
from made_by_hand import base_model, trait_record
from small_hub import GUEST_TOKEN, TOKEN, WRONG_TOKEN, Break, no_hub, small_hub

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.base_model import LayerNeurons
from npti_export.adapter.records import Method
from npti_export.adapter.residual import ResidualShift
from npti_export.errors import NptiError
from npti_export.traits import Pole

REPO = "me/personalities"


@pytest.fixture
def hub():
    with small_hub() as running:
        yield running


@pytest.fixture
def run(hub, tmp_path):
    return runner(hub, tmp_path)


@pytest.fixture
def uploaded(hub, adapter):
    """The adapter as it lies on the Hub."""
    hub.create(REPO, adapter.contents(REPO))
    return adapter


def pulled(run, tmp_path, name="back", **options):
    assert run(PULL, REPO, tmp_path / name, **options) == ""
    return PersonalityAdapter.from_pretrained(tmp_path / name)


def test_what_lies_there_comes_back(hub, run, uploaded, tmp_path):
    hub.commit(REPO, {"notes.txt": b"not an adapter's", "transcripts/wit.jsonl": b"{}\n"})
    assert pulled(run, tmp_path) == uploaded
    assert hub.asked("HEAD", "notes|transcripts") == []


def test_a_token_stays_with_the_hub(hub, run, uploaded, tmp_path):
    """Large files lie on another host, which must not be told who asks."""
    pulled(run, tmp_path)
    told = {path.split("/")[1]: headers.get("authorization") for path, headers in hub.headers}
    assert told["large"] is None
    assert told["api"] == f"Bearer {TOKEN}"


def test_an_older_one_by_its_commit_its_tag_and_its_branch(hub, run, uploaded, tmp_path):
    older = hub.sha(REPO)
    hub.repositories[REPO].refs |= {"v1.0": older, "old/one": older}
    newer = uploaded.with_trait(trait_record("wit", seed=77))
    hub.commit(REPO, newer.contents(REPO))
    assert pulled(run, tmp_path, "newer") == newer
    for revision in (older, "v1.0", "old/one"):
        assert pulled(run, tmp_path, revision.replace("/", "-"), revision=revision) == uploaded


def test_a_push_in_between_does_not_mix_two_adapters(hub, run, uploaded, tmp_path):
    newer = uploaded.with_trait(trait_record("wit", seed=77))
    hub.meanwhile.append(("resolve/.*/config.json", lambda: hub.commit(REPO, newer.contents(REPO))))
    assert pulled(run, tmp_path, "before") == uploaded
    assert hub.meanwhile == []
    assert pulled(run, tmp_path, "after") == newer


def test_one_trait_alone_and_another_later(hub, run, uploaded, tmp_path):
    first = pulled(run, tmp_path, "first", traits=["openness"])
    assert first == PersonalityAdapter(uploaded.base_model, {"openness": uploaded.traits["openness"]})
    fetched = [path.split("/")[-1] for path in hub.asked("HEAD", "/resolve/")]
    assert sorted(fetched) == ["README.md", "config.json", "openness.safetensors"]
    assert pulled(run, tmp_path, "second", traits=["wit", "openness"]).traits.keys() == {"openness", "wit"}
    fetched = [path.split("/")[-1] for path in hub.asked("HEAD", "/resolve/.*safetensors")]
    assert fetched == ["openness.safetensors", "wit.safetensors"]
    assert len(hub.asked("GET", "/large/")) == 2


def test_a_trait_that_is_not_there(hub, run, uploaded, folder, tmp_path):
    expected = "has no trait 'bravery'; it has neuroticism, openness, wit."
    said = run(PULL, REPO, tmp_path / "back", traits=["wit", "bravery"])
    assert said == f"NptiError: The adapter {REPO} {expected}"
    assert hub.asked("HEAD", "safetensors") == []
    with pytest.raises(NptiError, match=re.escape(f"The adapter {folder} {expected}")):
        PersonalityAdapter.from_pretrained(folder, traits=["bravery"])


def test_one_trait_of_a_folder_reads_no_other(folder):
    (folder / "wit.safetensors").unlink()
    (folder / "neuroticism.safetensors").write_bytes(b"damaged")
    assert list(PersonalityAdapter.from_pretrained(folder, traits="openness").traits) == ["openness"]


def test_a_folder_has_no_revisions(folder):
    with pytest.raises(NptiError, match=r"is a folder, which has no revision 'v1'; leave the revision out\.$"):
        PersonalityAdapter.from_pretrained(folder, revision="v1")


def test_what_was_fetched_once_is_not_fetched_again_and_is_there_without_the_hub(hub, run, uploaded, tmp_path):
    pulled(run, tmp_path, "first")
    asked = len(hub.asked("GET", "/resolve/|/large/"))
    assert pulled(run, tmp_path, "second") == uploaded
    assert len(hub.asked("GET", "/resolve/|/large/")) == asked
    with no_hub() as nowhere:
        assert pulled(run, tmp_path, "third", hub=nowhere) == uploaded
    count = len(hub.requests)
    assert pulled(run, tmp_path, "fourth", local_files_only=True) == uploaded
    assert pulled(run, tmp_path, "fifth", variables={"HF_HUB_OFFLINE": "1"}) == uploaded
    assert len(hub.requests) == count


@pytest.mark.parametrize("how", [{"local_files_only": True}, {"variables": {"HF_HUB_OFFLINE": "1"}}])
def test_what_was_not_fetched_and_may_not_be(hub, run, uploaded, tmp_path, how):
    expected = (
        "NptiError: The adapter 'me/personalities' is not whole in the cache, and the Hub may not be asked "
        "(local_files_only or HF_HUB_OFFLINE); fetch it once with 'npti-export pull me/personalities'."
    )
    assert run(PULL, REPO, tmp_path / "back", **how) == expected
    pulled(run, tmp_path, "one", traits=["wit"])
    assert pulled(run, tmp_path, "one-again", traits=["wit"], **how).traits.keys() == {"wit"}
    assert run(PULL, REPO, tmp_path / "back", **how) == expected
    assert not (tmp_path / "back").exists()


def test_a_cache_of_ones_own(run, uploaded, tmp_path):
    assert pulled(run, tmp_path, cache_dir=str(tmp_path / "mine")) == uploaded
    assert (tmp_path / "mine" / "models--me--personalities").is_dir()
    assert not (tmp_path / "hf" / "hub" / "models--me--personalities").exists()


def test_a_private_repository(hub, run, uploaded, tmp_path):
    hub.repositories[REPO].private = True
    for token in (None, GUEST_TOKEN):
        assert run(PULL, REPO, tmp_path / "back", token=token) == (
            "NptiError: There is no folder 'me/personalities' and no such Hub repository that you may read; check the "
            "name, and log in with 'hf auth login' if it is private."
        )
    assert pulled(run, tmp_path, "mine") == uploaded


def test_a_token_that_is_given_is_used(hub, run, uploaded, tmp_path):
    hub.repositories[REPO].private = True
    program = PULL.replace("**eval(sys.argv[3])", f"token={TOKEN!r}")
    assert run(program, REPO, tmp_path / "back", token=None) == ""
    assert PersonalityAdapter.from_pretrained(tmp_path / "back") == uploaded


def test_a_repository_that_is_not_there(run, tmp_path):
    assert "no folder 'me/gone' and no such Hub repository that you may read" in run(PULL, "me/gone", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_a_repository_of_another_kind(run, hub, tmp_path, kind):
    hub.create("me/other", kind=f"{kind}s")
    assert run(PULL, "me/other", tmp_path / "back") == (
        f"NptiError: 'me/other' on the Hub is a {kind}; an adapter lies in a model repository, so check the name."
    )


def test_a_token_that_the_hub_does_not_know(run, hub, tmp_path):
    hub.create(REPO)
    said = run(PULL, REPO, tmp_path / "back", token=WRONG_TOKEN)
    assert "The Hub does not let you read 'me/personalities' (401); log in with 'hf auth login'" in said


@pytest.mark.parametrize("name", ["../x", "a/b/c", "me/ personalities", "-", "me/x--y"])
def test_names_of_no_repository(name):
    with pytest.raises(NptiError, match=f"no folder {re.escape(repr(name))}, and that is no name of a Hub repository"):
        PersonalityAdapter.from_pretrained(name)


def test_a_revision_that_is_not_there(run, hub, tmp_path):
    hub.create(REPO)
    said = run(PULL, REPO, tmp_path / "back", revision="v9")
    assert said == "NptiError: The Hub repository 'me/personalities' has no revision 'v9'."


def test_a_models_repository_is_refused_before_its_weights_are_fetched(run, hub, tmp_path):
    hub.create("some/model", {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights" * 1000})
    said = run(PULL, "some/model", tmp_path / "back")
    assert "config.json of some/model is not the config of a personality adapter" in said
    assert hub.asked("HEAD", "model.safetensors") == []


def test_a_repository_without_a_config(run, hub, tmp_path):
    hub.create("some/data", {"data.csv": b"1,2"})
    said = run(PULL, "some/data", tmp_path / "back")
    assert said == "NptiError: The Hub repository 'some/data' holds no personality adapter (there is no config.json)."


@pytest.mark.parametrize("name", ["config.json", "wit.safetensors"])
def test_what_is_too_large_is_not_fetched(run, hub, uploaded, tmp_path, name):
    hub.repositories[REPO].sizes[name] = 3_000_000_000
    said = run(PULL, REPO, tmp_path / "back")
    assert said.startswith(
        f"NptiError: {name} of the Hub repository 'me/personalities' has 3,000,000,000 bytes, at most"
    )
    assert said.endswith("are expected; it is no adapter's and was not fetched.")
    assert hub.asked("HEAD", f"/resolve/.*/{name}") == []


def test_a_download_that_breaks_in_the_middle_is_taken_up_again(run, hub, uploaded, tmp_path):
    """A file of this size the client asks for anew; how it goes on with a large one is tested below."""
    hub.breaks.append(Break("GET", "/large/", "sending"))
    assert pulled(run, tmp_path, traits=["openness"]).traits == {"openness": uploaded.traits["openness"]}
    assert hub.breaks[0].times == 0
    assert len(hub.asked("GET", "/large/")) == 2


@pytest.fixture
def large(hub, adapter):
    """An adapter with a file of 22 MB on the Hub; the client keeps what came of a file in steps of 10 MB."""
    vectors = np.random.default_rng(0).normal(size=(85, 2**16)).astype(np.float32)
    wit = trait_record("wit")
    high = replace(wit.poles[Pole.HIGH], residual=ResidualShift(np.arange(85, dtype=np.int16), vectors))
    high = replace(high, neurons=replace(high.neurons, shift=0 * high.neurons.shift), method=Method("residual"))
    made = PersonalityAdapter(
        base_model(num_layers=85, neurons_per_layer=(LayerNeurons(dense=12),) * 85),
        {"wit": replace(wit, poles=wit.poles | {Pole.HIGH: high})},
    )
    hub.create(REPO, made.contents(REPO))
    return made


def asked_from(hub):
    """From which byte on the large file was asked for, each time."""
    ranges = [headers.get("range", "bytes=0-") for path, headers in hub.headers if path.startswith("/large/")]
    return [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in ranges]


def test_a_large_download_goes_on_where_it_broke_off(run, hub, large, tmp_path):
    hub.breaks.append(Break("GET", "/large/", "sending"))
    assert pulled(run, tmp_path) == large
    assert asked_from(hub) == [0, 10 * 2**20]


@pytest.mark.slow
def test_a_download_that_is_given_up_keeps_whole_files_and_leaves_nothing_half(run, hub, uploaded, tmp_path):
    hub.breaks.append(Break("GET", "/large/", "sending", times=100))
    said = run(PULL, REPO, tmp_path / "back", traits=["openness"])
    assert said.startswith("NptiError: The adapter 'me/personalities' could not be fetched from the Hub (")
    assert said.endswith("try again, whole files are kept.")
    assert not (tmp_path / "back").exists()
    hub.breaks.clear()
    assert pulled(run, tmp_path, traits=["openness"]).traits == {"openness": uploaded.traits["openness"]}
    assert len(hub.asked("GET", "/resolve/.*/config.json")) == 1


def test_a_download_that_breaks_for_good(run, hub, uploaded, tmp_path):
    hub.breaks.append(Break("GET", "/tree/", "sending", times=100))
    said = run(PULL, REPO, tmp_path / "back")
    assert re.fullmatch(
        r"NptiError: The adapter 'me/personalities' could not be fetched from the Hub \(.+\); try again, whole files "
        r"are kept\.",
        said,
    )
    hub.breaks.clear()
    assert pulled(run, tmp_path) == uploaded


def test_a_hub_that_cannot_be_reached(run, tmp_path):
    with no_hub() as nowhere:
        said = run(PULL, REPO, tmp_path / "back", hub=nowhere)
    assert "The adapter 'me/personalities' could not be fetched from the Hub (" in said


def test_a_damaged_file_on_the_hub_is_refused(run, hub, uploaded, tmp_path):
    data = bytearray(hub.files(REPO)["openness.safetensors"])
    data[-1] ^= 1
    hub.commit(REPO, {"openness.safetensors": bytes(data)})
    assert "openness.safetensors is damaged or was replaced" in run(PULL, REPO, tmp_path / "back")
    assert not (tmp_path / "back").exists()
