"""To the Hub, over real HTTP with a small Hub on localhost: one commit, nothing private, nobody's work written over."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hub_process import PULL, PUSH, runner
from made_by_hand import base_model, trait_record
from small_hub import GUEST_TOKEN, READ_TOKEN, WRONG_TOKEN, Break, no_hub, small_hub

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.card import is_generated
from npti_export.adapter.hub import default_name
from npti_export.adapter.leaks import check_nothing_private
from npti_export.errors import NptiError

REPO = "me/personalities"
FILES = {"README.md", "config.json", "neuroticism.safetensors", "openness.safetensors", "wit.safetensors"}
NOT_TWICE = "a commit is taken whole or not at all, so run the same again: what is up already is not sent twice."


@pytest.fixture
def hub():
    with small_hub() as running:
        yield running


@pytest.fixture
def run(hub, tmp_path):
    return runner(hub, tmp_path)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def edit(folder, words="\n## Mine\n"):
    """A card edited by hand."""
    card = folder / "README.md"
    card.write_bytes(card.read_bytes() + words.encode())
    return card.read_bytes()


def test_what_is_pushed_is_what_comes_back(hub, run, adapter, folder, tmp_path):
    (folder / "transcripts").mkdir()
    (folder / "transcripts" / "openness.jsonl").write_text("what was said\n")
    (folder / "secret.safetensors").write_text("not for the Hub")
    assert run(PUSH, folder, REPO) == f"{hub.address}/{REPO}"
    there = hub.files(REPO)
    assert set(there) == FILES | {".gitattributes"}
    assert all(there[name] == data for name, data in contents(folder).items() if name in FILES - {"README.md"})
    assert run(PULL, REPO, tmp_path / "back") == ""
    assert PersonalityAdapter.from_pretrained(tmp_path / "back") == adapter
    assert contents(tmp_path / "back") == {name: data for name, data in contents(folder).items() if name in FILES}


def test_one_commit_and_nothing_of_this_machine_in_it(hub, run, folder, tmp_path):
    run(PUSH, folder, REPO, commit_message="Warm and curious")
    assert hub.messages == ["", "Warm and curious"]
    assert hub.asked("POST", "/commit/") == [f"/api/models/{REPO}/commit/main"]
    sent = b"".join(hub.received) + b"".join(hub.files(REPO).values())  # the latter out of their base 64
    for own in (str(tmp_path), str(folder), "adapter/config.json"):
        assert own.encode() not in sent


def test_the_card_on_the_hub_names_the_repository(hub, run, folder):
    run(PUSH, folder, REPO)
    card = hub.files(REPO)["README.md"]
    assert b'adapter="me/personalities"' in card
    assert is_generated(card)


def test_a_push_over_an_older_one_sends_what_changed(hub, run, adapter, folder):
    run(PUSH, folder, REPO)
    sent = len(hub.asked("PUT", "/large/"))
    newer = adapter.with_trait(trait_record("wit", seed=77))
    newer.save_pretrained(folder)
    run(PUSH, folder, REPO)
    assert hub.files(REPO)["wit.safetensors"] == (folder / "wit.safetensors").read_bytes()
    assert len(hub.asked("PUT", "/large/")) == sent + sent // 3
    assert run(PUSH, folder, REPO) == f"{hub.address}/{REPO}"
    assert len(hub.messages) == 3  # made, pushed, pushed over; nothing changed the last time


def test_a_name_without_a_user_is_the_users_own(hub, run, folder):
    assert run(PUSH, folder, "personalities") == f"{hub.address}/me/personalities"
    assert set(hub.files(REPO)) > FILES
    assert b'adapter="me/personalities"' in hub.files(REPO)["README.md"]


def test_a_card_edited_here_goes_up_and_comes_back(hub, run, folder, tmp_path):
    mine = edit(folder)
    run(PUSH, folder, REPO)
    assert hub.files(REPO)["README.md"] == mine
    run(PULL, REPO, tmp_path / "back")
    assert (tmp_path / "back" / "README.md").read_bytes() == mine


@pytest.mark.parametrize("edited_here_too", [False, True])
def test_a_card_edited_on_the_hub_is_kept_unless_it_is_to_be_replaced(hub, run, adapter, folder, edited_here_too):
    run(PUSH, folder, REPO)
    edited = hub.files(REPO)["README.md"] + b"\nEdited there.\n"
    hub.commit(REPO, {"README.md": edited})
    mine = edit(folder) if edited_here_too else None
    adapter = PersonalityAdapter.from_pretrained(folder).with_trait(trait_record("wit", seed=77))
    adapter.save_pretrained(folder)
    run(PUSH, folder, REPO)
    assert hub.files(REPO)["README.md"] == edited
    assert hub.files(REPO)["wit.safetensors"] == (folder / "wit.safetensors").read_bytes()
    run(PUSH, folder, REPO, replace_card=True)
    assert hub.files(REPO)["README.md"] == (mine or adapter.contents(REPO)["README.md"])


def test_private_repositories(hub, run, adapter, folder, tmp_path):
    run(PUSH, folder, REPO, private=True)
    assert hub.repositories[REPO].private
    run(PUSH, folder, REPO, private=True)  # and once more, now that it is there
    run(PULL, REPO, tmp_path / "back")
    assert PersonalityAdapter.from_pretrained(tmp_path / "back") == adapter


def test_private_is_not_said_of_what_is_public(hub, run, folder):
    hub.create(REPO)
    assert run(PUSH, folder, REPO, private=True) == (
        "NptiError: The Hub repository 'me/personalities' is there already and public; make it private in its settings "
        "on the Hub, or give another name."
    )
    assert set(hub.files(REPO)) == {".gitattributes"}


def test_a_branch(hub, run, adapter, folder, tmp_path):
    assert run(PUSH, folder, REPO, branch="next/one") == f"{hub.address}/{REPO}/tree/next/one"
    assert set(hub.files(REPO)) == {".gitattributes"}
    newer = adapter.with_trait(trait_record("wit", seed=77))
    newer.save_pretrained(folder)
    run(PUSH, folder, REPO, branch="next/one")
    assert run(PULL, REPO, tmp_path / "back", revision="next/one") == ""
    assert PersonalityAdapter.from_pretrained(tmp_path / "back") == newer


def test_a_pull_request_by_somebody_who_may_not_write(hub, run, adapter, folder, tmp_path):
    hub.create(REPO)
    address = run(PUSH, folder, REPO, create_pr=True, token=GUEST_TOKEN)
    assert address == f"{hub.address}/{REPO}/discussions/1"
    assert set(hub.files(REPO)) == {".gitattributes"}
    assert run(PULL, REPO, tmp_path / "back", revision="refs/pr/1") == ""
    assert PersonalityAdapter.from_pretrained(tmp_path / "back") == adapter


def test_a_pull_request_makes_no_repository(hub, run, folder):
    assert run(PUSH, folder, REPO, create_pr=True) == (
        "NptiError: There is no Hub repository 'me/personalities' that you may see; check the name (a pull request "
        "needs one that is there)."
    )
    assert hub.repositories == {}


def test_a_pull_request_is_one_to_main(adapter):
    with pytest.raises(NptiError, match="one to main, not to 'next'; leave out create_pr or the branch"):
        adapter.push_to_hub(REPO, create_pr=True, branch="next", token="x")


def test_nobody_is_logged_in(hub, run, folder):
    expected = "NptiError: You are not logged in to the Hub; run 'hf auth login', or set HF_TOKEN."
    for name in (REPO, "personalities"):
        assert run(PUSH, folder, name, token=None) == expected
    assert hub.requests == []


@pytest.mark.parametrize("name", [REPO, "personalities"])
def test_a_token_that_the_hub_does_not_know(hub, run, folder, name):
    assert run(PUSH, folder, name, token=WRONG_TOKEN) == (
        "NptiError: The Hub does not know the token that you are logged in with (401); run 'hf auth login' again, or "
        "set HF_TOKEN."
    )
    assert hub.repositories == {}


@pytest.mark.parametrize(("token", "there"), [(READ_TOKEN, False), (GUEST_TOKEN, False), (GUEST_TOKEN, True)])
def test_no_permission(hub, run, folder, token, there):
    if there:
        hub.create(REPO)
    assert run(PUSH, folder, REPO, token=token) == (
        "NptiError: You may not write to 'me/personalities' on the Hub (403); take a token that may write there, give "
        "a name of your own with --repo, or open a pull request with --create-pr."
    )
    assert len(hub.messages) == there


@pytest.mark.parametrize(
    ("files", "by"),
    [
        ({"config.json": b'{"model_type": "llama"}', "model.safetensors": b"w"}, "its config.json is not that of a"),
        ({"config.json": b"[" * 100_000}, "its config.json is not that of a personality adapter"),
        ({"weights.gguf": b"w", "README.md": b"# Mine"}, "it holds weights.gguf and no adapter"),
    ],
)
def test_a_name_that_is_taken_by_something_else(hub, run, folder, files, by):
    hub.create(REPO, files)
    said = run(PUSH, folder, REPO)
    assert said.startswith(f"NptiError: The name 'me/personalities' on the Hub is taken by something else ({by}")
    assert said.endswith("); give another one, with --repo.")
    assert hub.files(REPO) == files


def test_a_name_that_is_taken_by_another_models_adapter(hub, run, adapter, folder):
    other = replace(adapter, base_model=base_model("someone/other-chat"))
    hub.create(REPO, other.contents(REPO))
    assert run(PUSH, folder, REPO) == (
        "NptiError: The name 'me/personalities' on the Hub is taken by something else (an adapter of "
        "someone/other-chat, while this one is of someone/small-chat); give another one, with --repo."
    )
    assert len(hub.messages) == 1


def test_a_repository_made_by_hand_is_free(hub, run, folder):
    there = {".gitattributes": b"", "LICENSE.txt": b"mine", "README.md": b"---\nlicense: mit\n---\n"}
    hub.create(REPO, there)
    run(PUSH, folder, REPO)
    assert hub.files(REPO) == there | {name: data for name, data in contents(folder).items() if name != "README.md"}


@pytest.mark.parametrize("name", ["../x", "a/b/c", "me/ personalities", "-", "me/x--y"])
def test_names_of_no_repository(adapter, name):
    with pytest.raises(NptiError, match=f"{re.escape(repr(name))} is no name of a Hub repository"):
        adapter.push_to_hub(name)


def test_metadata_that_the_hub_does_not_take(run, folder):
    card = folder / "README.md"
    card.write_text(card.read_text().replace("library_name", "license: nonsense\nlibrary_name"))
    said = run(PUSH, folder, REPO)
    assert "The Hub did not take the upload to 'me/personalities' (Invalid metadata in README.md" in said
    assert '"license" must be one of a list' in said


def test_a_connection_that_is_lost_in_the_middle_and_the_same_again(hub, run, adapter, folder):
    hub.breaks.append(Break("POST", "/commit/", "receiving"))
    said = run(PUSH, folder, REPO)
    assert said.startswith("NptiError: The connection to the Hub was lost while uploading to 'me/personalities' (")
    assert said.endswith(NOT_TWICE)
    assert set(hub.files(REPO)) == {".gitattributes"}
    sent = len(hub.asked("PUT", "/large/"))
    assert run(PUSH, folder, REPO) == f"{hub.address}/{REPO}"
    assert set(hub.files(REPO)) == FILES | {".gitattributes"}
    assert len(hub.asked("PUT", "/large/")) == sent > 0


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, run, folder):
    hub.breaks.append(Break("POST", "/commit/", "answering"))
    assert run(PUSH, folder, REPO).endswith(NOT_TWICE)
    assert set(hub.files(REPO)) == FILES | {".gitattributes"}
    assert run(PUSH, folder, REPO) == f"{hub.address}/{REPO}"
    assert len(hub.messages) == 2


def test_a_large_file_that_breaks_off_is_sent_again(hub, run, folder):
    hub.breaks.append(Break("PUT", "/large/", "receiving"))
    assert run(PUSH, folder, REPO) == f"{hub.address}/{REPO}"
    assert hub.breaks[0].times == 0
    assert hub.files(REPO)["wit.safetensors"] == (folder / "wit.safetensors").read_bytes()


@pytest.mark.parametrize("part", [1_000_000, 500])
def test_large_files_go_up_in_one_piece_or_in_parts(hub, run, adapter, folder, tmp_path, part):
    hub.part = part
    run(PUSH, folder, REPO)
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    assert len(hub.asked("PUT", "/large/")) == sum(-(-size // part) for size in sizes)
    run(PULL, REPO, tmp_path / "back")
    assert PersonalityAdapter.from_pretrained(tmp_path / "back") == adapter


def test_a_place_for_large_files_that_refuses(hub, run, folder):
    """The client raises this in a thread of its own, as another error."""
    hub.breaks.append(Break("PUT", "/large/", "never", times=100))
    assert "NptiError: You may not write to 'me/personalities' on the Hub (403)" in run(PUSH, folder, REPO)
    assert set(hub.files(REPO)) == {".gitattributes"}


def test_a_hub_that_cannot_be_reached(run, folder):
    with no_hub() as nowhere:
        for name in (REPO, "personalities"):
            said = run(PUSH, folder, name, hub=nowhere)
            assert said.startswith(f"NptiError: The connection to the Hub was lost while uploading to '{name}' (")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("HF_TOKEN=hf_abcdefghijklmnopqrstuvwx", "what looks like an access token"),
        ("my key is sk-proj-0123456789abcdef", "what looks like an access token"),
        ("hf_may_write", "what looks like an access token"),
        ("made from {home}/models", "a path of this machine"),
        ("see {cwd}.", "a path of this machine"),
        ("made in /home/ann/models", "a path of this machine ('/home/ann')"),
        (r"made in C:\Users\ann\models", "a path of this machine"),
    ],
)
def test_nothing_private_goes_up(hub, run, folder, tmp_path, words, found):
    edit(folder, words.format(home=tmp_path / "home", cwd=tmp_path))
    said = run(PUSH, folder, REPO)
    assert said.startswith(f"NptiError: README.md holds {found}")
    assert "; take it out" in said
    assert "0123456789" not in said
    assert hub.requests == []


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/home/ann",
        "hf_hub_download_with_progress_bars",
        "task-0123456789abcdefghij",
        "and/or",
        "~/models",
        "./home/x",
    ],
)
def test_what_is_not_private(text, monkeypatch):
    monkeypatch.setenv("HOME", "/or")
    check_nothing_private({"README.md": text.encode()}, "hf_other")


@pytest.mark.parametrize("base", ["a/b", "a/..", "x" * 300, "-", "ü", "a//b.", "a--b..c", "my model: v2", "a/b-.git"])
def test_the_default_name_is_one(base):
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(f"{'u' * 30}/{default_name(base)}")
    assert default_name(base).endswith("personality")
