"""To the Hub and back, over real HTTP with a small Hub on localhost."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

import pytest
from made_by_hand import trait_record
from small_hub import TOKEN, WRONG_TOKEN, SmallHub, small_hub

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.card import is_generated
from npti_export.errors import NptiError

REPO = "me/personalities"
FILES = {"README.md", "config.json", "neuroticism.safetensors", "openness.safetensors", "wit.safetensors"}

PUSH = """
import sys
from npti_export.adapter.adapter import PersonalityAdapter
adapter = PersonalityAdapter.from_pretrained(sys.argv[1])
print(adapter.push_to_hub(sys.argv[2], **eval(sys.argv[3])))
"""
PULL = """
import sys
from npti_export.adapter.adapter import PersonalityAdapter
PersonalityAdapter.from_pretrained(sys.argv[1], **eval(sys.argv[3])).save_pretrained(sys.argv[2])
"""


@pytest.fixture
def hub():
    with small_hub() as running:
        yield running


@pytest.fixture
def run(hub, tmp_path):
    """Runs a program in a process that knows this Hub only; gives its output, or the one sentence of its error."""

    def start(program, *arguments, token=TOKEN, hub=hub, **options):
        # The package's error, and no other, is printed as a sentence.
        wrapped = "\n".join(
            ["from npti_export.errors import NptiError", "try:"]
            + [f"    {line}" for line in program.strip().splitlines()]
            + ["except NptiError as error: print('NptiError:', error)"]
        )
        done = subprocess.run(
            [sys.executable, "-c", wrapped, *map(str, arguments), repr(options)],
            env=hub.environment(tmp_path / "hf", token),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") <= 1
        return done.stdout.strip()

    return start


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


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


def test_one_commit_and_nothing_of_this_machine_in_it(hub, run, folder, tmp_path):
    run(PUSH, folder, REPO, commit_message="Warm and curious")
    assert hub.messages == ["", "Warm and curious"]
    commits = [path for method, path in hub.requests if method == "POST" and "/commit/" in path]
    assert commits == [f"/api/models/{REPO}/commit/main"]
    sent = b"".join(hub.received) + b"".join(hub.files(REPO).values())  # the latter out of their base 64
    for own in (str(tmp_path), str(folder), "adapter/config.json"):
        assert own.encode() not in sent


def test_the_card_on_the_hub_names_the_repository(hub, run, folder):
    run(PUSH, folder, REPO)
    card = hub.files(REPO)["README.md"]
    assert b'adapter="me/personalities"' in card
    assert is_generated(card)


def test_a_push_over_an_older_one_and_an_older_one_by_its_commit(hub, run, adapter, folder, tmp_path):
    run(PUSH, folder, REPO)
    older = hub.repositories[REPO][-1]
    newer = adapter.with_trait(trait_record("wit", seed=77))
    newer.save_pretrained(folder)
    run(PUSH, folder, REPO)
    run(PULL, REPO, tmp_path / "newer")
    run(PULL, REPO, tmp_path / "older", revision=older)
    assert PersonalityAdapter.from_pretrained(tmp_path / "newer") == newer
    assert PersonalityAdapter.from_pretrained(tmp_path / "older") == adapter


def test_a_card_edited_here_goes_up_and_comes_back(hub, run, folder, tmp_path):
    mine = (folder / "README.md").read_bytes() + b"\n## Mine\n"
    (folder / "README.md").write_bytes(mine)
    run(PUSH, folder, REPO)
    assert hub.files(REPO)["README.md"] == mine
    run(PULL, REPO, tmp_path / "back")
    assert (tmp_path / "back" / "README.md").read_bytes() == mine


def test_a_card_edited_on_the_hub_is_not_written_over(hub, run, adapter, folder):
    run(PUSH, folder, REPO)
    edited = hub.files(REPO)["README.md"] + b"\nEdited there.\n"
    hub.commit(REPO, {"README.md": edited})
    adapter.with_trait(trait_record("wit", seed=77)).save_pretrained(folder)
    run(PUSH, folder, REPO)
    assert hub.files(REPO)["README.md"] == edited
    assert hub.files(REPO)["wit.safetensors"] == (folder / "wit.safetensors").read_bytes()


def test_a_name_without_a_user_is_the_users_own(hub, run, folder):
    assert run(PUSH, folder, "personalities") == f"{hub.address}/me/personalities"
    assert set(hub.files(REPO)) > FILES


def test_private_repositories(hub, run, adapter, folder, tmp_path):
    run(PUSH, folder, REPO, private=True)
    assert hub.private == {REPO}
    run(PULL, REPO, tmp_path / "back")
    assert PersonalityAdapter.from_pretrained(tmp_path / "back") == adapter


def test_a_private_repository_without_a_token(hub, run, tmp_path):
    hub.create(REPO, private=True)
    said = run(PULL, REPO, tmp_path / "back", token=None)
    assert said == (
        "NptiError: There is no folder 'me/personalities' and no such Hub repository that you may read; log in with "
        "'hf auth login' if it is private."
    )


def test_a_repository_that_is_not_there(run, tmp_path):
    assert "no folder 'me/gone' and no such Hub repository that you may read" in run(PULL, "me/gone", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(("token", "status"), [(WRONG_TOKEN, 401), (None, 403)])
def test_a_token_that_may_not_write(run, hub, folder, token, status):
    said = run(PUSH, folder, REPO, token=token)
    assert said == (
        f"NptiError: The Hub refuses to write to 'me/personalities' ({status}); log in with 'hf auth login' and a "
        "token that may write there."
    )
    assert hub.repositories == {}


def test_a_token_that_the_hub_does_not_know(run, hub, folder, tmp_path):
    hub.create(REPO)
    said = run(PULL, REPO, tmp_path / "back", token=WRONG_TOKEN)
    assert "The Hub does not let you read 'me/personalities' (401); log in with 'hf auth login'" in said


@pytest.mark.parametrize("name", ["../x", "a/b/c", "me/ personalities", "-", "me/x--y"])
def test_names_of_no_repository(adapter, name):
    with pytest.raises(NptiError, match=f"{re.escape(repr(name))} is no name of a Hub repository"):
        adapter.push_to_hub(name)
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
    assert [path for _, path in hub.requests if "model.safetensors" in path] == []


def test_a_repository_without_a_config(run, hub, tmp_path):
    hub.create("some/data", {"data.csv": b"1,2"})
    said = run(PULL, "some/data", tmp_path / "back")
    assert said == ("NptiError: The Hub repository 'some/data' holds no personality adapter (there is no config.json).")


def test_metadata_that_the_hub_does_not_take(run, hub, folder):
    card = folder / "README.md"
    card.write_text(card.read_text().replace("library_name", "license: nonsense\nlibrary_name"))
    said = run(PUSH, folder, REPO)
    assert "The Hub did not take the upload to 'me/personalities' (Invalid metadata in README.md" in said
    assert '"license" must be one of a list' in said


def test_a_hub_that_cannot_be_reached(run, folder, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: every connection is refused
        nowhere = SmallHub(f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert "The Hub did not take the upload to 'me/personalities' (" in run(PUSH, folder, REPO, hub=nowhere)
        pulled = run(PULL, REPO, tmp_path / "back", hub=nowhere)
    assert "The adapter 'me/personalities' could not be fetched from the Hub (" in pulled


def test_what_was_fetched_once_is_there_without_the_hub(run, hub, adapter, folder, tmp_path):
    run(PUSH, folder, REPO)
    run(PULL, REPO, tmp_path / "first")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = SmallHub(f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert run(PULL, REPO, tmp_path / "second", hub=nowhere) == ""
    assert PersonalityAdapter.from_pretrained(tmp_path / "second") == adapter
