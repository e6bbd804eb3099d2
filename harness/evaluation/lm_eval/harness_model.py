"""The harness's engine as a model of lm-eval, for lm-eval's own evaluator and command line.

Invariant: a request gets the same answer as in `harness eval`, except that a prompt that is too long loses
its beginning, as in lm-eval's own models.
Source: lm_eval/api/model.py (LM), version 0.4.13
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, get_args

import lm_eval.models  # noqa: F401 (lm-eval registers its own models only while there is no other)
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from harness.errors import CandidateFailed, Problem, UserError, did_you_mean, refuse
from harness.evaluation.lm_eval.requests import UnfitRequest, answer, is_sampled
from harness.models import render_chat
from harness.models.hardware import probe
from harness.models.hf import HFCandidate, ModelHost
from harness.models.hub import resolve, shape
from harness.records import Message
from harness.spec import Precision

# cuda:0 is the default of lm-eval's command line.
_DEVICES = {"auto": "auto", "cuda:0": "auto", "cuda": "cuda", "cpu": "cpu"}


@register_model("harness")
class HarnessLM(LM):  # type: ignore[misc]
    """A language model served by the harness: `--model harness --model_args pretrained=…,precision=fp32`.

    `pretrained` is a name, a folder, or an open candidate, which keeps its own precision and device. The
    engine fills batches, so lm-eval's batch sizes have no effect.
    """

    def __init__(
        self,
        pretrained: str | HFCandidate = "smollm2-135m",
        precision: str = "auto",
        device: str = "auto",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, str):
            options = {"precision": (precision, get_args(Precision)), "device": (device, tuple(_DEVICES))}
            refuse(
                Problem(key, repr(value), ", ".join(choices), did_you_mean(value, choices))
                for key, (value, choices) in options.items()
                if value not in choices
            )
            source = resolve(pretrained)
            pretrained = ModelHost(source, probe(_DEVICES[device], precision, shape(source))).base
        self.candidate = pretrained

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Score each continuation after its context, in nats; True if it is the greedy one."""
        return self._answer_by_task(requests)

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Score each whole text in nats, in windows of the context's length."""
        return self._answer_by_task(requests)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer each prompt greedily, up to a stop string or the limit of tokens."""
        if sampled_request := next((r for r in requests if is_sampled(r.args[1])), None):
            found = f"task {sampled_request.task_name}, whose answers are sampled"
            expected = "greedy answers: a second run has to give the same"
            raise UserError("harness", found, expected, "leave the task out")
        return self._answer_by_task(requests)

    def apply_chat_template(self, chat_history: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Write messages with the tokenizer's template; a prefilled last turn stays open."""
        tokenizer = self.candidate.tokenizer
        if add_generation_prompt:
            return render_chat(tokenizer, chat_history, asks=True).text
        options: dict[str, Any] = {"tokenize": False, "continue_final_message": True}
        return str(tokenizer.apply_chat_template(list(chat_history), **options))

    @property
    def tokenizer_name(self) -> str:
        """The name under which lm-eval caches requests made with this template."""
        return str(self.candidate.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the tokenizer's template if one is to be used."""
        return str(self.candidate.tokenizer.get_chat_template()) if chat_template else None

    def _answer_by_task(self, requests: Sequence[Any]) -> list[Any]:
        """Answer task by task, because the items of a task share their beginning."""
        responses = []
        for task, task_requests in groupby(requests, lambda request: request.task_name):
            for response in answer(self.candidate, list(task_requests), cut=True):
                if isinstance(response, UnfitRequest):
                    raise CandidateFailed(f"task {task}: {response.reason}", "leave the task out")
                responses.append(response.response)
        return responses


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
