"""What a training would refuse after work began is refused before anything runs, with what would do."""

import pytest
import tiny_experiment

from harness import config
from harness.errors import UserError
from harness.experiment import Scope, prepare_session
from harness.progress import SilentProgress

pytestmark = pytest.mark.usefixtures("own_cache")


def prepare(tiny, folder, candidates):
    path = tiny_experiment.write(folder, tiny, f"  prompt: {{method: base}}\n{candidates}")
    return prepare_session(config.load(path), Scope(), SilentProgress())


def refusal(tiny, folder, candidates):
    with pytest.raises(UserError) as refused:
        prepare(tiny, folder, candidates)
    return str(refused.value)


@pytest.mark.parametrize("written", ["first: 2", "all_but_last: 90"])
def test_freezing_layers_that_the_base_has_not_is_refused_with_their_number(tiny, tmp_path, written):
    said = refusal(tiny, tmp_path, f"  held: {{method: full, regularize: {{freeze: {{{written}}}}}}}\n")
    assert f"freeze names {written.split()[1]} layers, and the model has 2" in said
    assert "at most 1 of them" in said


def test_the_layers_are_those_of_the_encoder_that_a_head_reads_with(tiny, minilm, tmp_path):
    held = "  held: {{method: head, params: {{train: all, encoder: {}}}, regularize: {{freeze: {{first: {}}}}}}}\n"
    assert prepare(tiny, tmp_path, held.format(minilm, 5))
    assert "freeze names 6 layers, and the model has 6" in refusal(tiny, tmp_path, held.format(minilm, 6))
