"""Answers, log-probabilities and weights of the tiny model change only with a code version."""

import json

import golden_model
import pytest

GOLDEN = json.loads(golden_model.FILE.read_text("utf-8"))


@pytest.fixture(scope="module")
def golden_figures(tiny, own_cache, tmp_path_factory):
    return json.loads(json.dumps(golden_model.measure(tiny, tmp_path_factory.mktemp("golden"))))


@pytest.mark.parametrize("name", GOLDEN["answers"])
def test_answers_and_log_probabilities_are_golden(golden_figures, name):
    rows = golden_figures["answers"][name]
    assert [row[:3] for row in rows] == [row[:3] for row in GOLDEN["answers"][name]]
    for (*_, logprob, margin, parts, prompt), expected in zip(rows, GOLDEN["answers"][name], strict=True):
        assert [logprob, margin] == pytest.approx(expected[3:5], abs=1e-4)
        assert parts.keys() == expected[5].keys()
        assert all(parts[metric] == pytest.approx(expected[5][metric], abs=1e-4) for metric in parts)
        assert prompt == expected[6]


@pytest.mark.parametrize("method", golden_model.FITS)
def test_losses_and_norms_of_weights_are_golden(golden_figures, method):
    name = golden_model.name_fit(method)
    fit, golden_fit = golden_figures["fits"][name], GOLDEN["fits"][name]
    (steps, losses), (known, golden) = (zip(*figures["loss"], strict=True) for figures in (fit, golden_fit))
    assert steps == known
    assert losses == pytest.approx(golden, rel=1e-3)
    assert fit["norms"] == pytest.approx(golden_fit["norms"], rel=1e-3, abs=1e-5)


def test_the_same_candidates_and_methods_are_measured(golden_figures):
    assert golden_figures["answers"].keys() == GOLDEN["answers"].keys()
    assert golden_figures["fits"].keys() == {golden_model.name_fit(method) for method in golden_model.FITS}
