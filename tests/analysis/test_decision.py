"""The decision: what is recommended, why, and when nothing is; what an index adds to its arithmetic."""

from dataclasses import replace
from typing import get_args

import fake_facts
import pytest
from fake_facts import BITS, alternatives, candidate, comparison, find_reason, make_fine_tune, verdict
from hypothesis import given
from hypothesis import strategies as st

from harness.analysis import target_scores
from harness.analysis.candidate_facts import BaseSize, best_untrained, judged_run
from harness.analysis.decision import Decision
from harness.analysis.economics import apply_budgets, index_sentences, index_usd_per_1k
from harness.analysis.estimators import Estimate
from harness.analysis.target_scores import CurvePoint, ExpectedGain, LearningCurve, TrivialBaseline
from harness.errors import Unscored
from harness.evaluation import has_instruction
from harness.formatting import Unit
from harness.metrics import load_metrics
from harness.records import Example, TokenCounts
from harness.spec import DecidePolicy, Need, Recipe, Task


def make_decision(
    facts, *, closed_labels=True, has_documents=False, metric="exact_match", curve=None, **policy
) -> Decision:
    task = {"closed_labels": closed_labels, "has_documents": has_documents, "metric": metric}
    return fake_facts.make_decision(facts, DecidePolicy(**policy), curve=curve, **task)


LORA = make_fine_tune("lora", 0.81, 0.07)


def decide_on(*more, **settings) -> Decision:
    """Decide between the fair alternatives and further candidates."""
    return make_decision([*alternatives(), *more], **settings)


def test_only_a_gain_that_is_shown_and_passes_the_gate_is_shipped():
    decision = decide_on(LORA)
    assert (decision.action, decision.candidate) == ("fine-tune", "lora")
    assert decision.sentence == (
        "Ship lora: 81.0 [76, 86] exact_match, +7.0 [+2, +12] points over knn (the best untrained),"
        " and the gate passes."
    )

    decision = decide_on(make_fine_tune("lora", 0.77, 0.03))
    assert (decision.action, decision.candidate) == ("few-shot", "knn")
    # 200 items with an se of 0.05 / 1.96 show 3 points at 80 % power once n = 200 (2.80 se / 0.03)² = 1135.
    assert decision.sentence.endswith("for more: 936 more test rows or --seeds 0,1,2.")
    sentence = decide_on(make_fine_tune("lora", 0.54, -0.20)).sentence
    assert "lora, the best fine-tune, is worse (−20.0 [−25, −15] points)" in sentence

    facts = [*alternatives(), make_fine_tune("hot", 0.95, 0.21, "fail"), LORA]
    assert make_decision(facts).candidate == "lora"


def test_a_classifier_as_good_makes_the_fine_tune_needless():
    facts = [*alternatives(0.74), make_fine_tune("lora", 0.90, -0.01)]
    facts[4] = candidate("bag", 0.91, method="classifier", trained=True)
    decision = make_decision(facts)
    assert (decision.action, decision.candidate) == ("classifier", "bag")
    assert decision.sentence == (
        "Ship bag: 91.0 [86, 96] exact_match; lora, the best fine-tune, is not shown to help (−1.0 [−6, +4]"
        " points): with these 200 items only a gain above 7.1 points would show; for more: more test rows or"
        " --seeds 0,1,2."
    )
    change = comparison(-0.01, base=0.95, new=0.94)
    facts[5] = make_fine_tune("lora", 0.94, -0.01, vs_untrained=change)
    sentence = make_decision(facts).sentence
    assert "only a gain above 7.1 points would show, and 5.0 are left to gain" in sentence


def test_what_the_gate_does_not_pass_is_not_recommended_whatever_it_gains():
    failed = make_fine_tune(
        "lora", 0.95, 0.21, "fail", verdict=verdict("fail", "FAIL: chat lost 60.0 [50, 70] points")
    )
    decision = decide_on(failed)
    assert (decision.action, decision.candidate) == ("few-shot", "knn")
    assert "lora gains +21.0 [+16, +26] points over it, but fails the gate" in decision.sentence
    assert find_reason(decision, "The gate") == "The gate on lora: FAIL (forgetting)."

    decision = decide_on(make_fine_tune("lora", 0.81, 0.07, "inconclusive"))
    assert (decision.action, decision.candidate) == ("undecided", None)
    assert decision.sentence.endswith(
        "but its gate is UNDECIDED; some 240 more items would settle it, but the tasks hold no unused items; ship knn until then."
    )

    decision = decide_on(make_fine_tune("lora", 0.81, 0.07, None))
    assert decision.action == "undecided"
    assert "what it forgot was not measured; add suites:" in decision.sentence


def test_a_hybrid_that_is_best_is_called_one_and_the_task_says_which_alternatives_it_needs():
    rag = candidate("rag", 0.60, prompting="rag(top_k=2)")
    hybrid = make_fine_tune("hybrid", 0.88, 0.14, prompting="rag(top_k=2)")
    decision = decide_on(rag, make_fine_tune("lora", 0.80, 0.06), hybrid, has_documents=True)
    assert (decision.action, decision.candidate) == ("hybrid", "hybrid")

    decision = decide_on(LORA, has_documents=True)
    assert decision.missing == ("retrieval (prompting: rag)",)
    assert make_decision([*alternatives()[:3], LORA], closed_labels=False).action == "fine-tune"


def test_a_gain_over_prompts_that_say_nothing_of_what_to_do_is_no_evidence_for_a_fine_tune():
    bare_facts = [replace(f, is_instructed=False) for f in alternatives()]
    decision = make_decision([*bare_facts, make_fine_tune("lora", 0.81, 0.07, is_instructed=False)])
    assert decision.action == "undecided"
    assert decision.sentence.endswith(
        "but the comparison that decides this is missing; add a prompt that says what to do (system: TEXT), "
        "without which a gain is not evidence for a fine-tune."
    )
    instructed_facts = [*bare_facts, candidate("told", 0.70)]
    assert make_decision([*instructed_facts, LORA]).action == "fine-tune"


@pytest.mark.parametrize(
    ("task", "recipe", "prompts", "says"),
    [
        ({}, {}, ("Where is it?", "Who came?"), False),
        ({"system": "Answer briefly."}, {}, ("Where is it?", "Who came?"), True),
        ({}, {"template": "Summarize: {prompt}"}, ("Where is it?", "Who came?"), True),
        ({}, {}, ("Classify this: a", "Classify this: b"), True),
        ({"kind": "choice"}, {}, ("Where is it?", "Who came?"), True),
    ],
)
def test_prompts_say_what_to_do_by_a_system_text_or_by_words_that_they_share(task, recipe, prompts, says):
    cases = [Example(f"{i}", ({"role": "user", "content": text},), ("a",)) for i, text in enumerate(prompts)]
    checked_task = Task.model_validate({"name": "t", "data": {"all": "t.jsonl"}, **task})
    assert has_instruction(checked_task, Recipe.model_validate(recipe), cases) is says


LEFT_OUT = {"prompt": "prompt only", "knn": "nearest-neighbour shots", "ranked": "ranked", "bag": "text classifier"}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_OUT)
def test_without_a_fair_alternative_no_fine_tune_is_recommended(name):
    decision = make_decision([*(f for f in alternatives() if f.name != name), LORA])
    assert decision.action == "undecided"
    assert "the comparison that decides this is missing; add" in decision.sentence
    (missing,) = decision.missing
    assert LEFT_OUT[name] in missing


def test_what_failed_is_to_be_fixed_and_what_is_missing_to_be_added():
    facts = [replace(f, state="failed", target=None, validation=None) for f in alternatives()]
    decision = make_decision([*facts, LORA])
    assert decision.sentence == (
        "Undecided: nothing untrained was measured, so there is nothing to compare with;"
        " fix prompt, fixed, knn, ranked, bag and compare again."
    )
    assert decision.missing[0] == "prompt only (prompting: zero_shot): prompt failed"

    facts = [replace(f, state="failed") if f.name == "knn" else f for f in alternatives() if f.name != "bag"]
    decision = make_decision([*facts, LORA])
    assert decision.sentence.endswith(
        "fix knn and compare again, and add a plain text classifier (method: classifier)."
    )

    facts = [f for f in alternatives(0.90) if f.name != "bag"]
    decision = make_decision([*facts, make_fine_tune("lora", 0.85, -0.05)])
    assert decision.candidate == "knn"
    assert "text classifier" in find_reason(decision, "Not compared")

    crashed = make_fine_tune(
        "lora", 0.81, 0.07, None, state="failed", target=None, validation=None, error="out of memory"
    )
    decision = decide_on(crashed)
    assert decision.action == "undecided"
    assert "lora failed; fix that and compare again; ship knn until then" in decision.sentence


def test_without_a_measured_fine_tune_the_best_untrained_is_shipped_if_anything():
    decision = make_decision(alternatives())
    expected = "Ship knn: 74.0 [69, 79] exact_match, on validation the best of 5; no fine-tune was compared."
    assert decision.sentence == expected

    facts = alternatives()
    failed = verdict("fail", "FAIL: target 74.0 [69, 79] % against at least 80.0 %")
    facts[2] = replace(facts[2], verdict=failed)
    decision = make_decision([*facts, make_fine_tune("lora", 0.75, 0.01)])
    assert (decision.action, decision.candidate) == ("undecided", None)
    assert "knn would be it (74.0 [69, 79]" in decision.sentence
    assert find_reason(decision, "The gate").startswith("The gate on knn: FAIL: target 74.0")
    assert make_decision([]).action == "undecided"
    sentence = decide_on(make_fine_tune("lora", 0.81, 0.07, vs_untrained=None)).sentence
    assert "not compared with knn on the same items" in sentence


def test_the_choice_is_made_on_validation_and_of_a_tie_by_tokens_or_order():
    lucky = candidate("lucky", 0.50, target=Estimate(0.99, 0.95, 1.0, 200))
    assert best_untrained([*alternatives(), lucky]) == "knn"
    assert best_untrained([candidate("b", 0.5), candidate("a", 0.5)]) == "b"

    shots, ranked = (
        candidate(name, 0.5, tokens=TokenCounts(*counts))
        for name, counts in (("shots", (420, 0, 6)), ("ranked", (420, 390, 6)))
    )
    server = candidate("server", 0.5)
    assert best_untrained([server, shots, ranked]) == "ranked"
    assert best_untrained([server, shots, ranked, candidate("bag", 0.5, method="classifier")]) == "bag"
    assert best_untrained([ranked, replace(shots, validation=0.51)]) == "shots"


def find_trivial(rows, metric, **changes):
    """Return the trivial baseline of test items by their references and choices."""
    task = Task(name="t", data={"test": "t.jsonl"}, metrics=[metric])
    cases = [Example(f"t/{i}", (), tuple(refs), choices=tuple(opts)) for i, (refs, opts) in enumerate(rows)]
    return target_scores.trivial_baseline(replace(load_metrics(task)[metric], **changes), cases)


def items(*references, metric="exact_match", **changes):
    return find_trivial([(refs, ()) for refs in references], metric, **changes)


def choice_items(*rows, metric="accuracy"):
    return find_trivial(rows, metric)


def test_the_trivial_baseline_counts_labels_as_the_metric_does():
    assert items(("no",), ("No",), ("no.",), ("yes",), ("yes",)) == ("always answering “no”", 0.6)
    assert items(("a", "b"), ("b", "B"), ("c",), ("a", "b")) == ("always answering “b”", 0.75)

    expected = ("always answering “b”", pytest.approx(3 / 7))
    assert choice_items(*((ref, "Aab") for ref in "AAaabbb")) == expected

    def score(output, example):
        raise Unscored("it takes too long")

    assert items(("no",), score=score) == ("always answering “no”", 0.0)
    assert items(("no",), ("no",), metric="token_f1") is None
    assert items((), ()) is None


NO = TrivialBaseline("always answering “no”", 0.81)


def decide_beside_trivial(facts, trivial=NO):
    return fake_facts.make_decision(facts, trivial=trivial)


def test_what_is_worse_than_the_majority_class_is_not_shipped_and_what_may_be_is_said():
    decision = decide_beside_trivial([*alternatives(), make_fine_tune("lora", 0.74, 0.0)])
    assert (decision.action, decision.candidate) == ("undecided", None)
    assert decision.sentence == (
        "Undecided: knn would be it, but 74.0 [69, 79] exact_match is less than always answering “no”, which"
        " reaches 81.0 %; check that the labels follow from the questions."
    )
    decision = decide_beside_trivial([*alternatives(), LORA], TrivialBaseline("always answering “no”", 0.9))
    assert decision.sentence.startswith("Undecided: lora would be it, but 81.0 [76, 86] exact_match is less")

    clause = "; knn is not shown to be better than always answering “no”, which reaches 81.0 %."
    near = decide_beside_trivial([*alternatives(0.78), make_fine_tune("lora", 0.78, 0.0)])
    assert (near.candidate, near.sentence.endswith(clause)) == ("knn", True)
    assert "always answering" not in decide_beside_trivial([*alternatives(0.90)]).sentence

    facts = [
        make_fine_tune("lora", 0.81, 0.07, validation=0.7, target=Estimate(0.5, 0.45, 0.55, 200)),
        make_fine_tune("lora", 0.95, 0.07, seed=1, target=Estimate(0.95, 0.90, 0.97, 200)),
    ]
    decision = decide_beside_trivial([*alternatives(), *facts])
    assert (decision.candidate, "always answering" in decision.sentence) == ("lora", False)
    # No candidate that may not be shipped is named before the open questions are settled.
    open_ = [*alternatives(), make_fine_tune("lora", 0.81, 0.07, "inconclusive")]
    fails = [replace(f, verdict=verdict("fail", "FAIL: target 74")) if f.name == "knn" else f for f in open_]
    for decision in (decide_beside_trivial(open_), decide_beside_trivial(fails, None)):
        assert decision.sentence.endswith(f"but its gate is {OPEN[:-1]}.")


@pytest.mark.parametrize(
    ("score", "unit"),
    [(0.0, Unit()), (1.0, Unit(higher_is_better=False)), (-5.0, Unit(1.0, "reward", True, -5.0, 5.0))],
)
def test_what_has_the_worst_score_there_is_is_not_shipped(score, unit):
    estimate = Estimate(score, score, score, 200, unit)
    decision = decide_beside_trivial([replace(fact, target=estimate) for fact in alternatives()], None)
    assert (decision.action, decision.candidate) == ("undecided", None)
    assert "exact_match is the worst score there is; check the questions" in decision.sentence


def test_a_guess_among_an_items_own_choices_is_the_trivial_baseline_unless_a_label_is_right_more_often():
    assert choice_items(("a", "ab"), ("d", "cd"), ("e", "efgh")) == ("guessing among the choices", 5 / 12)
    assert choice_items(("ab", "abc"), ("d", "def"), ("g", "ghi"))[1] == pytest.approx(4 / 9)
    cases = ((("Yes",), ("Yes", "yes", "no")), ("a", "ab"), ("c", "cd"))
    assert choice_items(*cases, metric="exact_match")[1] == pytest.approx((2 / 3 + 1) / 3)
    assert choice_items(*cases)[1] == pytest.approx((1 / 3 + 1) / 3)
    assert choice_items(("a", "abc"), ("a", "abc"), ("b", "abc")).rule == "always answering “a”"


def test_where_lower_is_better_a_falling_metric_is_a_gain():
    assert best_untrained([candidate("a", 1.2, BITS), candidate("b", 0.9, BITS)]) == "b"
    lower = {"metric": "bits_per_byte", "unit": BITS}
    lora = make_fine_tune(
        "lora", 0.9, 0, unit=BITS, vs_untrained=comparison(-0.2, **lower), vs_prompt=comparison(-0.3, **lower)
    )
    base = candidate("prompt", 1.1, BITS)
    knn = candidate("knn", 1.2, BITS, prompting="few_shot(select=knn)")
    fixed = candidate("fixed", 1.2, BITS, prompting="few_shot(select=fixed)")
    decision = make_decision([base, knn, fixed, lora], closed_labels=False, metric="bits_per_byte")
    assert decision.candidate == "lora"
    assert "+0.200 [+0.150, +0.250] bits per byte over prompt" in decision.sentence


def test_a_recipe_is_chosen_by_all_of_its_seeds():
    bag = candidate("bag", 0.9, method="classifier", trained=True, verdict=verdict("pass"))
    assert (best_untrained([bag]), judged_run([bag])) == ("bag", None)
    lora = [make_fine_tune("lora", 0.8, 0.1), make_fine_tune("lora", 0.9, 0.2, "fail", seed=1)]
    assert judged_run([*lora, make_fine_tune("small", 0.7, 0.05)]).name == "small"
    wild = [make_fine_tune("wild", 0.95, 0.2), make_fine_tune("wild", 0.55, 0.0, seed=1)]
    assert judged_run([*wild, make_fine_tune("steady", 0.80, 0.1)]).name == "steady"


OPEN = "UNDECIDED; some 240 more items would settle it, but the tasks hold no unused items;"


@pytest.mark.parametrize(
    ("outcomes", "action", "words"),
    [
        (("pass", "pass", "fail"), "few-shot", "[+16, +26] points over it, but with seed 2 it fails the gate."),
        (("inconclusive", "fail", "pass"), "few-shot", "but with seed 1 it fails the gate."),
        (("fail", "fail", "fail"), "few-shot", "points over it, but fails the gate."),
        (("pass", "inconclusive", "pass"), "undecided", f"over knn, but the gate of seed 1 is {OPEN} ship knn"),
        (("pass", "pass", None), "undecided", "but what seed 2 forgot was not measured; add suites:"),
    ],
)  # fmt: skip
def test_the_sentence_names_the_seeds_that_keep_a_recipe_back(outcomes, action, words):
    decision = decide_on(*(make_fine_tune("lora", 0.95, 0.21, o, seed=i) for i, o in enumerate(outcomes)))
    assert (decision.action, words in decision.sentence) == (action, True)


def test_a_recipe_of_which_seeds_failed_is_not_shipped_and_they_are_named():
    crashed = [
        make_fine_tune("lora", 0.8, 0.1, None, seed=i, state="failed", target=None, validation=None)
        for i in (1, 2)
    ]
    decision = decide_on(make_fine_tune("lora", 0.84, 0.1), *crashed)
    assert decision.action == "undecided"
    assert "but seeds 1, 2 failed; fix that and compare again; ship knn until then" in decision.sentence
    assert find_reason(decision, "passes with all of its seeds").startswith("lora does not pass: seeds 1, 2")
    assert decide_on(make_fine_tune("lora", 0.84, 0.1)).candidate == "lora"


@pytest.mark.parametrize(("tau", "action"), [(3.9, "fine-tune"), (4.1, "undecided"), (24.1, "few-shot")])
def test_tau_decides_by_the_interval_of_the_gain_per_dollar(tau, action):
    assert decide_on(LORA, tau=tau).action == action


def test_break_even_of_tokens_and_of_no_saving_is_said():
    decision = decide_on(LORA, label_cost_usd=0.5)
    # (0.50 + 360 × 0.5) / ((0.20 − 0.11) / 1000) = 180.5 / 0.00009
    assert decision.arithmetic["break_even_requests"] == pytest.approx(2_005_555.6, abs=0.1)
    assert find_reason(decision, "Break-even") == (
        "Break-even after 2,005,556 requests (1,671,297 to 2,506,945 with a saving ±20 %), beyond the"
        " 600,000 requests assumed (decide.requests_per_month): 180 USD for training and labels, 0.11 USD per 1,000 requests against 0.20 with knn."
    )

    decision = decide_on(make_fine_tune("lora", 0.81, 0.07, cost_per_1k_usd=0.30))
    assert decision.arithmetic["break_even_requests"] == "∞"
    assert "∞ requests: lora is not cheaper, 0.30 USD" in find_reason(decision, "Break-even")
    decision = decide_on(make_fine_tune("lora", 0.81, 0.07, cost_per_1k_usd=None))
    assert decision.arithmetic["break_even_requests"] is None
    assert find_reason(decision, "Break-even") == "Break-even is unknown, because a cost per request is."


SLICES = {"low": Estimate(0.10, 0.05, 0.18, 100), "high": Estimate(0.80, 0.71, 0.87, 100)}


@pytest.mark.parametrize(
    ("rag_knowledge", "lora_behaviour", "expected"),
    [
        ("high", "low", "The prompt fails on facts, and retrieval fixes that."),
        ("low", "high", "The prompt fails on behaviour (format, style, labels), and fine-tuning fixes that."),
        ("high", "high", "a hybrid can do both."),
        ("low", "low", "What kind of failure it is, is not shown"),
    ],
)
def test_the_kind_of_failure_is_told_by_what_mends_it(rag_knowledge, lora_behaviour, expected):
    low = SLICES["low"]
    facts = [replace(f, slices={"knowledge": low, "behaviour": low}) for f in alternatives()]
    rag = candidate("rag", 0.5, prompting="rag(top_k=2)")
    lora = make_fine_tune("lora", 0.8, 0.06)
    facts += [
        replace(rag, slices={"knowledge": SLICES[rag_knowledge], "behaviour": low}),
        replace(lora, slices={"knowledge": low, "behaviour": SLICES[lora_behaviour]}),
    ]
    assert any(expected in reason for reason in make_decision(facts).reasons)


def test_slices_are_reported_and_declared_needs_answer_what_none_measures():
    facts = [replace(f, slices={"knowledge": SLICES["low"]}) for f in alternatives()]
    lora = make_fine_tune("lora", 0.8, 0.06, slices={"knowledge": SLICES["high"]})
    expected = "On knowledge (n = 100): prompt 10.0 [5, 18], lora 80.0 [71, 87]."
    assert find_reason(make_decision([*facts, lora]), "On knowledge") == expected
    facts = [*alternatives(), LORA]
    decision = make_decision(facts, needs=("changing_facts", "style_or_format"))
    reason = find_reason(decision, "Declared, not measured (changing facts)")
    assert "a fine-tune would soon be old." in reason
    with_slices = [replace(f, slices={"knowledge": Estimate(0.5, 0.4, 0.6, 50)}) for f in facts]
    assert not [r for r in make_decision(with_slices, needs=("changing_facts",)).reasons if "Declared" in r]


@given(st.permutations([*alternatives(), LORA, make_fine_tune("hot", 0.95, 0.2, "fail")]))
def test_the_order_of_the_candidates_does_not_move_the_decision(facts):
    assert make_decision(facts).sentence == decide_on(LORA).sentence


@given(st.floats(-0.9, 0.9), st.floats(0.001, 0.5), st.sampled_from(["pass", "fail", "inconclusive", None]))
def test_no_fine_tune_is_recommended_without_a_shown_gain_and_a_passed_gate(gain, half, outcome):
    lora = make_fine_tune("lora", 0.8, 0, outcome, vs_untrained=comparison(gain, half))
    is_shipped = decide_on(lora).action == "fine-tune"
    assert is_shipped == (outcome == "pass" and gain - half > 0)


def set_latencies(p50_s: dict[str, float], facts=None):
    """Set the median request time of the named candidates; the alternatives take 0.3 s, lora 0.2."""
    facts = facts or [*alternatives(), LORA]
    speeds = {f.name: f.speed._replace(latency_p50_s=p50_s[f.name]) for f in facts if f.name in p50_s}
    return [replace(f, speed=speeds.get(f.name, f.speed)) for f in facts]


def test_a_slow_alternative_is_left_out_before_the_choice_and_the_fast_fine_tune_is_shipped():
    facts = set_latencies({"prompt": 0.1, "fixed": 0.1, "knn": 0.3, "ranked": 0.1, "bag": 0.001})
    facts = [replace(f, vs_untrained=comparison(-0.02)) if f.name == "lora" else f for f in facts]
    assert make_decision(facts).candidate == "knn"
    # Without knn the best untrained is bag, 0.60; the fine-tune gains 21 points over that.
    facts = [replace(f, vs_untrained=comparison(0.21)) if f.name == "lora" else f for f in facts]
    decision = make_decision(facts, max_latency_s=0.25)
    assert (decision.action, decision.candidate) == ("fine-tune", "lora")
    assert "over bag (the best untrained)" in decision.sentence
    expected = "Left out before the choice: knn (its median request takes 0.3 s, and the budget is 0.2 s)."
    assert find_reason(decision, "Left out before") == expected
    assert best_untrained(apply_budgets(facts, DecidePolicy(max_latency_s=0.25))) == "bag"


def test_a_budget_is_kept_by_the_median_over_seeds_and_never_broken_by_what_was_not_measured():
    times = enumerate((0.2, 0.2, 2.0))
    seeds = [make_fine_tune("lora", 0.95, 0.30, seed=seed, latency_p50_s=t) for seed, t in times]
    decision = decide_on(*seeds, max_latency_s=0.5)
    assert decision.candidate == "lora"
    assert find_reason(decision, "All keep the budgets")
    lora = make_fine_tune("lora", 0.81, 0.07, latency_p50_s=None)
    facts = [replace(f, speed=f.speed._replace(measured_on="a new one")) for f in alternatives()]
    lora = replace(lora, speed=lora.speed._replace(measured_on="an old one"))
    decision = make_decision([*facts, lora], max_latency_s=0.5)
    assert find_reason(decision, "Times of different machines cannot be compared: a new one, an old one.")
    assert decision.candidate == "lora"
    assert find_reason(decision, "Not measured against the budgets, and left in: lora.")


def test_a_gain_from_few_examples_counts_once_three_seeds_show_it():
    decision = decide_on(make_fine_tune("lora", 0.81, 0.07, n_train=60))
    assert (decision.action, decision.candidate) == ("few-shot", "knn")
    assert "but 60 training examples and 1 seed are too few to rely on that" in decision.sentence
    assert "collect 100 examples, or show it over 3 seeds with --seeds 0,1,2" in decision.sentence
    assert find_reason(decision, "60 training examples: below")
    assert decide_on(make_fine_tune("lora", 0.81, 0.07, n_train=100)).candidate == "lora"

    seeds = [make_fine_tune("lora", 0.95, 0.30, n_train=60, seed=s) for s in range(3)]
    assert decide_on(*seeds[:2]).candidate == "knn"
    assert decide_on(*seeds).candidate == "lora"

    decision = decide_on(make_fine_tune("theirs", 0.81, 0.07, n_train=0))
    assert decision.candidate == "theirs"
    assert find_reason(decision, "How many examples theirs was trained on is unknown")


def test_hosting_is_paid_back_too():
    facts = [*alternatives(), LORA]
    plain, dearer = make_decision(facts), make_decision(facts, hosting_usd_per_month=10.0)
    assert dearer.arithmetic["spent_once_usd"] == plain.arithmetic["spent_once_usd"] + 60
    assert dearer.arithmetic["break_even_requests"] > plain.arithmetic["break_even_requests"]
    assert "for training, labels and hosting" in find_reason(dearer, "Break-even")


def test_more_items_are_worth_most_where_the_choice_hangs_in_the_balance():
    close = decide_on(make_fine_tune("lora", 0.75, 0.01)).arithmetic
    clear = decide_on(make_fine_tune("lora", 0.90, 0.15)).arithmetic
    assert close["more_test_items_bring_points"] > 0.1 > clear["more_test_items_bring_points"]

    decision = decide_on(make_fine_tune("lora", 0.95, 0.30))
    assert find_reason(decision, "Next best spend").startswith("Next best spend: none, choose now.")

    decision = decide_on(make_fine_tune("lora", 0.75, 0.01), point_usd=100.0)
    worth = decision.arithmetic["more_test_items_bring_points"]
    assert decision.arithmetic["more_test_items_are_worth_usd"] == pytest.approx(100 * worth)
    # 200 more items for both candidates, at 0.20 and 0.11 USD per 1,000; a label has no price.
    assert decision.arithmetic["more_test_items_cost_usd"] == pytest.approx(200 * 0.31 / 1000)
    assert "for 0.06 USD" in find_reason(decision, "Next best spend: 200 more test items.")
    assert "Labels count as free" in find_reason(decision, "Next best spend")


def make_curve(more: float, candidate: str = "lora") -> LearningCurve:
    """Make a learning curve of 360 rows: 720 rows would add `more`, 1,440 rows half as much again."""
    points = tuple(CurvePoint(n, Estimate(0.5, 0.4, 0.6, 200), 0.1) for n in (45, 90, 180, 360))
    gains = ((2, more), (4, 1.5 * more))
    ahead = (ExpectedGain(360 * times, Estimate(x, x - 0.02, x + 0.02, 200)) for times, x in gains)
    return LearningCurve(candidate, points, tuple(ahead), 0.5)


@pytest.mark.parametrize(
    ("more", "label_usd", "expected"),
    [
        (0.05, 0.0, "360 more training rows"),
        (0.05, 0.1, "360 more training rows"),
        # A point is worth 100 USD: 6 points do not pay for 360 labels at 2 USD, nor half a point for 200.
        (0.05, 2.0, "none, choose now"),
        # More rows that gain less than the 0.6 points of more test items are not the next best spend.
        (0.0, 0.0, "200 more test items"),
    ],
)
def test_the_next_spend_is_what_brings_most_beyond_its_cost(more, label_usd, expected):
    decision = decide_on(
        make_fine_tune("lora", 0.75, 0.01), curve=make_curve(more), point_usd=100.0, label_cost_usd=label_usd
    )
    assert decision.arithmetic["next_best_spend"] == expected.replace("none, ", "")
    assert find_reason(decision, f"Next best spend: {expected}.")


def test_a_gain_ships_where_it_is_worth_more_than_it_costs():
    facts = [*alternatives(), LORA]
    decision = make_decision(facts, requests_per_month=10, horizon_months=1, label_cost_usd=0.5)
    assert (decision.action, decision.candidate) == ("few-shot", "knn")
    # 0.07 × 10 answers at 1 USD against 360 × 0.5 + 0.5 USD; a request brings 0.07 + 0.00009 USD.
    assert "is worth 0.70 USD and costs 180 USD more; it pays from 2,576 requests" in decision.sentence
    assert make_decision(facts, label_cost_usd=0.5).action == "fine-tune"
    little, much = (make_decision(facts, point_usd=usd, label_cost_usd=0.5) for usd in (0.01, 100.0))
    assert (little.action, much.action) == ("few-shot", "fine-tune")
    assert much.arithmetic["gain_is_worth_usd"] == pytest.approx(700)
    assert much.arithmetic["pays_from_requests"] is None


@pytest.mark.parametrize(
    ("need", "measured"),
    [
        ("private_knowledge", "on the slice knowledge, as said above"),
        ("low_latency", "the median request takes 0.2 s with lora and 0.3 s with knn"),
        ("little_data", "there are 360 training examples"),
        ("general_purpose", "the other abilities of lora changed by"),
        ("missing_capability", ("the base reaches 20.0 [15, 25] exact_match with prompt and 74.0 [69, 79] exact_match"
         " with knn and 30.0 [25, 35] exact_match with ranked, which is more than no right answer at all;"
         " lora gains +61.0 [+57, +65] points over the prompt")),
    ],
)  # fmt: skip
def test_a_need_that_was_measured_is_answered_by_what_was_found(need, measured):
    more = {"vs_prompt": comparison(0.61, 0.04), "cost_per_1k_usd": 0.1, "rows_cost_usd": 12.0}
    slices = {name: Estimate(0.5, 0.4, 0.6, 50) for name in ("knowledge", "behaviour") if "slice" in measured}
    facts = [replace(f, slices=slices) for f in (*alternatives(), make_fine_tune("lora", 0.81, 0.07, **more))]
    assert f": {measured}" in find_reason(make_decision(facts, needs=(need,)), "Measured (")


def test_a_fine_tune_is_compared_with_the_larger_model_that_it_saves():
    costs = {"cost_per_1k_usd": 0.1, "rows_cost_usd": 12.0}
    lora = make_fine_tune("lora", 0.81, 0.07, **costs)
    needs = {"needs": ("cheaper_than_a_larger_model",)}
    assert "(cheaper than a larger model)" in find_reason(decide_on(lora, **needs), "Declared, not measured")
    large = candidate("large", 0.9, method="endpoint", trained=True, baseline=True, cost_per_1k_usd=2.6)
    reason = find_reason(make_decision([*alternatives(), lora, large], **needs), "Measured (cheaper")
    assert (
        "large, the larger model, reaches 90.0 [85, 95] exact_match and lora 81.0 [76, 86] exact_match; 1,000 requests"
        " cost 2.60 and 0.10 USD; its teacher and its training cost 12.00 and 0.50 USD, paid back after 5,000 requests"
    ) in reason
    tuned = make_fine_tune("larger", 0.88, 0.14, cost_per_1k_usd=0.9, base=BaseSize("big", 10**9, 2.0))
    small = replace(lora, base=BaseSize("small", 10**8, 0.2))
    reason = find_reason(make_decision([*alternatives(), small, tuned], **needs), "Measured (cheaper")
    assert "larger, the larger model, reaches 88.0 [83, 93] exact_match and lora 81.0" in reason
    served = replace(large, baseline=False)
    assert find_reason(make_decision([*alternatives(), lora, served], **needs), "Declared, not measured")
    dear = replace(large, cost_per_1k_usd=None)
    reason = find_reason(make_decision([*alternatives(), lora, dear], **needs), "Measured (cheaper")
    assert "what large costs is not known" in reason


def test_every_need_has_advice_that_is_held_against_what_is_chosen():
    facts = [*alternatives(), LORA]
    agrees = find_reason(make_decision(facts, needs=("style_or_format",)), "Declared")
    assert agrees.endswith(" lora, which is chosen, is of that kind.")

    differs = find_reason(make_decision(facts, needs=("little_data",)), "Measured (")
    assert "What is chosen differs: here lora reaches 81.0" in differs
    assert "knn, the best of that kind, 74.0" in differs

    lacks = find_reason(make_decision(facts, needs=("knowledge_and_behaviour",)), "Declared")
    assert lacks.endswith(" lora is chosen; no candidate of that kind was measured.")

    large = candidate("large", 0.95, trained=True, baseline=True, prompting="zero_shot")
    said_of = find_reason(decide_on(large, needs=("little_data",)), "(little data)")
    assert said_of.endswith(" large, which is chosen, is a baseline: its training is unknown.")
    for gate, words in (
        (None, "what lora forgot was not measured"),
        (verdict("fail"), "the gate of lora fails"),
    ):
        lora = replace(make_fine_tune("lora", 0.60, -0.14), verdict=gate)
        assert words in find_reason(decide_on(lora, needs=("style_or_format",)), "(style or format)")
    for need in get_args(Need):
        assert find_reason(decide_on(LORA, needs=(need,)), f"({need.replace('_', ' ')})")


def test_a_choice_says_on_which_worth_of_an_answer_it_rests_and_where_it_flips():
    lora = make_fine_tune("lora", 0.81, 0.07, training_cost_usd=400.0, cost_per_1k_usd=0.20)
    by_default = decide_on(lora)
    # 400 USD buy 7 % of 600,000 answers: 400 / 42,000 = 0.0095 USD each.
    assert find_reason(by_default, "The choice rests on") == (
        "The choice rests on a right answer being worth 1.00 USD (decide.right_answer_usd, the default): the"
        " gain is worth 42,000 USD over the horizon, and lora costs 400 USD more. It flips at 0.0095 USD."
    )

    flips_at = by_default.arithmetic["pays_from_right_answer_usd"]
    actions = [decide_on(lora, right_answer_usd=flips_at * times).action for times in (0.99, 1.01)]
    assert actions == ["few-shot", "fine-tune"]
    assert "the default" not in find_reason(decide_on(lora, right_answer_usd=1.0), "rests on")

    decision = decide_on(make_fine_tune("lora", 0.77, 0.03))
    assert not [reason for reason in decision.reasons if "rests on" in reason]
    spend = find_reason(decision, "Next best spend")
    assert "A right answer counts as 1.00 USD (decide.right_answer_usd)." in spend

    lora = make_fine_tune("lora", 0.75, 0.01, training_cost_usd=100.0)
    assert decide_on(lora, curve=make_curve(0.12), label_cost_usd=1.0).action == "collect more data"


def rag(**changes):
    return candidate(
        "rag", 0.8, prompting="rag(top_k=2)", **{"cost_per_1k_usd": 0.2, "index_per_1k_usd": 10, **changes}
    )


def test_the_share_is_said_with_the_forecast_and_whether_anybody_set_it():
    policy = DecidePolicy(index_usd_per_month=10, requests_per_month=1000)
    assert index_usd_per_1k(policy) == 10
    (sentence,) = index_sentences([rag(), candidate("prompt", 0.7)], policy)
    assert "10.00 USD a month" in sentence
    assert "10.00 USD of 1,000 requests to rag at 1,000 requests a month, part of their $/1k" in sentence
    assert index_sentences([candidate("prompt", 0.7)], DecidePolicy()) == []
