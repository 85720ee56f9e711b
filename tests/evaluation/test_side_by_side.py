"""Methods side by side on a tiny model: who is asked what, and figures known digit for digit by a judge with a rule."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from adapters_for_tests import make_adapter
from chat_models import tiny_chat_model, tiny_tokenizer
from rule_judge import RuleJudge, rule
from scipy import stats
from transformers import LlamaForCausalLM

from npti_export.adapter.adapter import PersonalityAdapter
from npti_export.errors import NptiError
from npti_export.evaluation.answering import Asker
from npti_export.evaluation.judges.judgement import Judgement
from npti_export.evaluation.methods import Method, Rivals, drawn_personas, methods_of
from npti_export.evaluation.placebo import placebo_of
from npti_export.evaluation.report.table import columns, table_rows, to_markdown
from npti_export.evaluation.results import Evaluation
from npti_export.evaluation.results_file import read_results, to_json, write_results
from npti_export.evaluation.side_by_side import Exam, Subject, count_answers, evaluate
from npti_export.identification.answers import Answer, Decoding, Progress, Prompt, generate_answers, prompt_ids
from npti_export.identification.elicit import Transcript
from npti_export.steering.personality import load_personality
from npti_export.traits import Pole, Term, trait_named
from npti_export.traits.material import Persona, Question

TOKENIZER = tiny_tokenizer()
DECODING = Decoding(max_new_tokens=12, repetition_penalty=1.15, batch_size=4)
SEED = 3
TRAITS = ("openness", "neuroticism")
ASKED = {
    "openness": [Question("openness", f"{what}?", "f") for what in ("Art", "A long walk", "Tea", "Why not", "Who")],
    "neuroticism": [Question("neuroticism", f"{what}?") for what in ("Rain", "A noise", "Late")],
}
PERSONAS = [
    Persona(trait, pole, text)
    for trait in TRAITS
    for pole, texts in ((Pole.HIGH, ("You dream.", "You invent.")), (Pole.LOW, ("You count.",)))
    for text in texts
]
TRANSCRIPTS = tuple(
    Transcript(trait, pole, f"{at}?", "You.", f"{at}!", (1,), True)
    for trait in TRAITS
    for pole in Pole
    for at in range(4)
)
DOSES = (0.5, 2.0)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_chat_model(context=256)


@pytest.fixture(scope="module")
def adapter(model: LlamaForCausalLM) -> PersonalityAdapter:
    return make_adapter(model, traits=TRAITS)


def subjects_of(adapter: PersonalityAdapter, *terms: Term) -> list[Subject]:
    rivals = Rivals(TRANSCRIPTS, residual=adapter)
    return [Subject(term, methods_of(term, trait_named(term.trait), adapter, PERSONAS, rivals, SEED)) for term in terms]


def judges_of(fails: str = "") -> dict[str, list[RuleJudge]]:
    return {trait: [RuleJudge(trait, fails=fails), RuleJudge(trait, "fluency")] for trait in TRAITS}


HIGH, LOW = Term("openness", Pole.HIGH), Term("openness", Pole.LOW)


@pytest.fixture(scope="module")
def judges() -> dict[str, list[RuleJudge]]:
    return judges_of()


@pytest.fixture(scope="module")
def found(
    model: LlamaForCausalLM, adapter: PersonalityAdapter, judges: dict[str, list[RuleJudge]]
) -> tuple[Evaluation, int]:
    announced: dict[str, int] = {}
    told: dict[str, list[int]] = {}

    def stage(what: str, steps: int) -> nullcontext:
        announced[what], told[what] = steps, []
        return nullcontext(told[what].append)

    exam = Exam(ASKED, judges, bleed_questions=2, doses=DOSES, seed=SEED)
    subjects = subjects_of(adapter, HIGH, LOW)
    evaluation = evaluate(Asker(model, TOKENIZER, DECODING), subjects, exam, "tests", "the command", stage)
    # Whatever takes long is seen to move, and arrives.
    assert list(announced) == ["answers", "judgements", "likelihood of the answers"]
    assert {what: sum(done) for what, done in told.items()} == announced
    # Unsteered all questions; each pole by seven methods, on two of the other trait too, and two dials at two doses.
    assert announced["answers"] == count_answers(subjects, exam) == (5 + 3) + 2 * (7 * (5 + 2) + 2 * 2 * 5)
    assert announced["judgements"] == sum(len(judge.shown[0]) for of_trait in judges.values() for judge in of_trait)
    return evaluation, announced["answers"]


def one_by_one(model: LlamaForCausalLM, prompts: Sequence[Prompt]) -> list[str]:
    return [generate_answers(model, TOKENIZER, [prompt], DECODING)[0].text for prompt in prompts]


def texts(trait: str) -> list[str]:
    return [question.text for question in ASKED[trait]]


def test_each_method_asks_what_it_says(
    model: LlamaForCausalLM, adapter: PersonalityAdapter, found: tuple[Evaluation, int]
) -> None:
    plain = [Prompt(text) for text in texts("openness")]
    for result in found[0].personalities:
        pole = result.pole
        own = [persona.text for persona in PERSONAS if (persona.trait, persona.pole) == ("openness", pole)]
        in_character = [
            Prompt(text, drawn)
            for text, drawn in zip(texts("openness"), drawn_personas(own, texts("openness"), SEED), strict=True)
        ]
        described = trait_named("openness").describe(pole)
        with load_personality(model, f"openness{pole.sign}", adapter):
            steered, both = one_by_one(model, plain), one_by_one(model, in_character)
        with load_personality(model, f"openness{pole.sign}", placebo_of(adapter, "openness", SEED)):
            placebo = one_by_one(model, plain)
        expected = {
            "unsteered": one_by_one(model, plain),
            "adapter": steered,
            "placebo": placebo,
            "plain prompt": one_by_one(model, [Prompt(text, f"You are {described}.") for text in texts("openness")]),
            "persona prompt": one_by_one(model, in_character),
            "adapter + persona prompt": both,
        }
        said = {method.method: list(method.answers) for method in result.methods}
        assert {name: said[name] for name in expected} == expected
        assert len({tuple(answers) for answers in expected.values()}) == len(expected)
        assert said["residual alone"] == steered  # the same adapter stands for it here


def test_the_shots_of_the_few_shot_prompt_are_turns_of_the_pole(adapter: PersonalityAdapter) -> None:
    [subject] = subjects_of(adapter, LOW)
    [prompt] = subject.method("few-shot prompt").prompts(["Now?"], SEED)
    assert len(prompt.shots) == 3
    assert set(prompt.shots) <= {(t.question, t.answer) for t in TRANSCRIPTS if t.pole is Pole.LOW}
    written = TOKENIZER.decode(prompt_ids(prompt, TOKENIZER))
    turns = "".join(f"<|user|>{q}<|end|><|assistant|>{a}<|end|>" for q, a in prompt.shots)
    assert written == turns + "<|user|>Now?<|end|><|assistant|>"


def test_without_transcripts_there_is_no_few_shot_prompt(adapter: PersonalityAdapter) -> None:
    names = [m.name for m in methods_of(HIGH, trait_named("openness"), adapter, PERSONAS, Rivals(), SEED)]
    assert names == ["unsteered", "adapter", "placebo", "plain prompt", "persona prompt", "adapter + persona prompt"]


def estimate(values: Sequence[float]) -> list[float]:
    """Mean and scipy's percentile interval."""
    array = np.array(values)
    drawn = stats.bootstrap((array,), np.mean, n_resamples=2000, method="percentile", rng=SEED).confidence_interval
    return [array.mean(), drawn.low, drawn.high]


def shown(values: Sequence[float]) -> str:
    mean, low, high = estimate(values)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def nll_of(model: LlamaForCausalLM, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> np.ndarray:
    """One forward an answer, no padding."""
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids, said = prompt_ids(prompt, TOKENIZER), list(answer.token_ids)
        with torch.no_grad():
            logits = torch.log_softmax(model(input_ids=torch.tensor([ids + said])).logits[0].double(), -1)
        found.append(-np.mean([float(logits[len(ids) - 1 + at, token]) for at, token in enumerate(said)]))
    return np.array(found)


def test_a_judge_with_a_known_rule_gives_the_known_table(found: tuple[Evaluation, int]) -> None:
    evaluation, _ = found
    rows = {(row[0], row[1]): row for row in table_rows(evaluation)}
    assert columns(evaluation)[2:5] == ("score", "variance", "effect [95 %]")
    for result in evaluation.personalities:
        direction = 1 if result.pole is Pole.HIGH else -1
        base = [rule(answer) for answer in result.methods[0].answers]
        for method in result.methods:
            scores = [rule(answer) for answer in method.answers]
            row = rows[result.personality, method.method]
            assert row[2] == f"{np.mean(scores):.2f}"
            assert row[3] == f"{np.var(scores, ddof=1):.3f}"
            changes = [direction * (score - before) for score, before in zip(scores, base, strict=True)]
            assert row[4] == ("" if method.method == "unsteered" else shown(changes))
            assert row[7] == f"{np.mean([rule(answer, 'fluency') for answer in method.answers]):.2f}"
            assert row[8] == ""
    assert len(rows) == 2 * 8


def test_fluency_is_under_the_unsteered_model_and_in_character(
    model: LlamaForCausalLM, adapter: PersonalityAdapter, found: tuple[Evaluation, int]
) -> None:
    for result in found[0].personalities:
        own = [persona.text for persona in PERSONAS if (persona.trait, persona.pole) == ("openness", result.pole)]
        personas = drawn_personas(own, result.questions, SEED)
        plain = [Prompt(text) for text in result.questions]
        character = [Prompt(text, persona) for text, persona in zip(result.questions, personas, strict=True)]
        said = {
            name: generate_answers(model, TOKENIZER, prompts, DECODING)
            for name, prompts in (("unsteered", plain), ("persona prompt", character))
        }
        with load_personality(model, f"openness{result.pole.sign}", adapter):
            said["adapter"] = generate_answers(model, TOKENIZER, plain, DECODING)
        base = nll_of(model, plain, said["unsteered"])
        at_home = nll_of(model, character, said["persona prompt"])
        for name, answers in said.items():
            method = result.method(name)
            assert method is not None
            rise = nll_of(model, plain, answers) - base
            ratio = method.fluency.ratio
            assert [ratio.mean, ratio.low, ratio.high] == pytest.approx(np.exp(estimate(rise)), rel=1e-3)
            rise = nll_of(model, character, answers) - at_home
            assert method.fluency.ratio_in_character.mean == pytest.approx(np.exp(rise.mean()), rel=1e-3)
            assert method.fluency.unfinished == np.mean([not answer.finished for answer in answers])
        ratios = [result.method(name).fluency.ratio.mean for name in said]  # type: ignore[union-attr]
        assert len({round(ratio, 6) for ratio in ratios}) == 3


def test_bleed_is_the_change_on_questions_of_the_other_trait(
    model: LlamaForCausalLM, adapter: PersonalityAdapter, found: tuple[Evaluation, int]
) -> None:
    asked = [Prompt(text) for text in texts("neuroticism")[:2]]
    base = one_by_one(model, asked)
    for result in found[0].personalities:
        with load_personality(model, f"openness{result.pole.sign}", adapter):
            steered = one_by_one(model, asked)
        changes = [rule(after) - rule(before) for after, before in zip(steered, base, strict=True)]
        method = result.method("adapter")
        assert method is not None
        assert list(method.bleed) == ["openness", "neuroticism"]
        bleed = method.bleed["neuroticism"]
        assert [bleed.mean, bleed.low, bleed.high] == pytest.approx(estimate(changes))
        # Towards the high end, whichever pole it is steered to.
        direction = 1 if result.pole is Pole.HIGH else -1
        effect = method.rating().effect  # type: ignore[union-attr]
        assert method.bleed["openness"].mean == pytest.approx(direction * effect.mean)  # type: ignore[union-attr]


def test_differences_are_paired_and_curves_are_of_the_doses(
    model: LlamaForCausalLM, adapter: PersonalityAdapter, found: tuple[Evaluation, int]
) -> None:
    for result in found[0].personalities:
        direction = 1 if result.pole is Pole.HIGH else -1
        scores = {m.method: np.array([rule(answer) for answer in m.answers]) for m in result.methods}
        default = {d.against: d.effect for d in result.differences if not d.matched}
        assert set(default) == set(scores) - {"unsteered", "adapter"}
        for name, effect in default.items():
            changes = direction * (scores["adapter"] - scores[name])
            assert [effect.mean, effect.low, effect.high] == pytest.approx(estimate(changes))
        [curve, _] = result.curves
        assert [point.strength for point in curve.points] == [0.5, 1.0, 2.0]
        for point in curve.points:
            with load_personality(model, f"openness{result.pole.sign}{point.strength}", adapter):
                said = one_by_one(model, [Prompt(text) for text in result.questions])
            changes = direction * (np.array([rule(answer) for answer in said]) - scores["unsteered"])
            assert point.effect.mean == pytest.approx(changes.mean())
            assert list(point.scores) == [rule(answer) for answer in said]
        effects = [0.0, *(point.effect.mean for point in curve.points)]
        if len(set(effects)) > 1:
            assert curve.rank_correlation == pytest.approx(stats.spearmanr([0, 0.5, 1, 2], effects).statistic)


def test_each_judge_sees_each_answer_once_in_one_call_and_not_who_gave_it(
    judges: dict[str, list[RuleJudge]], found: tuple[Evaluation, int]
) -> None:
    for trait, (of_trait, of_fluency) in judges.items():
        [seen], [read] = of_trait.shown, of_fluency.shown
        assert len(set(seen)) == len(seen)
        assert {question for question, _ in seen} <= set(texts(trait))
        assert set(read) <= set(seen)
    own = {
        pair
        for result in found[0].personalities
        for m in result.methods
        for pair in zip(result.questions, m.answers, strict=True)
    }
    assert own <= set(judges["openness"][0].shown[0])


def test_a_failure_is_counted_left_out_and_never_scored(
    model: LlamaForCausalLM, adapter: PersonalityAdapter, found: tuple[Evaluation, int]
) -> None:
    [whole, _] = found[0].personalities
    base, steered = whole.methods[0].answers, whole.method("adapter").answers  # type: ignore[union-attr]
    mark = steered[2][:6]
    assert sum(mark in answer for answer in (*base, *steered)) == 1
    exam = Exam({"openness": ASKED["openness"]}, {"openness": [RuleJudge("openness", fails=mark)]}, seed=SEED)
    evaluation = evaluate(Asker(model, TOKENIZER, DECODING), subjects_of(adapter, HIGH), exam)
    rating = evaluation.personalities[0].method("adapter").rating()  # type: ignore[union-attr]
    assert rating is not None
    assert rating.failed == 1
    assert rating.scores[2] is None
    rated = [at for at in range(5) if at != 2]
    assert rating.mean.mean == pytest.approx(np.mean([rule(steered[at]) for at in rated]))  # type: ignore[union-attr]
    changes = [rule(steered[at]) - rule(base[at]) for at in rated]
    assert rating.effect.mean == pytest.approx(np.mean(changes))  # type: ignore[union-attr]
    assert next(row for row in table_rows(evaluation) if row[1] == "adapter")[-1] == "1"


def test_a_judge_that_says_nothing_is_an_error(model: LlamaForCausalLM, adapter: PersonalityAdapter) -> None:
    class Silent(RuleJudge):
        def judge(
            self, questions: Sequence[str], answers: Sequence[str], progress: Progress | None = None
        ) -> list[Judgement]:
            return [
                Judgement(q, a, self.trait, self.name, None, "", "it refused")
                for q, a in zip(questions, answers, strict=True)
            ]

    exam = Exam({"openness": ASKED["openness"]}, {"openness": [Silent("openness")]}, seed=SEED)
    with pytest.raises(NptiError, match=r"^The judge gave no score under unsteered \(it refused\)\.$"):
        evaluate(Asker(model, TOKENIZER, DECODING), subjects_of(adapter, HIGH), exam)


def test_what_cannot_be_evaluated_is_refused_before_anything_is_asked(
    model: LlamaForCausalLM, adapter: PersonalityAdapter
) -> None:
    def refuses(subjects: Sequence[Subject], exam: Exam, message: str) -> None:
        with pytest.raises(NptiError, match=message):
            evaluate(asker, subjects, exam, stage=lambda what, steps: pytest.fail("something was asked"))

    asker, subjects = Asker(model, TOKENIZER, DECODING), subjects_of(adapter, HIGH)
    refuses(subjects, Exam({"openness": []}, judges_of()), "There are no test questions for openness")
    only_fluency: dict[str, list[RuleJudge]] = {"openness": [RuleJudge("openness", "fluency")]}
    refuses(subjects, Exam(ASKED, only_fluency), "There is no judge of openness")
    alike = {"openness": [RuleJudge("openness"), RuleJudge("openness")]}
    refuses(subjects, Exam(ASKED, alike), r"2 judges of openness \(trait\) are called rule; each needs a name")
    refuses([*subjects, *subjects], Exam(ASKED, judges_of()), "2 personalities were given; at least one, and none")
    refuses([], Exam(ASKED, judges_of()), "0 personalities were given")
    with pytest.raises(NptiError, match=r"openness-: there is no persona of its pole among 2"):
        methods_of(LOW, trait_named("openness"), adapter, PERSONAS[:2], Rivals(), SEED)
    with pytest.raises(NptiError, match="there is no trait 'extraversion'"):
        methods_of(
            Term("extraversion", Pole.HIGH),
            trait_named("extraversion"),
            adapter,
            [Persona("extraversion", Pole.HIGH, "You talk.")],
            Rivals(),
            SEED,
        )


def test_a_run_that_was_broken_off_asks_only_what_is_missing(
    model: LlamaForCausalLM, adapter: PersonalityAdapter, tmp_path: Path
) -> None:
    kept = tmp_path / "answers.jsonl"
    steered = Method("adapter", steering=adapter, strength=1.0)
    first = Asker(model, TOKENIZER, DECODING, kept).ask(steered, HIGH, texts("openness"), SEED)
    with kept.open("ab") as file:
        file.write(b'{"key": "broken o')
    asked: list[int] = []
    hook = model.register_forward_pre_hook(lambda *_: asked.append(1))
    try:
        again = Asker(model, TOKENIZER, DECODING, kept)
        asked.clear()  # the sites are proved by a forward
        assert again.ask(steered, HIGH, texts("openness"), SEED) == first
        assert asked == []
        # Another dose, question, adapter or decoding is another answer.
        other = make_adapter(model, seed=9, traits=TRAITS)
        for method, questions in (
            (Method("adapter", steering=adapter, strength=0.5), texts("openness")),
            (Method("adapter", steering=other, strength=1.0), texts("openness")),
            (steered, texts("openness")[:2]),
        ):
            before = len(asked)
            again.ask(method, HIGH, questions, SEED)
            assert len(asked) > before
        third = Asker(model, TOKENIZER, DECODING, kept)
        before = len(asked)
        third.ask(Method("adapter", steering=other, strength=1.0), HIGH, texts("openness"), SEED)
        assert len(asked) == before  # kept behind the broken line
    finally:
        hook.remove()


def test_the_model_is_left_as_it_was_and_the_report_is_the_same_again(
    model: LlamaForCausalLM, adapter: PersonalityAdapter, found: tuple[Evaluation, int]
) -> None:
    ids = torch.arange(20)[None] + 6
    with torch.no_grad():
        before = model(input_ids=ids).logits
        exam = Exam(ASKED, judges_of(), bleed_questions=2, doses=DOSES, seed=SEED)
        again = evaluate(
            Asker(model, TOKENIZER, DECODING), subjects_of(adapter, HIGH, LOW), exam, "tests", "the command"
        )
        assert torch.equal(model(input_ids=ids).logits, before)
    assert again == found[0]


def test_a_peft_folder_is_compared_and_taken_off_again(
    model: LlamaForCausalLM, adapter: PersonalityAdapter, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    tuned = get_peft_model(
        tiny_chat_model(context=256), LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    )
    prompts = [Prompt(text) for text in texts("openness")]
    expected = one_by_one(tuned, prompts)
    tuned.save_pretrained(str(tmp_path))
    rivals = Rivals(lora=tmp_path)
    methods = methods_of(HIGH, trait_named("openness"), adapter, PERSONAS, rivals, SEED)
    modules = [id(module) for module in model.modules()]
    plain = one_by_one(model, prompts)
    said = Asker(model, TOKENIZER, DECODING).ask(methods[-1], HIGH, texts("openness"), SEED)
    assert methods[-1].name == "lora"
    assert [answer.text for answer in said] == expected != plain
    assert [id(module) for module in model.modules()] == modules
    assert one_by_one(model, prompts) == plain
    with pytest.raises(NptiError, match="is no PEFT folder"):
        Asker(model, TOKENIZER, DECODING).ask(Method("lora", lora=tmp_path / "none"), HIGH, ["Q?"], SEED)


def test_the_file_says_the_same_as_the_records(found: tuple[Evaluation, int], tmp_path: Path) -> None:
    evaluation, _ = found
    path = tmp_path / "results.json"
    write_results(path, evaluation)
    read = read_results(path)
    assert to_json(read) == to_json(evaluation)
    assert read.personalities[1].methods[1].answers == evaluation.personalities[1].methods[1].answers
    assert table_rows(read) == table_rows(evaluation)
    broken = path.read_text(encoding="utf-8").replace('"pole": "low"', '"pole": "middle"', 1)
    path.write_text(broken, encoding="utf-8")
    with pytest.raises(NptiError, match=r"results\.json holds no evaluation \(personalities\.1\.pole"):
        read_results(path)
    with pytest.raises(NptiError, match="cannot be read"):
        read_results(tmp_path / "none.json")


def test_the_markdown_holds_every_table(found: tuple[Evaluation, int]) -> None:
    text = to_markdown(found[0])
    assert "Made by `the command`." in text
    for heading in ("The adapter against the others", "Sum of the poles", "Bleed", "Doses", "Style", "Judges, power"):
        assert f"\n## {heading}" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert "| " + " | ".join(table_rows(found[0])[1]) + " |" in tables
    assert "needs " in text  # the power note
    assert "No figures are published for tests/tiny-chat" in text or "No figures are published for tiny-chat" in text
