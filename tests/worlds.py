"""Experiments with a known truth: a base and a fine-tune that answer by rule; everything else is real.

Invariant: whether an answer is right depends only on the item's number, the weights and the prompt, so the
true rates of a world are exact and two arms differ on the intended items.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import fake_adapter
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from harness import config, experiment
from harness.data import part_of
from harness.evaluation.session import join_items
from harness.experiment import Scope, prepare_session
from harness.experiment.candidate_result import SHARES
from harness.experiment.candidate_weights import Fit
from harness.models import Candidate
from harness.models.hub import ModelSource
from harness.progress import SilentProgress
from harness.records import Encoded, Limits, Output, PromptText, digest
from harness.report import ExperimentReport

TEMPLATE = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}assistant:"
GOOD, BAD = "gimlet", "nothing"
PER_ANSWER_S = {"zero_shot": 0.30, "few_shot": 0.60, "rag": 0.90, "tuned": 0.20}

CANDIDATES = """\
  prompt: {method: base}
  fixed: {prompting: {few_shot: {select: fixed, shots: 2}}}
  knn: {prompting: {few_shot: {select: knn, shots: 2}}}
  rag: {prompting: {rag: {top_k: 1}}}
  lora: {method: lora}
"""
LEAN = CANDIDATES.replace(
    "  knn: {prompting: {few_shot: {select: knn, shots: 2}}}\n", ""
)  # knn answers like fixed


@dataclass(frozen=True)
class Truth:
    """Percent of items answered right: on the target by way and slice, and on general tasks by the base.

    Of the latter the fine-tune loses and gains these points; `tuned_at` is the target by number of rows.
    """

    target: dict[str, dict[str, int]]
    general: int = 70
    lost: int = 0
    gained: int = 0
    tuned_at: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """Numbers of items: for training, for test, and for each of the four general tasks."""

    train: int = 120
    test: int = 200
    general: int = 200


def is_right(number: int, percent: int) -> bool:
    """Tell whether an item is among the first `percent` of each hundred, in a fixed shuffled order."""
    return number * 37 % 100 < percent


def write(folder: Path, truth: Truth, sizes: Sizes, written: str = CANDIDATES) -> Path:
    """Write harness.yaml with its suites, and a folder that looks like a model."""
    suites, model = folder / "suites", folder / "model"
    for subfolder in (suites / "desk", suites / "general", model):
        subfolder.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    header = (2).to_bytes(8, "little") + b"{}"  # the header of a file without tensors
    (model / "model.safetensors").write_bytes(header.ljust(2_000_000, b"\0"))
    Tokenizer(WordLevel({"?": 0}, unk_token="?")).save(str(model / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    data = ", ".join(f"{part}: desk/{part}.jsonl" for part in ("train", "validation", "test", "documents"))
    (suites / "desk.yaml").write_text(
        f"name: desk\ntasks:\n  - {{name: desk, data: {{{data}}}, max_new_tokens: 4}}\n"
    )
    names = ("chat", "sums", "facts", "reading")
    tasks = "".join(
        f"  - {{name: {n}, data: {{test: general/{n}.jsonl}}, max_new_tokens: 4}}\n" for n in names
    )
    (suites / "general.yaml").write_text(f"name: general\nrole: capability\ntasks:\n{tasks}")
    slices = sorted(truth.target["zero_shot"])
    for split, n in (("train", sizes.train), ("validation", 100), ("test", sizes.test)):
        questions = [(f"{split} {slices[i % len(slices)]} {i}", slices[i % len(slices)]) for i in range(n)]
        _rows(suites / "desk" / f"{split}.jsonl", [_item(text, segment) for text, segment in questions])
    leaflets = [{"id": f"leaflet-{i}", "title": "Leaflet", "text": f"Leaflet about {i}"} for i in range(8)]
    _rows(suites / "desk" / "documents.jsonl", leaflets)
    for name in names:
        _rows(suites / "general" / f"{name}.jsonl", [_item(f"{name} - {i}") for i in range(sizes.general)])
    path = folder / "harness.yaml"
    path.write_text(
        f"name: world\nbase_model: {model}\nprecision: fp32\ndevice: cpu\ntarget: suites/desk.yaml\n"
        f"suites: [suites/general.yaml]\ncandidates:\n{written}"
    )
    return path


def _item(text: str, segment: str = "") -> dict:
    return {"id": text.replace(" ", "-"), "prompt": f"What is {text} ?", "reference": GOOD, "slice": segment}


def _rows(path: Path, content: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))


class Oracle(Candidate):
    """A candidate that answers by rule; its token ids are the bytes of the messages as JSON.

    A `tuned` one has learned from `n_train` rows.
    """

    engine = "text"
    layout_digest = digest("text")
    max_context = 1 << 30

    def __init__(self, truth: Truth, weights_digest: str, tuned: bool, n_train: int = 0) -> None:
        self.truth, self.weights_digest, self.tuned, self.n_train = truth, weights_digest, tuned, n_train

    def encode_all(self, prompts: Sequence[PromptText]) -> list[Encoded]:
        return [
            Encoded(tuple(json.dumps(list(prompt.messages)).encode()), tuple(prompt.continuation.encode()))
            for prompt in prompts
        ]

    def generate(
        self, prompts: Sequence[tuple[int, ...]], limits: Limits, seeds: Sequence[int] = ()
    ) -> list[Output]:
        """Answer by the rule; every tenth sampled answer is the opposite."""
        answers = [self._output(json.loads(bytes(prompt))) for prompt in prompts]
        opposite = {GOOD: BAD, BAD: GOOD}
        return [
            replace(answer, text=opposite[answer.text]) if seed % 10 == 0 else answer
            for answer, seed in zip(answers, seeds or [1] * len(answers), strict=True)
        ]

    def loglikelihood(self, pairs: Sequence) -> list:
        raise NotImplementedError("no task of these worlds has choices")

    def _output(self, messages: list[dict]) -> Output:
        way = self._way(messages)
        _, segment, item = messages[-1]["content"].rpartition("What is ")[2].split()[:3]
        general = segment == "-"
        answered = (
            self._is_general_right(int(item)) if general else is_right(int(item), self._percent(way, segment))
        )
        return Output(GOOD if answered else BAD, compute_s=PER_ANSWER_S[way])

    def _way(self, messages: list[dict]) -> str:
        if self.tuned:
            return "tuned"
        if "Leaflet" in messages[-1]["content"]:
            return "rag"
        return "few_shot" if len(messages) > 2 else "zero_shot"

    def _percent(self, way: str, segment: str) -> int:
        percent = self.truth.target[way][segment]
        return self.truth.tuned_at.get(self.n_train, percent) if self.tuned else percent

    def _is_general_right(self, number: int) -> bool:
        base, truth = is_right(number, self.truth.general), self.truth
        if not self.tuned:
            return base
        lost = is_right(number, truth.lost)
        gained = is_right(number, truth.general + truth.gained) and not base
        return (base and not lost) or gained


class OracleHost:
    """Host of a base that is a rule instead of a model."""

    def __init__(self, truth: Truth, source: ModelSource) -> None:
        self.source, self._truth = source, truth
        self.base = Oracle(truth, source.weights_digest, tuned=False)

    @contextmanager
    def use_adapter(self, folder: Path, weights_digest: str) -> Iterator[Oracle]:
        settings = json.loads((folder / "adapter_config.json").read_text())
        yield Oracle(self._truth, weights_digest, tuned=True, n_train=settings["n_train"])


def write_training(session, candidate, seed: int = 0, wall_s: float = 600.0) -> None:
    """Write what a finished training leaves, so that nothing has to be trained."""
    folder = Fit(session, candidate, seed).folder(None)
    settings = {"n_train": len(session.target.items.train)}  # from this the oracle knows how much was learned
    settings |= {"seed": seed} if seed else {}
    training = {"wall_s": wall_s, "loss": [[1, 1.0]]}
    fake_adapter.lay_down(folder, session.source.weights_digest, settings, training)


def open_world(path: Path, truth: Truth, overrides: Sequence[str] = (), candidates: Sequence[str] = ()):
    """Open a written world: the session with a rule in place of a model, and the loaded file."""
    loaded = config.load(path, overrides, candidates)
    session = prepare_session(loaded, Scope(), SilentProgress())
    session.slot.host = OracleHost(truth, session.source)
    return session, loaded


def report(
    folder: Path,
    truth: Truth,
    sizes: Sizes = Sizes(),
    *,
    overrides: Sequence[str] = (),
    learning_curve: bool = False,
    candidates: Sequence[str] = (),
) -> ExperimentReport:
    """Write a world and run the whole experiment on it; only the answers are made up."""
    session, loaded = open_world(write(folder, truth, sizes), truth, overrides, candidates)
    for share in (*SHARES, 1.0):
        items = part_of(session.target.items, share, 0)
        part_session = replace(session, target=join_items(session.target.task, "target", "desk", items))
        write_training(part_session, session.candidates["lora"])
    return experiment.run_all(session, loaded, learning_curve=learning_curve)


def continue_world(folder: Path, truth: Truth) -> ExperimentReport:
    """Continue a world with more candidates, and possibly a new truth."""
    session, loaded = open_world(folder / "harness.yaml", truth)
    return experiment.run_all(session, loaded)


def report_world(folder: Path, truth: Truth, overrides: Sequence[str] = ()) -> ExperimentReport:
    session, loaded = open_world(folder / "harness.yaml", truth, overrides)
    return experiment.report_stored(session, loaded.selected)
