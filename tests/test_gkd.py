"""On-policy distillation: what is learned from a teacher, and which teachers are refused."""

import shutil

import pytest
import tiny_experiment
import tiny_methods
import tiny_model

from harness import store
from harness.config import load
from harness.errors import CandidateFailed, UserError
from harness.experiment import Scope, prepare_session
from harness.experiment.preflight.candidate_costs import estimate_costs
from harness.experiment.training_fit import fit_work
from harness.methods import gkd
from harness.models.hardware import Memory
from harness.models.hub import resolve
from harness.progress import SilentProgress
from harness.training import teacher_problem

pytestmark = pytest.mark.usefixtures("own_cache")

ROOM = Memory(64.0, 64.0, "the machine")
PARAMS = {"r": 4, "max_new_tokens": 3, "warmup_steps": 0, "max_length": 200}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Other weights behind the same vocabulary."""
    return tiny_model.build(tmp_path_factory.mktemp("teacher"), seed=7)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A model whose tokenizer has one more token."""
    from transformers import AutoTokenizer

    folder = tiny_model.build(tmp_path_factory.mktemp("stranger"), seed=8)
    known = AutoTokenizer.from_pretrained(folder)
    known.add_tokens(["<|more|>"])
    known.save_pretrained(folder)
    return folder


@pytest.mark.e2e
@pytest.mark.parametrize("lmbda", [0.0, 1.0])
def test_the_student_comes_closer_to_its_teacher(tiny, teacher, tmp_path, lmbda):
    params = gkd.Params(teacher=str(teacher), lmbda=lmbda, learning_rate=0.02, num_train_epochs=8, **PARAMS)
    made = gkd.fit(tiny_methods.context(tiny, tmp_path), params)
    losses, distances = ([of for _, of in c] for c in (made.training.loss, made.training.validation_loss))
    assert len(distances) == 8
    assert distances[-1] < distances[0]
    assert sum(losses[-2:]) < 0.95 * sum(losses[:2])
    assert made.kind == "adapter"
    assert made.training.teacher == resolve(str(teacher)).weights_digest


def test_a_teacher_of_another_vocabulary_is_refused_with_both_sizes(tiny, stranger, tmp_path):
    base, other = resolve(str(tiny)), resolve(str(stranger))
    n = len(tiny_model.tokenizer())
    assert teacher_problem(other, base) == f"another vocabulary: {n + 1} tokens, {n} of them the base's {n}"
    with pytest.raises(CandidateFailed, match="another vocabulary"):
        gkd.fit(tiny_methods.context(tiny, tmp_path), gkd.Params(teacher=str(stranger), **PARAMS))
    assert "nothing to teach" in teacher_problem(base, base)


@pytest.mark.e2e
def test_a_teacher_with_room_for_more_tokens_teaches_as_one_without(tiny, teacher, tmp_path):
    from transformers import AutoModelForCausalLM

    padded = tmp_path / "padded"
    shutil.copytree(teacher, padded)
    model = AutoModelForCausalLM.from_pretrained(teacher)
    width = model.config.vocab_size
    model.resize_token_embeddings(width + 7)
    model.save_pretrained(padded)

    def loss(folder, name):
        params = gkd.Params(teacher=str(folder), lmbda=0.0, max_steps=1, **PARAMS)
        return gkd.fit(tiny_methods.context(tiny, tmp_path / name), params).training.loss[0][1]

    assert loss(padded, "of-padded") == pytest.approx(loss(teacher, "of-plain"), rel=1e-5)
    narrow = resolve(str(teacher))
    assert (
        teacher_problem(narrow, resolve(str(padded)))
        == f"probabilities of {width} tokens, and the base has {width + 7}"
    )


@pytest.mark.e2e
def test_an_experiment_trains_on_a_teacher_and_refuses_what_cannot_teach(tiny, teacher, stranger, tmp_path):
    teacher = shutil.copytree(teacher, tmp_path / "teacher")

    def candidates(*folders):
        lines = (
            f"  taught-{i}: {{method: gkd, params: {{teacher: {one}, r: 2, max_steps: 3, max_new_tokens: 4, max_length: 200}}}}\n"
            for i, one in enumerate(folders)
        )
        return "  prompt: {method: base}\n" + "".join(lines)

    wrong = tiny_experiment.write(tmp_path / "wrong", tiny, candidates(stranger, tmp_path / "absent"))
    with pytest.raises(UserError) as error:
        tiny_experiment.run(wrong, "suites=[]")
    said = str(error.value)
    assert "candidate taught-0: params.teacher" in said
    assert "another vocabulary" in said
    assert "harness data distill" in said
    assert "candidate taught-1: params.teacher" in said
    path = tiny_experiment.write(tmp_path / "right", tiny, candidates(teacher))
    tiny_experiment.run(path, "suites=[]")
    made = tiny_experiment.runs_of(path)["taught-0"]
    assert made.training.teacher == resolve(str(teacher)).weights_digest
    tiny_model.build(tmp_path / "other", seed=9)
    shutil.copytree(tmp_path / "other", teacher, dirs_exist_ok=True)
    tiny_experiment.run(path, "suites=[]")
    learned = {
        run.training.teacher
        for run in store.list_runs(store.Store(path.parent / "runs"))
        if run.candidate == "taught-0"
    }
    assert learned == {made.training.teacher, resolve(str(teacher)).weights_digest}
    assert len(learned) == 2


def test_the_teacher_counts_in_the_memory_and_the_time_before_anything_runs(tiny, teacher, tmp_path):
    """It reads what is trained on, and the student draws its share of the answers; both lie in memory."""
    params = "r: 2, num_train_epochs: 2, max_new_tokens: 6, max_length: 200"
    candidates = (
        f"  alone: {{method: lora, params: {{r: 2, num_train_epochs: 2, max_length: 200}}}}\n"
        f"  taught: {{method: gkd, params: {{teacher: {teacher}, lmbda: 0.5, {params}}}}}\n"
    )
    path = tiny_experiment.write(tmp_path, tiny, candidates)
    session = prepare_session(load(path, ["suites=[]"]), Scope(dry_run=True), SilentProgress())
    alone, taught = (fit_work(session, session.candidates[name].source, 0) for name in ("alone", "taught"))
    n_rows = len(session.target.items.train)
    assert taught.trained == alone.trained
    assert taught.read == taught.trained  # a teacher of the base's size
    assert taught.generated == 0.5 * 2 * n_rows * 6
    memory = {cost.candidate: cost.memory_gib for cost in estimate_costs(session, ("alone", "taught"), ROOM)}
    assert memory["taught"] > memory["alone"]
