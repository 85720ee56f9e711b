"""``push`` and ``pull`` as one types them, against a small Hub on localhost."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
from hub_process import COMMAND, started
from made_by_hand import base_model, trait_record, write_config
from small_hub import GUEST_TOKEN, TOKEN, WRONG_TOKEN, Break, SmallHub, no_hub, small_hub

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.card import is_generated
from npti_export.cli import main

REPO = "me/small-chat-personality"
FOLDER = "adapters/someone--small-chat"
ANSWER = '{"trait": "openness", "answer": "Gladly."}\n'


@pytest.fixture
def hub():
    with small_hub() as running:
        yield running


@pytest.fixture
def adapter():
    names = ("openness", "wit")
    return PersonalityAdapter(base_model(), {name: trait_record(name, seed) for seed, name in enumerate(names)})


@pytest.fixture
def folder(adapter, tmp_path):
    """The adapter where identify writes it, with what identify leaves beside it."""
    place = tmp_path / FOLDER
    adapter.save_pretrained(place)
    (place / "transcripts").mkdir()
    for trait in ("openness", "wit", "stranger", ".openness.0a1b"):
        (place / "transcripts" / f"{trait}.jsonl").write_text(ANSWER)
    (place / "notes.txt").write_text("mine")
    return place


@pytest.fixture
def run(hub, tmp_path):
    """Runs a command; gives its exit code, its output and what it says on stderr."""

    def command(
        *arguments: str, token: str | None = TOKEN, hub: SmallHub = hub, **variables: str
    ) -> tuple[int, str, str]:
        done = started(COMMAND, list(arguments), hub, tmp_path, token, NPTI_MODEL="someone/small-chat", **variables)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    return command


def refused(done: tuple[int, str, str]) -> str:
    """The one sentence of an error."""
    code, out, err = done
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert err.startswith("Error: ")
    return err.removeprefix("Error: ").strip()


def rows(listing: str) -> dict[str, int]:
    """Files and their sizes as they were shown."""
    return {name: int(size.replace(",", "")) for size, name in re.findall(r"^ *([\d,]+) bytes  (\S+)$", listing, re.M)}


def test_push_without_arguments(hub, run, folder):
    code, out, err = run("push")
    assert (code, out) == (0, f"{hub.address}/{REPO}\n")
    there = hub.files(REPO)
    assert set(there) == {".gitattributes", "README.md", "config.json", "openness.safetensors", "wit.safetensors"}
    assert rows(err) == {name: len(data) for name, data in there.items() if name != ".gitattributes"}
    assert there["README.md"].decode() in err
    assert len(hub.asked("POST", "/commit/")) == 1
    assert run("push", "--quiet") == (0, f"{hub.address}/{REPO}\n", "")


def test_push_takes_the_adapter_that_was_written_last(hub, run, adapter, folder, tmp_path):
    newer = PersonalityAdapter(base_model(), {"wit": trait_record("wit", seed=9)})
    newer.save_pretrained(tmp_path / "own" / "someone--small-chat")
    os.utime(folder / "config.json", (1, 1))
    run("push", "-q")
    assert "openness.safetensors" not in hub.files(REPO)
    os.utime(folder / "config.json")
    os.utime(tmp_path / "own" / "someone--small-chat" / "config.json", (1, 1))
    run("push", "-q")
    assert "openness.safetensors" in hub.files(REPO)


def test_a_dry_run_shows_everything_and_asks_nobody(hub, run, folder):
    code, out, err = run("push", "--dry-run", token=None)
    assert code == 0
    assert f"to you/{REPO.split('/')[1]}" in err
    shown = rows(out)
    assert list(shown) == ["README.md", "config.json", "openness.safetensors", "wit.safetensors"]
    assert shown["wit.safetensors"] == (folder / "wit.safetensors").stat().st_size
    total = re.search(r"([\d,]+) bytes  in 4 files", out)
    assert int(total[1].replace(",", "")) == sum(shown.values())
    assert 'adapter="you/small-chat-personality"' in out
    assert "# Personalities for someone/small-chat" in out
    assert hub.requests == []


def test_transcripts_go_up_only_when_asked_for_and_only_those_of_the_traits(hub, run, folder):
    run("push", "-q", "--with-transcripts")
    there = hub.files(REPO)
    assert {name for name in there if "/" in name} == {"transcripts/openness.jsonl", "transcripts/wit.jsonl"}
    assert there["transcripts/wit.jsonl"] == ANSWER.encode()
    _, out, _ = run("push", "--dry-run", "--with-transcripts")
    assert rows(out)["transcripts/wit.jsonl"] == len(ANSWER)


def test_transcripts_that_are_missing_or_lead_elsewhere(hub, run, folder, tmp_path):
    transcripts = folder / "transcripts"
    (transcripts / "wit.jsonl").unlink()
    place = f"{FOLDER}/transcripts/wit.jsonl"
    assert (
        refused(run("push", "--with-transcripts")) == f"There are no transcripts {place}; leave out --with-transcripts."
    )
    (tmp_path / "secret").write_text("not for the Hub")
    (transcripts / "wit.jsonl").symlink_to(tmp_path / "secret")
    assert refused(run("push", "--with-transcripts")) == (
        f"{place} is a link, which may lead anywhere; put the file itself there."
    )
    shutil.move(transcripts, tmp_path / "elsewhere")
    transcripts.symlink_to(tmp_path / "elsewhere")
    assert "is a link" in refused(run("push", "--with-transcripts"))
    assert "not for the Hub" not in b"".join(hub.received).decode(errors="replace")
    assert REPO not in hub.repositories


def test_push_private_to_a_branch_and_as_a_pull_request(hub, run, folder):
    run("push", "-q", "--private", "--repo", "me/other")
    assert hub.repositories["me/other"].private
    assert run("push", "-q", "--branch", "next", "--repo", "other")[1] == f"{hub.address}/me/other/tree/next\n"
    hub.create("me/open")
    done = run("push", "-q", "--create-pr", "--repo", "me/open", token=GUEST_TOKEN)
    assert done == (0, f"{hub.address}/me/open/discussions/1\n", "")
    code, _, err = run("push", "--create-pr", "--branch", "next")
    assert code == 2
    assert "leave out --create-pr or --branch" in err


def test_an_edited_card_on_the_hub_is_kept_unless_it_is_to_be_replaced(hub, run, folder):
    run("push", "-q")
    hub.commit(REPO, {"README.md": b"# Written by hand\n"})
    code, _, err = run("push")
    assert code == 0
    assert err.endswith("The model card on the Hub was edited by hand and is kept; --replace-card replaces it.\n")
    assert hub.files(REPO)["README.md"] == b"# Written by hand\n"
    run("push", "-q", "--replace-card")
    assert is_generated(hub.files(REPO)["README.md"])


def test_an_edited_card_here_goes_up_and_is_said_to(hub, run, folder):
    (folder / "README.md").write_text("# Mine\n")
    _, _, err = run("push")
    assert f"{FOLDER}/README.md was edited by hand and went up as it is" in err
    assert hub.files(REPO)["README.md"] == b"# Mine\n"


def test_a_damaged_folder_does_not_go_up(hub, run, folder):
    (folder / "wit.safetensors").write_bytes(b"damaged")
    for arguments in (["push"], ["push", "--dry-run"]):
        assert f"{FOLDER}/wit.safetensors is damaged" in refused(run(*arguments))
    assert hub.requests == []


def test_a_card_with_a_token_does_not_go_up_and_the_token_is_not_shown(hub, run, folder):
    (folder / "README.md").write_text("hf_abcdefghijklmnopqrstuvwxyz")
    for arguments in (["push", "--repo", REPO], ["push", "--dry-run"]):
        said = refused(run(*arguments))
        assert said.startswith("README.md holds what looks like an access token")
        assert "abcdef" not in said
    assert hub.requests == []


def test_what_can_go_wrong_is_one_sentence(hub, run, folder):
    not_logged_in = "You are not logged in to the Hub; run 'hf auth login', or set HF_TOKEN."
    assert refused(run("push", token=None)) == not_logged_in
    assert refused(run("push", token=WRONG_TOKEN)).startswith("The Hub does not know the token")
    assert refused(run("push", "--quiet", "--repo", "else/where")).startswith("You may not write to 'else/where'")
    hub.create("me/taken", {"config.json": b"{}", "model.safetensors": b"w"})
    assert "is taken by something else" in refused(run("push", "-q", "--repo", "me/taken"))
    assert refused(run("push", "-q", "--repo", "a/b/c")).startswith("'a/b/c' is no name of a Hub repository")
    with no_hub() as nowhere:
        said = refused(run("push", "--quiet", "--repo", REPO, hub=nowhere))
        assert said.startswith(f"The connection to the Hub was lost while uploading to '{REPO}' (")


def test_a_connection_that_is_lost_in_the_middle_and_the_same_again(hub, run, folder):
    hub.breaks.append(Break("POST", "/commit/", "receiving"))
    said = refused(run("push", "--quiet"))
    assert said.startswith(f"The connection to the Hub was lost while uploading to '{REPO}' (")
    assert "run the same again" in said
    sent = len(hub.asked("PUT", "/large/"))
    assert run("push", "--quiet")[0] == 0
    assert len(hub.asked("PUT", "/large/")) == sent
    assert "config.json" in hub.files(REPO)


def test_a_folder_that_is_not_there(run):
    assert (
        refused(run("push", "nowhere")) == "There is no folder nowhere; identify writes adapters into adapters/<model>."
    )
    assert refused(run("push")).startswith("No adapter for someone/small-chat was found in adapters/")


def test_pull_puts_it_where_it_is_found(hub, run, adapter, tmp_path):
    hub.create(REPO, adapter.contents(REPO))
    code, out, err = run("pull", REPO)
    place = tmp_path / "own" / "someone--small-chat"
    assert (code, out) == (0, f"{place}\n")
    assert f"{REPO} at {hub.sha(REPO)[:12]}" in err
    assert PersonalityAdapter.from_pretrained(place) == adapter
    code, out, _ = run("push", "--dry-run", "-q")  # which looks for it, without a name
    assert code == 0
    assert "wit.safetensors" in out


def test_pull_a_trait_a_revision_and_another_trait_to_it(hub, run, adapter, tmp_path):
    first = hub.create(REPO, adapter.contents(REPO))
    newer = adapter.with_trait(trait_record("wit", seed=77))
    hub.commit(REPO, newer.contents(REPO))
    arguments = ["pull", REPO, "--output", "mine", "--quiet", "--json"]
    code, out, err = run(*arguments, "--trait", "wit", "--revision", first)
    assert (code, err) == (0, "")
    assert json.loads(out) == {"folder": "mine", "commit": first, "traits": ["wit"]}
    mine = tmp_path / "mine"
    assert sorted(path.name for path in mine.iterdir()) == ["README.md", "config.json", "wit.safetensors"]
    assert PersonalityAdapter.from_pretrained(mine).traits == {"wit": adapter.traits["wit"]}
    run(*arguments, "--trait", "openness")
    assert PersonalityAdapter.from_pretrained(mine) == adapter
    run(*arguments)
    assert PersonalityAdapter.from_pretrained(mine) == newer


def test_pull_mends_what_is_damaged_here(hub, run, adapter, tmp_path):
    """Also a trait whose new file stands there already, and config.json not yet, since the run was killed."""
    hub.create(REPO, adapter.contents(REPO))
    own = trait_record("bravery")
    adapter.with_trait(own).save_pretrained(tmp_path / "mine")
    (tmp_path / "mine" / "wit.safetensors").write_bytes(b"damaged")
    arguments = ["pull", REPO, "--output", "mine", "-q"]
    assert "wit.safetensors is damaged" in refused(run(*arguments, "--trait", "openness"))
    assert run(*arguments, "--trait", "Wit") == (0, "mine\n", "")
    assert PersonalityAdapter.from_pretrained(tmp_path / "mine") == adapter.with_trait(own)


def test_pull_does_not_write_over_another_models_adapter(hub, run, adapter, tmp_path):
    hub.create(REPO, adapter.contents(REPO))
    other = PersonalityAdapter(base_model("else/chat"), {"wit": trait_record("wit")})
    other.save_pretrained(tmp_path / "mine")
    assert refused(run("pull", REPO, "-q", "--output", "mine")) == (
        "mine holds the adapter of another base model (else/chat, 36 neurons, weights cccccccccccc) than this one "
        "(someone/small-chat, 36 neurons, weights cccccccccccc); choose another --output, or remove that adapter."
    )
    assert PersonalityAdapter.from_pretrained(tmp_path / "mine") == other


@pytest.mark.parametrize("identity", ["..", ".", "a\\b", "../../x", "/etc"])
def test_pull_does_not_leave_its_folder(hub, run, adapter, folder, tmp_path, identity):
    """The name of the base model comes from somebody's config; the adapter goes into a folder of that name."""
    fields = json.loads((folder / "config.json").read_bytes())
    fields["base_model"]["id"] = identity
    write_config(folder, fields)
    hub.create(REPO, {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    assert "field base_model.id" in refused(run("pull", REPO, "-q"))
    assert {path.parent for path in tmp_path.rglob("config.json") if "hf" not in path.parts} == {folder}
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("there_already", [False, True])
def test_a_pull_whose_connection_is_lost_in_the_middle_writes_nothing(hub, run, adapter, tmp_path, there_already):
    place = tmp_path / "own" / "someone--small-chat"
    if there_already:
        adapter.save_pretrained(place)
    before = {path.name: path.read_bytes() for path in place.glob("*")}
    newer = adapter.with_trait(trait_record("wit", seed=77))
    hub.create(REPO, newer.contents(REPO))
    hub.breaks.append(Break("GET", "/resolve/.*README.md", "sending", times=100))
    said = refused(run("pull", REPO))
    assert said.startswith(f"The adapter '{REPO}' could not be fetched from the Hub (")
    assert said.endswith("try again, whole files are kept.")
    assert {path.name: path.read_bytes() for path in place.glob("*")} == before
    hub.breaks.clear()
    assert run("pull", REPO, "-q") == (0, f"{place}\n", "")
    assert PersonalityAdapter.from_pretrained(place) == newer


def test_pull_adds_to_an_import_of_the_same_model(hub, run, adapter, folder, tmp_path):
    """An import knows neither the weights nor, without the model's config, its type."""
    unsure = base_model(fingerprint=None, model_type="unknown", activation="unknown")
    PersonalityAdapter(unsure, {"bravery": trait_record("bravery")}).save_pretrained(tmp_path / "mine")
    hub.create(REPO, adapter.contents(REPO))
    assert run("pull", REPO, "-q", "--output", "mine")[0] == 0
    both = PersonalityAdapter.from_pretrained(tmp_path / "mine")
    assert both.base_model == adapter.base_model
    assert list(both.traits) == ["openness", "bravery", "wit"]


def test_inspect_shows_what_lies_on_the_hub(hub, run, adapter, tmp_path):
    """It fetches it into the cache and is there without the Hub from then on; nothing of it is the user's own yet."""
    hub.create(REPO, adapter.contents(REPO), private=True)
    code, out, err = run("inspect", REPO)
    assert (code, err) == (0, "")
    assert out.startswith(f"{REPO}: personalities of someone/small-chat\n")
    for name in ("openness+", "openness-", "wit+", "wit-"):
        assert f"│ {name}" in out
    sizes = sum(map(len, adapter.contents(REPO).values()))
    assert out.endswith(f"{sizes:,} bytes in all\n")
    assert not (tmp_path / "own").exists()
    found = json.loads(run("inspect", REPO, "--json")[1])
    assert (found["adapter"], found["bytes"]) == (REPO, sizes)
    with no_hub() as nowhere:
        assert run("inspect", REPO, hub=nowhere) == (0, out, "")
    assert refused(run("inspect", "me/gone")).startswith("There is no folder 'me/gone' and no such Hub repository")


def test_what_pull_cannot_fetch_is_one_sentence(hub, run):
    assert refused(run("pull", "me/gone")).startswith("There is no folder 'me/gone' and no such Hub repository")
    hub.create("me/data", kind="datasets")
    assert refused(run("pull", "me/data")).startswith("'me/data' on the Hub is a dataset")
    hub.create("me/empty")
    assert "holds no personality adapter" in refused(run("pull", "me/empty"))
    assert "has no revision 'v9'" in refused(run("pull", "me/empty", "--revision", "v9"))
    with no_hub() as nowhere:
        assert "could not be fetched from the Hub" in refused(run("pull", REPO, hub=nowhere))
    assert "may not be asked" in refused(run("pull", REPO, HF_HUB_OFFLINE="1"))


def test_commands_are_in_the_help(capsys):
    for name, options in {
        "push": ["--repo", "--private", "--create-pr", "--branch", "--dry-run", "--with-transcripts", "--replace-card"],
        "pull": ["--revision", "--trait", "--output"],
    }.items():
        with pytest.raises(SystemExit):
            main([name, "--help"])
        shown = capsys.readouterr().out
        assert all(option in shown for option in options)
