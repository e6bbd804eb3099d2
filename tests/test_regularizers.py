"""Regularisers of a training: how recipes name them, who takes them, and what they make of weights' identity."""

import pytest
import tiny_experiment
import tiny_methods

from harness import config, regularizers, training
from harness.models.hub import resolve
from harness.records import Example, SampleResult, digest
from harness.regularizers import MixContext
from harness.spec import Recipe
from harness.training import job as jobs


def context(n_train=30, seed=0, evaluated=()):
    return MixContext(n_train, seed, {"desk": tuple(evaluated)})


def recipe(tiny, folder, written):
    path = tiny_experiment.write(folder, tiny, f"  prompt: {{method: base}}\n  tuned: {written}\n")
    return config.load(path).experiment.candidates


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ({"replay": 0.1}, {"replay": {"share": 0.1}}),
        ({"replay": {"share": 0.1, "data": "a.jsonl"}}, {"replay": {"share": 0.1, "data": "a.jsonl"}}),
        ({"replay": None}, {}),
        (
            {"replay": 0.1, "regularize": {"freeze": {"first": 1}}},
            {"freeze": {"first": 1}, "replay": {"share": 0.1}},
        ),
        ({"regularize": "freeze"}, {"freeze": {}}),
    ],
)
def test_a_short_form_is_the_regularizer_it_stands_for(short, full):
    assert Recipe(method="full", **short) == Recipe(method="full", regularize=full)


def test_a_file_may_write_it_short_or_in_full_or_as_a_grid(tiny, tmp_path):
    short = recipe(tiny, tmp_path, "{method: lora, replay: 0.1}")["tuned"]
    assert short == recipe(tiny, tmp_path, "{method: lora, regularize: {replay: {share: 0.1}}}")["tuned"]
    assert short.regularize == {"replay": {"share": 0.1}}
    path = tiny_experiment.write(tmp_path, tiny, "  tuned: {method: lora, replay: 0.1}\n")
    for key in ("replay", "regularize.replay.share"):
        found = config.load(path, [f"candidates.tuned.{key}=0.3"]).experiment.candidates["tuned"]
        assert found.regularize == {"replay": {"share": 0.3}}
    found = recipe(tiny, tmp_path, "{method: full, regularize: {freeze: {first: [1, 2]}}}")
    assert [found[f"tuned[first={n}]"].regularize["freeze"] for n in (1, 2)] == [{"first": 1}, {"first": 2}]


def test_the_digest_moves_with_parameters_and_rows_and_is_empty_without_any():
    def digest(regularize, **given):
        return regularizers.regularizers_digest(regularize, context(**given))

    replay = {"replay": {"share": 0.1}}
    first = digest({}, n_train=1) or digest(replay)
    assert digest({}) == ""
    assert first == digest(replay, seed=1)  # the base's own answers: no seed chooses among the prompts
    others = [
        digest({"replay": {"share": 0.2}}),
        digest(replay, n_train=60),
        digest({"freeze": {"first": 1}}),
        digest({"freeze": {"first": 2}}),
        digest({**replay, "freeze": {"first": 1}}),
    ]
    assert len({first, *others}) == 6
    assert digest({"freeze": {"first": 1}, **replay}) == others[-1]  # the order of keys says nothing


def test_a_file_of_rows_is_digested_by_what_is_sampled_and_gives_all_of_them(tmp_path):
    rows = [{"prompt": f"Say {n}.", "reference": f"Here is {n}."} for n in range(12)]
    other = [{**row, "reference": "No."} for row in rows]
    for name, written in (("a", rows), ("b", rows), ("c", other)):
        (tmp_path / name).mkdir()
        tiny_experiment.rows(tmp_path / name / "rows.jsonl", written)
    found = [
        regularizers.regularizers_digest(
            {"replay": {"share": 0.1, "data": str(tmp_path / name / "rows.jsonl")}}, context()
        )
        for name in "abc"
    ]
    assert found[0] == found[1] != found[2]
    path = tmp_path / "few.jsonl"
    path.write_text('{"prompt": "Who is it?", "reference": "Ada."}\n' * 2)
    found = regularizers.mixtures({"kl": {"data": str(path)}}, context())["kl"]
    assert (found.n, len(found.rows)) == (2, 2)


def test_prompts_that_are_evaluated_are_not_sampled():
    (first, *_) = regularizers.mixtures({"replay": {"share": 0.1}}, context())["replay"].rows
    asked = Example("x", ({"role": "user", "content": first.prompt},))
    again = regularizers.mixtures({"replay": {"share": 0.1}}, context(evaluated=(asked,)))["replay"]
    assert first.prompt not in {row.prompt for row in again.rows}
    assert again.n == 3


def test_the_answers_of_the_embedded_base_come_with_the_package_and_are_no_other_bases():
    base = resolve("smollm2-135m")
    mixture = regularizers.mixtures({"replay": {"share": 1.0}}, context(n_train=320))["replay"]
    named = digest([base.weights_digest, base.template_digest])
    answers = regularizers.find_shipped_answers(named, mixture)
    assert [answer.example_id for answer in answers] == [row.id for row in mixture.rows]
    assert sum(answer.status == "ok" for answer in answers) >= 320
    assert regularizers.find_shipped_answers(digest(["another base"]), mixture) == ()


def test_penalties_read_the_same_answers_of_the_base_and_nothing_is_mixed_in():
    asked = []

    def answer(name, mixture):
        asked.append((name, mixture))
        given = ("ok", "So it is.", "asked", (), {})
        return [SampleResult(name, "test", row.id, i, *given) for i, row in enumerate(mixture.rows)]

    held = {"ewc": {"strength": 1.0, "rows": 5}, "kl": {"rows": 5}}
    rows = regularizers.general_rows(held, context(), answer)
    assert regularizers.mix_rows(held, context(), answer) == ()
    assert asked[0] == asked[1]
    assert rows["ewc"] == rows["kl"]
    assert [row.references for row in rows["kl"]] == [("So it is.",)] * 5


def test_a_job_keeps_the_rows_of_each_penalty(tiny, tmp_path):
    job = training.TrainingJob(
        method="lora",
        params={},
        source=resolve(str(tiny)),
        machine=tiny_methods.CPU,
        seed=0,
        regularize={"kl": {}, "ewc": {"strength": 1.0}},
        code=training.code_of("lora", ["kl", "ewc"]),
    )
    rows = tiny_methods.examples(slice(0, 2))
    training.write_job(
        tmp_path, job, train=rows, validation=(), pairs=(), general={"kl": rows[:1], "ewc": rows[1:]}
    )
    read, found = jobs.read_job(tmp_path)
    assert read.regularize == job.regularize
    assert (found["general:kl"], found["general:ewc"]) == (rows[:1], rows[1:])
