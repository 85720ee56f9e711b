"""The page of a report: whole, escaped, self-contained; and in a real browser without a complaint, on every size."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from made_evaluation import HOSTILE, made_evaluation
from markupsafe import escape

from npti_export.errors import NptiError
from npti_export.evaluation.report.html_report import page, write_html_report
from npti_export.evaluation.report.pictures import drawn, svg

PICTURES = ("effects", "radar", "doses", "bleed", "neurons")
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
in_a_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian: apt-get install chromium)")

TRY_IT = """
<script>
addEventListener("load", () => {
  const found = {}, shown = () => [...document.querySelectorAll("article")].filter(one => !one.hidden);
  const cells = () => shown().flatMap(one => [...one.querySelectorAll("[data-method]")].filter(cell => !cell.hidden));
  const change = (element, value) => {
    if (element.type === "checkbox") element.checked = value; else element.value = value;
    element.dispatchEvent(new Event("input"));
  };
  found.first = [shown().length, cells().length];
  found.overflow = document.documentElement.scrollWidth - innerWidth;
  found.scripts_run = window.hostile || 0;
  change(document.getElementById("personality"), "");
  found.all = shown().length;
  change(document.getElementById("words"), "question 3 ON extraversion");
  found.words = [shown().length, document.getElementById("count").textContent];
  change(document.getElementById("words"), "placebo says");
  found.hidden_are_not_searched = shown().length;
  for (const box of document.querySelectorAll(".method")) change(box, box.value === "placebo");
  found.placebo = [shown().length, cells().length];
  found.pictures = [...document.querySelectorAll("figure svg")].map(one => one.getBoundingClientRect().height);
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
});
</script>
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_html_report(made_evaluation(), folder)
    return folder


def without_pictures(**changes: object) -> str:
    evaluation = made_evaluation(("openness", "neuroticism"), questions=3)
    return page(replace(evaluation, **changes), [])


def test_every_figure_of_an_evaluation_stands_in_the_page() -> None:
    evaluation = made_evaluation(("openness", "neuroticism"), questions=3)
    text = html.unescape(without_pictures())
    for result in evaluation.personalities:
        for method in result.methods:
            rating = method.rating()
            assert f"{rating.mean.mean:.2f} [{rating.mean.low:.2f}, {rating.mean.high:.2f}]" in text
            assert all(answer in text for answer in method.answers)
        assert all(question in text for question in result.questions)
    for said in ("tests/tiny-chat", "npti-export eval", "torch 2.13.0", "0.71", "61.0 ± 3.4", "-1.50 [-4.00, +1.00]"):
        assert said in text
    assert text.count("failed: refused") == 0  # the main judge gave every score
    assert "3.40 [3.10, 3.70] (62)" in text
    assert "secondary" in text


def test_sections_that_were_not_measured_are_left_out() -> None:
    text = without_pictures(sections={}, seeds=(), agreement=())
    assert 'id="capability"' not in text
    assert 'id="inventory"' not in text
    assert "Judge of trait: openai:judge, 1 to 5; no score: refused 32 times." in html.unescape(text)
    assert "questions to be found with 80 % power" in html.unescape(text)
    with_other = without_pictures(sections={"speed": {"tokens": "<b>"}})
    assert "Speed" in with_other
    assert "\\u003cb\\u003e" in with_other


def test_what_models_wrote_is_text_and_nothing_else() -> None:
    text = without_pictures()
    assert HOSTILE not in text
    assert str(escape(HOSTILE)) in text
    assert text.count("<script>") == 1  # its own


def test_the_page_needs_nothing_from_outside() -> None:
    text = without_pictures()
    assert "default-src 'none'" in text
    assert not re.findall(r"""(?:src|href|action|url)\s*[=(]\s*["']?(?!#)(?:\w+:)?//""", text)
    assert "@import" not in text


def test_an_evaluation_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NptiError, match="holds no personality"):
        write_html_report(replace(made_evaluation(), personalities=()), tmp_path)


@pytest.mark.slow
def test_pictures_are_drawn_of_what_there_is() -> None:
    whole = made_evaluation(("openness", "neuroticism", "extraversion"), questions=2)
    assert tuple(drawn(whole)) == PICTURES
    bare = tuple(
        replace(result, curves=(), methods=tuple(replace(method, bleed={}) for method in result.methods[:2]))
        for result in whole.personalities[:2]
    )
    assert tuple(drawn(replace(whole, personalities=bare, sections={}))) == ("effects",)
    alone = tuple(replace(result, methods=result.methods[:1]) for result in bare)
    assert drawn(replace(whole, personalities=alone, sections={})) == {}


@pytest.mark.slow
def test_a_picture_is_the_same_every_time_and_shares_no_id_with_another() -> None:
    evaluation = made_evaluation(("openness", "neuroticism"), questions=2)
    texts = [{name: svg(figure, name) for name, figure in drawn(evaluation).items()} for _ in range(2)]
    assert texts[0] == texts[1]
    ids = [found for text in texts[0].values() for found in set(re.findall(r' id="([^"]+)"', text))]
    assert len(ids) == len(set(ids)) > 0
    assert all(text.startswith("<svg") and 'width="' not in text.split(">")[0] for text in texts[0].values())


@pytest.mark.slow
def test_the_folder_holds_page_and_pictures(report: Path) -> None:
    assert {path.name for path in report.iterdir()} == {"report.html", *(f"{name}.png" for name in PICTURES)}
    assert all((report / f"{name}.png").read_bytes()[:4] == b"\x89PNG" for name in PICTURES)
    assert (report / "report.html").read_text(encoding="utf-8").count("<svg") == len(PICTURES)


def browse(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """One run of the browser; what the page says to the console is on stderr."""
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += ["--virtual-time-budget=5000", f"--user-data-dir={path.parent / 'profile'}", *options]
    return subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=300, check=True)


def console(run: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in run.stderr.splitlines() if ":CONSOLE" in line]


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_the_filter_works_and_nothing_complains(report: Path, tmp_path: Path, width: int) -> None:
    tried = tmp_path / "report.html"
    text = (report / "report.html").read_text(encoding="utf-8")
    tried.write_text(text.replace("alert('x')", "window.hostile = 1").replace("</body>", TRY_IT + "</body>"), "utf-8")
    run = browse(tried, f"--window-size={width},2000", "--dump-dom")
    assert console(run) == []
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', run.stdout, re.DOTALL)[1]))
    questions, personalities, methods = 6, 10, 8
    assert found["first"] == [questions, 3 * questions]  # one personality: unsteered, adapter, persona prompt
    assert found["all"] == questions * personalities
    assert found["words"] == [2, "2 questions"]  # the high and the low pole
    assert found["hidden_are_not_searched"] == 0
    assert found["placebo"] == [60, 60] != [60, 60 * methods]
    assert found["overflow"] <= 0  # tables and pictures scroll in their own place
    assert len(found["pictures"]) == len(PICTURES)
    assert min(found["pictures"]) > 150
    assert found["scripts_run"] == 0


@pytest.mark.slow
@in_a_browser
def test_a_screenshot_and_a_print_come_out(report: Path, tmp_path: Path) -> None:
    copy = shutil.copy(report / "report.html", tmp_path / "report.html")
    picture, printed = tmp_path / "page.png", tmp_path / "page.pdf"
    assert console(browse(Path(copy), "--window-size=1280,9000", f"--screenshot={picture}")) == []
    assert console(browse(Path(copy), f"--print-to-pdf={printed}")) == []
    from matplotlib.image import imread

    pixels = imread(picture)
    assert pixels.shape[:2] == (9000, 1280)
    # Something is drawn in every ninth of the page, also far down where the pictures are.
    assert all(pixels[part * 1000 : (part + 1) * 1000, :, :3].std() > 0.02 for part in range(9))
    data = printed.read_bytes()
    assert data[:5] == b"%PDF-"
    assert 5 < len(re.findall(rb"/Type\s*/Page\b", data)) < 60
