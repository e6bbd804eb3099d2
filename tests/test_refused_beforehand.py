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


TRACKED = "  lora: {{method: lora, params: {{num_train_epochs: 2{}}}, track: {{points: 2}}}}\n"
EARLY = "  early: {{method: checkpoint, init_from: lora, params: {{step: {}}}}}\n"


def test_a_step_that_the_training_will_not_have_is_refused_with_those_that_it_will(tiny, tmp_path):
    """Thirty rows in batches of eight are four steps an epoch."""
    said = refusal(tiny, tmp_path, TRACKED.format("") + EARLY.format(5))
    assert "candidate early: found step 5, whose weights the training of init_from did not keep" in said
    assert "expected one of the steps 4, 8; next: another params.step" in said
    assert prepare(tiny, tmp_path, TRACKED.format("") + EARLY.format(4))


@pytest.mark.parametrize("unknown", ["packing: true", "num_train_epochs: [1, 2]"])
def test_a_step_is_left_to_the_training_where_nobody_knows_its_steps(tiny, tmp_path, unknown):
    tuned = f"sweep: {{{unknown}}}" if "[" in unknown else f"params: {{{unknown}}}"
    lora = f"  lora: {{method: lora, {tuned}, track: {{points: 2}}}}\n"
    assert prepare(tiny, tmp_path, lora + EARLY.format(5))


@pytest.mark.parametrize("metric", ["json_fields", "tool_call"])
def test_references_that_the_metric_cannot_read_are_refused_with_one_of_them(tiny, tmp_path, metric):
    path = tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n")
    target = tmp_path / "suites" / "letters.yaml"
    target.write_text(target.read_text().replace("[exact_match,", f"[{metric},"))
    with pytest.raises(UserError) as refused:
        prepare_session(config.load(path), Scope(), SilentProgress())
    said = str(refused.value)
    assert f"task letters: metric {metric}: found references that it cannot read, of all 18 items" in said
    assert "the first is “late”" in said
