"""``npti-export calibrate`` on the bundled adapter: what it says is what it writes, and what it costs is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.adapter.find import bundled_folder
from npti_export.cli import main
from npti_export.evaluation.dose.trial import with_dose
from npti_export.identification.elicit import read_transcripts, write_transcripts
from npti_export.pipeline import transcripts_file
from npti_export.traits import Pole

ROOT = Path(__file__).parents[2]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundled_folder(), tmp_path / "adapter"))


@pytest.mark.slow
def test_the_dose_that_is_said_is_the_dose_that_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = PersonalityAdapter.from_pretrained(folder)
    arguments = ["calibrate", str(folder), "--trait", "agreeableness", "--max-questions", "4", "--max-ratio", "1.4"]
    code, out, err = run([*arguments, "--json"], capsys)
    assert code == 0
    said = json.loads(out)
    after = PersonalityAdapter.from_pretrained(folder)
    assert set(said["poles"]) == {"agreeableness+", "agreeableness-"}
    for pole in Pole:
        row, record = said["poles"][f"agreeableness{pole.sign}"], after.traits["agreeableness"].poles[pole]
        assert (record.gamma, record.calibrated, record.scores) == (row["gamma"], True, {})
        assert len(record.dose_curve) == len(row["doses"]) >= 7
        expected = with_dose(before.traits["agreeableness"].poles[pole], row["gamma"])
        assert expected.neurons == record.neurons
        assert row["affordable"] == (row["fluency"][2] <= 1.4)
    for name in before.traits:
        if name != "agreeableness":
            assert before.traits[name] == after.traits[name]
    over = [cost for cost in said["sums"] if cost["overdoses"]]
    assert len(said["sums"]) == 4 * 4 + 2
    assert (f"{len(over)} of 18 sums cost more" in err) == bool(over)
    assert (folder / "statistics" / "agreeableness.calibration.json").is_file()


def test_what_cannot_be_calibrated_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(["calibrate", "me/of-the-hub", "-q"], capsys)
    assert code == 1
    assert "There is no folder me/of-the-hub" in err
    assert "npti-export pull" in err
    code, _, err = run(["calibrate", str(folder), "--trait", "bravery", "-q"], capsys)
    assert code == 1
    assert "no trait 'bravery'" in err
    shutil.rmtree(folder / "transcripts")
    code, _, err = run(["calibrate", str(folder), "--trait", "openness", "-q"], capsys)
    assert code == 1
    assert "The local judge learns from transcripts" in err
    assert (
        PersonalityAdapter.from_pretrained(folder).traits == PersonalityAdapter.from_pretrained(bundled_folder()).traits
    )


@pytest.mark.slow
def test_a_trait_of_ones_own_is_calibrated_from_its_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The neurons and answers are another trait's under its name; what it is asked are its own questions."""
    own = ROOT / "docs" / "formality.toml"
    adapter = PersonalityAdapter.from_pretrained(folder)
    adapter.with_trait(replace(adapter.traits["openness"], name="formality")).save_pretrained(folder)
    said = read_transcripts(transcripts_file(folder, "openness"))
    write_transcripts(transcripts_file(folder, "formality"), [replace(one, trait="formality") for one in said])
    arguments = ["calibrate", str(folder), "--trait", "formality", "--max-questions", "2", "-q"]
    code, _, err = run(arguments, capsys)
    assert code == 1
    assert "no trait 'formality'" in err
    assert "--trait-file names one of your own" in err
    code, out, err = run([*arguments, "--trait-file", str(own), "--json"], capsys)
    assert code == 0, err
    assert set(json.loads(out)["poles"]) == {"formality+", "formality-"}
    after = PersonalityAdapter.from_pretrained(folder)
    assert {len(record.dose_curve) >= 7 for record in after.traits["formality"].poles.values()} == {True}
