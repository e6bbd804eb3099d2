"""A grid of prompts: lists in system, template and answer are tried on validation like a sweep."""

import jsonschema
import pytest
import tiny_experiment

from harness import config
from harness.errors import UserError
from harness.experiment import compare

GRID = """\
  prompt:
    system: [null, Answer in one word., "Answer in one word, or not at all."]
    template: ["{prompt}", "{prompt} Think."]
  lora: {method: base, answer: [generate, rank]}
"""


def load(tiny, folder, candidates):
    return config.load(tiny_experiment.write(folder, tiny, candidates)).experiment.candidates


def test_lists_of_texts_make_a_candidate_each(tiny, tmp_path):
    found = load(tiny, tmp_path, GRID)
    assert list(found) == [
        "prompt[system=1-none,template=1-prompt]",
        "prompt[system=1-none,template=2-prompt-think]",
        "prompt[system=2-answer-in-one,template=1-prompt]",
        "prompt[system=2-answer-in-one,template=2-prompt-think]",
        "prompt[system=3-answer-in-one,template=1-prompt]",
        "prompt[system=3-answer-in-one,template=2-prompt-think]",
        "lora[answer=generate]",
        "lora[answer=rank]",
    ]
    last = found["prompt[system=3-answer-in-one,template=2-prompt-think]"]
    assert (last.system, last.template) == ("Answer in one word, or not at all.", "{prompt} Think.")
    assert found["prompt[system=1-none,template=1-prompt]"].system is None


def test_a_value_of_a_grid_that_is_no_text_is_refused_with_its_line(tiny, tmp_path):
    with pytest.raises(UserError, match=r"harness\.yaml:8: found system: 3; expected text"):
        load(tiny, tmp_path, "  prompt: {system: [Be brief., 3]}\n")


def test_the_schema_for_editors_allows_lists():
    recipe = config.json_schema()["$defs"]["Recipe"]["properties"]
    for value in ("Be brief.", None, ["Be brief.", None]):
        jsonschema.validate(value, recipe["system"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([1], recipe["system"])


@pytest.mark.e2e
@pytest.mark.usefixtures("own_cache")
def test_validation_chooses_among_the_prompts(tiny, tmp_path):
    path = tiny_experiment.write(tmp_path, tiny, '  prompt: {template: ["{prompt}", "{prompt} Please."]}\n')
    (table,) = compare(path).ablations
    names = {"prompt[template=1-prompt]", "prompt[template=2-prompt-please]"}
    assert {row.candidate for row in table.factors} == names
    assert table.chosen in names


def test_lists_in_decoding_make_a_candidate_each_and_a_value_that_cannot_be_is_refused(tiny, tmp_path):
    grid = "  drawn: {decoding: {temperature: [0.3, 1.0], top_p: [0.9, 1.0], samples: 4}}\n"
    found = load(tiny, tmp_path, grid)
    assert list(found) == [f"drawn[temperature={t},top_p={p}]" for t in (0.3, 1.0) for p in (0.9, 1.0)]
    last = found["drawn[temperature=1.0,top_p=0.9]"].decoding
    assert (last.temperature, last.top_p, last.samples) == (1.0, 0.9, 4)
    with pytest.raises(UserError, match="4 samples at temperature 0"):
        load(tiny, tmp_path, grid.replace("0.3", "0"))
    schema = config.json_schema()["$defs"]["Decoding"]["properties"]["temperature"]
    for value in (0.7, [0.3, 0.7]):
        jsonschema.validate(value, schema)
