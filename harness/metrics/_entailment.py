"""Share of an answer's sentences that a passage of its prompt entails, by an entailment model of the user's.

Invariant: a sentence is supported if the probability of entailment by one of the passages is at least ½; an
answer without passages has no support.
Source: sentence against each passage, the best of them, by Laban et al. 2022 (SummaC), arXiv:2111.09525.
"""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.metrics import Metric, mean_metric
from harness.metrics._citations import BRACKETS, sentences
from harness.progress import quiet_libraries
from harness.records import Example, Output, context_of, pieces, question
from harness.spec import Task, is_path, metric_name, metric_parts

Entails = Callable[[Sequence[tuple[str, str]]], list[float]]

_EVEN = 0.5
_SHORT = 5  # words; shorter sentences say nothing without the question
_PACKAGE = "sentence_transformers"


def metric(task: Task, written: str) -> Metric:
    """Build the share of supported sentences in [0, 1]; the model is loaded at the first answer."""
    model, name = metric_parts(written)[1], metric_name(written)
    where = f"task {task.name}: metric {name}"
    if find_spec(_PACKAGE) is None:
        step = "pip install 'harness-evals[dense]', or remove the metric"
        found = "no package sentence-transformers"
        raise UserError(where, found, "the package that loads the model", step)
    if is_path(model):
        try:
            said = json.loads((Path(model) / "config.json").read_text("utf-8"))
        except (OSError, ValueError):
            expected = "the folder of a sequence classifier"
            step = "correct the path, or name a model of the hub"
            raise UserError(where, f"no config.json in {model}", expected, step) from None
        _place(said.get("id2label") or {}, where)

    def score(output: Output, example: Example) -> float:
        return support(output.text, example, lambda pairs: _entailment(model, where)(pairs))

    return mean_metric(name, score)


def support(answer: str, example: Example, entails: Entails) -> float:
    """Return the share of an answer's sentences that one of its passages entails."""
    shown = example.prompt if example.passages else example.plain_prompt or example.prompt
    context = context_of(shown, example.plain_prompt if example.passages else "")
    passages = [BRACKETS.sub("", line).strip() for line in context.splitlines()]
    asked = (example.plain_prompt or question(example)).strip()
    stated = [BRACKETS.sub("", one).strip() for one in sentences(answer)]
    stated = [f"{asked} {one}" if len(pieces(one)) < _SHORT else one for one in stated]
    if not passages or not stated:
        return 0.0
    chances = iter(entails([(passage, one) for one in stated for passage in passages]))
    best = [max(next(chances) for _ in passages) for _ in stated]
    return sum(chance >= _EVEN for chance in best) / len(best)


@lru_cache(maxsize=1)
def _entailment(model: str, where: str) -> Entails:
    """Load a model; return a function from (premise, hypothesis) pairs to probabilities of entailment."""
    quiet_libraries()
    import sentence_transformers

    onnx = Path(model).is_dir() and not list(Path(model).glob("*.safetensors"))
    backend: Any = "onnx" if onnx and list(Path(model).rglob("*.onnx")) else "torch"
    try:
        encoder = sentence_transformers.CrossEncoder(model, backend=backend, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        found = f"model {model} could not be loaded ({str(error).splitlines()[0]})"
        expected = "an id that can be fetched or is cached, or a folder, of a sequence classifier"
        raise UserError(where, found, expected, "check the spelling and the network") from None
    place = _place(encoder.config.id2label, where)

    def entails(pairs: Sequence[tuple[str, str]]) -> list[float]:
        chances = encoder.predict(list(pairs), apply_softmax=True, show_progress_bar=False)  # (n, labels)
        return [float(one) for one in chances[:, place]]

    return entails


def _place(labels: dict[Any, str], where: str) -> int:
    places = [int(i) for i, label in labels.items() if "entail" in label.casefold()]
    sure = [int(i) for i, label in labels.items() if label.casefold() in ("entailment", "entailed")]
    if len(sure or places) != 1:
        found = f"a model with the labels {', '.join(labels.values()) or 'of nothing'}"
        step = "correct id2label in its config.json, or take a model of natural language inference"
        raise UserError(where, found, "one that is called entailment", step)
    return (sure or places)[0]
