"""lm-eval's catalogue: any of its tasks by name, answered by our candidates and stored as our rows.

Invariant: a description depends only on the installed lm-eval, the task, its shots and its data, and is
cached under their digest, so that an unchanged run neither imports nor builds a task. Prompts, filters and
scores of an item are lm-eval's own; the choice of items, the blocks and the digests are ours. Logged
documents, prompts, targets and hashes are lm-eval's; the keys of our row are added, `resps` are left out.
Source: EleutherAI's lm-evaluation-harness 0.4.13, https://github.com/EleutherAI/lm-evaluation-harness
"""

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.cache import cache_dir, recall, remember
from harness.data import TaskItems
from harness.errors import Problem, UserError, gather, refuse
from harness.evaluation import EvaluationJob
from harness.evaluation.lm_eval import requests, tasks
from harness.evaluation.lm_eval.requests import RequestResponse, Score, UnfitRequest
from harness.evaluation.lm_eval.tasks import datasets_folder, names
from harness.metrics import Parts, refuse_chance
from harness.models import Candidate
from harness.provenance import versions_of
from harness.records import BLOCK, Encoded, Example, SampleResult, digest, is_refusal, reader
from harness.spec import Kind, Task

_KINDS: dict[str, Kind] = {"generate_until": "generate", "loglikelihood_rolling": "bits_per_byte"}


class TaskDocument(NamedTuple):
    """One document: its task within a group, its index in the evaluated split, its hash and its texts."""

    member: int
    position: int
    doc_hash: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Description:
    """A task or a group as read: `hashes` of all documents, and the first `documents` of the order."""

    version: str
    kind: Kind
    scores: tuple[Score, ...]
    left_out: tuple[str, ...]
    max_new_tokens: int
    num_fewshot: int
    members: tuple[str, ...]
    hashes: tuple[tuple[str, ...], ...]
    documents: tuple[TaskDocument, ...]

    def place(self, example_id: str) -> tuple[int, int]:
        """Return an example's task within the group, and its index in the evaluated split."""
        member, _, name = example_id.rpartition("/")
        return self.members.index(member) if member else 0, int(name.partition("-")[0])


__all__ = ["LmEvalTask", "datasets_folder", "load", "names"]

EncodedDocuments = Mapping[tuple[int, int], Sequence[Encoded]]  # requests, by task and document
_INVALID = "[invalid]"  # result of lm-eval's regex filters without a match


def load(tasks: Iterable[Task], datasets_dir: Path | None, *, gated: bool = True) -> dict[str, "LmEvalTask"]:
    """Load tasks of lm-eval, by our names; `gated` requires one primary score for each."""
    problems: list[Problem] = []
    task_by_name: dict[str, LmEvalTask] = {}
    for task in tasks:
        with gather(problems):
            task_by_name[task.name] = LmEvalTask(task, datasets_dir, gated=gated)
    refuse(problems)
    return task_by_name


def _text_example(name: str, text: str) -> Example:
    return Example(name, ({"role": "user", "content": text},))


class LmEvalTask:
    """A task of lm-eval in the form that the rest of the harness uses, with kind and primary filled in.

    `items` holds the chosen documents in the order of evaluation; `version` digests all documents. `texts`
    are the documents' texts, for the contamination check. `left_out` names metrics without an interval here.
    `n_documents` counts all documents. lm-eval's objects are loaded when a block first needs them.
    """

    def __init__(self, task: Task, datasets_dir: Path | None, *, gated: bool) -> None:
        self._spec, self._datasets_dir, self._where = task, datasets_dir, f"task {task.name}"
        self._members = tasks.members(task.lm_eval, self._where)
        self._objects: dict[int, Any] = {}
        self._requests: dict[tuple[int, int], list[Any]] = {}
        self._requested_shots = task.num_fewshot if "num_fewshot" in task.model_fields_set else None
        self._described = described = self._describe()
        scores = described.scores
        if not scores:
            found = f"no score that adds up over items ({'; '.join(described.left_out)})"
            raise UserError(self._where, found, "a task with a score that can be compared", "leave it out")
        primary = scores[0].name
        if gated or task.primary:
            primary = requests.primary(scores, task.primary, self._where)
        self._primary = next(s for s in scores if s.name == primary)
        items = []
        for document in described.documents:
            slice_ = described.members[document.member] if len(self._members) > 1 else ""
            name = f"{slice_}/" * bool(slice_) + f"{document.position}-{document.doc_hash}"
            items.append(replace(_text_example(name, "\n".join(document.texts)), slice=slice_))
        settings = {
            "metrics": tuple(s.name for s in scores),
            "primary": primary,
            "kind": described.kind,
            "chat_template": False,
            "max_new_tokens": described.max_new_tokens,
            "num_fewshot": described.num_fewshot,
        }
        self.task = task.model_copy(update=settings)
        self.items = TaskItems((), (), tuple(items), (), (), ())
        pairs = zip(items, described.documents, strict=True)
        texts = ((f"{item.id}/{i}", text) for item, d in pairs for i, text in enumerate(d.texts))
        self.texts = tuple(_text_example(name, text) for name, text in texts)
        self.metrics = {s.name: requests.metric_of(s) for s in scores}
        refuse_chance(self.task, self.metrics[self.task.primary_metric])
        self.version, self.left_out = described.version, described.left_out
        self.num_fewshot, self.n_documents = described.num_fewshot, sum(map(len, described.hashes))

    def _describe(self) -> Description:
        """Describe a task or a group, with the first `limit` documents of the seeded order (None: all)."""
        members, limit = self._members, self._spec.limit
        copies = {folder for m in members if (folder := tasks.local_copy(m, self._datasets_dir))}
        code = [tasks.version(), versions_of("lm_eval")]
        member_fields = [[m.name, m.path, m.overrides] for m in members]
        data = sorted([str(folder), tasks.data_state(folder)] for folder in copies)
        key = digest([*code, member_fields, self._requested_shots, data])
        cache_file = cache_dir() / "lm_eval" / f"task-{key}.json"
        with suppress(OSError, ValueError):
            cached: Description = reader(Description).validate_python(recall(cache_file))
            n = sum(map(len, cached.hashes))
            if len(cached.documents) >= (n if limit is None else min(limit, n)):
                return replace(cached, documents=cached.documents[:limit])
        objects = [self._load(i) for i in range(len(members))]
        scores = [requests.scores_of(task) for task in objects]
        kinds = {task.OUTPUT_TYPE for task in objects}
        if len(kinds) > 1 or any(task_scores != scores[0][0] for task_scores, _ in scores):
            problem = "a group whose tasks are scored in different ways"
            raise UserError(self._where, problem, "tasks of one kind and metric", "name single tasks")
        hashes = [tasks.hashes(task) for task in objects]
        version = digest([[tasks.definition(task) for task in objects], hashes, tasks.version()])
        # The first documents of the order seeded by the version, over all tasks of a group.
        places = [(member, i) for member, task_hashes in enumerate(hashes) for i in range(len(task_hashes))]
        order = np.random.default_rng(int(version, 16)).permutation(len(places))[:limit]
        docs, documents = [task.eval_docs for task in objects], []
        for member, i in (places[k] for k in order):
            documents.append(TaskDocument(member, i, hashes[member][i], tuple(tasks.texts(docs[member][i]))))
        limits = requests.limits_of(objects[0].get_config("generation_kwargs") or {})
        description = Description(
            version=version,
            kind=_KINDS.get(objects[0].OUTPUT_TYPE, "choice"),
            scores=tuple(scores[0][0]),
            left_out=tuple(scores[0][1]),
            max_new_tokens=limits.max_new_tokens,
            num_fewshot=int(objects[0].get_config("num_fewshot")),
            members=tuple(m.name for m in members),
            hashes=tuple(map(tuple, hashes)),
            documents=tuple(documents),
        )
        remember(cache_file, {f.name: getattr(description, f.name) for f in fields(description)})
        return description

    def _load(self, member: int) -> Any:
        """Return one task of lm-eval, loaded on first use."""
        if member not in self._objects:
            trusted, options = self._spec.trust_remote_code, (self._members[member], self._requested_shots)
            folder, where = self._datasets_dir, self._where
            self._objects[member] = tasks.load(*options, folder, trusted=trusted, where=where)
        return self._objects[member]

    def encode(self, candidate: Candidate, job: EvaluationJob, index: int) -> EncodedDocuments:
        """Encode the requests of one block of documents."""
        places = [self._described.place(e.id) for e in job.examples[index * BLOCK : (index + 1) * BLOCK]]
        self._build(self._described.place(e.id) for e in job.examples)  # all of them, at the first block
        instances = [i for place in places for i in self._requests[place]]
        ids = iter(requests.encode_requests(candidate, instances))
        return {place: [next(ids) for _ in self._requests[place]] for place in places}

    def evaluate(
        self, candidate: Candidate, job: EvaluationJob, index: int, encoded: EncodedDocuments | None = None
    ) -> list[SampleResult]:
        """Let the candidate answer one block of documents, and score the answers as lm-eval does."""
        examples = job.examples[index * BLOCK : (index + 1) * BLOCK]
        places = [self._described.place(example.id) for example in examples]
        ids = encoded or self.encode(candidate, job, index)
        start = time.perf_counter()
        responses_by_place: dict[tuple[int, int], list[RequestResponse | UnfitRequest]] = {}
        groups = [places]
        if self._described.num_fewshot and self._described.kind != "generate":  # a task's shots are read once
            members = dict.fromkeys(member for member, _ in places)
            groups = [[place for place in places if place[0] == member] for member in members]
        for group in groups:
            batch = [i for place in group for i in self._requests[place]]
            responses = iter(requests.answer(candidate, batch, [e for place in group for e in ids[place]]))
            responses_by_place |= {place: [next(responses) for _ in self._requests[place]] for place in group}
        share = (time.perf_counter() - start) / max(len(examples), 1)
        values = self._values(responses_by_place)
        return [
            self._row(job, index * BLOCK + i, e, responses_by_place[p], values.get(p), share)
            for i, (e, p) in enumerate(zip(examples, places, strict=True))
        ]

    def samples(self, rows: Sequence[SampleResult]) -> Iterator[dict[str, Any]]:
        """Yield each row by filter in lm-eval's log format; a group's task is named in `slice`."""
        from lm_eval.utils import handle_non_serializable, hash_string

        def plain(value: Any) -> Any:
            return json.loads(json.dumps(value, default=handle_non_serializable))

        places = [self._described.place(row.example_id) for row in rows]
        self._build(places)
        for row, place in zip(rows, places, strict=True):
            instances = self._requests[place]
            first = instances[0]
            target = self._load(place[0]).doc_to_target(first.doc)
            document = json.dumps(first.doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
            arguments = {f"gen_args_{i}": plain(instance.args) for i, instance in enumerate(instances)}
            for name in dict.fromkeys(score.filter for score in self._described.scores):
                parts = {s.metric: row.parts[s.name] for s in self._described.scores if s.filter == name}
                values = {metric: p[0] if p is not None and len(p) == 1 else p for metric, p in parts.items()}
                yield {
                    **asdict(row),
                    "doc_id": place[1],
                    "doc": plain(first.doc),
                    "target": plain(target),
                    "arguments": {k: {f"arg_{i}": a for i, a in enumerate(v)} for k, v in arguments.items()},
                    "filter": name,
                    "metrics": list(values),
                    "doc_hash": hash_string(document),
                    "prompt_hash": hash_string(first.arguments[0]),
                    "target_hash": hash_string(str(target)),
                    **values,
                }

    def _build(self, places: Iterable[tuple[int, int]]) -> None:
        documents_by_member: dict[int, list[int]] = defaultdict(list)
        for member, document in places:
            if (member, document) not in self._requests:
                documents_by_member[member].append(document)
        for member, documents in documents_by_member.items():
            new_requests = tasks.requests(self._load(member), documents, self._described.hashes[member])
            self._requests.update({(member, document): new_requests[document] for document in documents})

    def _values(
        self, answers_by_place: Mapping[tuple[int, int], Sequence[RequestResponse | UnfitRequest]]
    ) -> dict[Any, dict[str, Any]]:
        """Let lm-eval filter and score the answers; return each document's values by filter and metric."""
        responses = {p: [x for x in a if isinstance(x, RequestResponse)] for p, a in answers_by_place.items()}
        complete = {p: a for p, a in responses.items() if len(a) == len(answers_by_place[p])}
        values: dict[Any, dict[str, Any]] = {}
        for member in dict.fromkeys(member for member, _ in complete):
            task, places = self._load(member), [p for p in complete if p[0] == member]
            instances = [i for place in places for i in self._requests[place]]
            for instance, response in zip(instances, (a for p in places for a in complete[p]), strict=True):
                instance.resps = [response.response] * (instance.repeats or 1)
            task._instances = instances  # noqa: SLF001 (lm-eval has no other way to filter a part)
            task.apply_filters()
            for place in places:  # every filter; `filtered` is the result of the primary score's
                instances = self._requests[place]
                document, by_filter = instances[0].doc, {}
                for name in dict.fromkeys(s.filter for s in self._described.scores):
                    filtered = [instance.filtered_resps[name] for instance in instances]
                    by_filter[name] = task.process_results(document, filtered)
                gold, target = None, task.doc_to_target(document)
                if task.OUTPUT_TYPE == "multiple_choice":
                    choices = [str(c) for c in task.doc_to_choice(document)]
                    right = task.doc_to_text(document) if task.multiple_input else target
                    if isinstance(right, str) and right in choices:
                        right = choices.index(right)
                    is_one = isinstance(right, int) and 0 <= right < len(choices)
                    gold = choices, right if is_one else None  # None: not exactly one
                values[place] = {
                    "values": {s.name: by_filter[s.filter].get(s.metric) for s in self._described.scores},
                    "gold": gold,
                    "filtered": instances[0].filtered_resps[self._primary.filter],
                    "target": target,
                }
        return values

    def _row(
        self,
        job: EvaluationJob,
        position: int,
        example: Example,
        answers: Sequence[RequestResponse | UnfitRequest],
        scoring: Mapping[str, Any] | None,
        share: float,
    ) -> SampleResult:
        prompt = str(self._requests[self._described.place(example.id)][0].args[0])
        unscored: dict[str, Parts | None] = {s.name: None for s in self._described.scores}
        row_fields = (job.task.name, job.split, example.id, position)
        groups = (example.cluster, example.slice)
        row = SampleResult(*row_fields, "error", "", prompt, (), unscored, *groups, compute_s=share)
        unfit = next((a for a in answers if isinstance(a, UnfitRequest)), None)
        if unfit or scoring is None:
            n, reason = (unfit.n_tokens, unfit.reason) if unfit else (0, "no answer")
            return replace(row, n_prompt_tokens=n, finish_reason="error", error=reason)
        responses = [a for a in answers if isinstance(a, RequestResponse)]
        target = scoring["target"]
        row = replace(
            row,
            status="ok",  # the scores are lm-eval's for any status
            parts={s.name: requests.parts_of(s, scoring["values"][s.name]) for s in self._described.scores},
            references=tuple(map(str, target)) if isinstance(target, list) else (str(target),),
            prompt_digest=digest([a.encoded.context for a in responses]),
            boundary_merged=any(a.encoded.merged for a in responses),
            n_prompt_tokens=len(responses[0].encoded.context),
        )
        if output := responses[0].output:
            text, n, finish_reason = output.text, output.n_output_tokens, output.finish_reason
            if finish_reason == "length":
                row = replace(row, status="truncated")
            elif not text.strip() or scoring["filtered"] == _INVALID:
                row = replace(row, status="unparsable")
            elif job.role != "safety" and is_refusal(text):
                row = replace(row, status="refused")
            row = replace(row, text=text, n_output_tokens=n, finish_reason=finish_reason)
            return replace(row, output_digest=digest(text))
        # By likelihoods: the answer is the likeliest choice, or whether the target was greedy.
        n_scored = sum(len(a.encoded.continuation) for a in responses)
        row = replace(row, finish_reason="ranked", n_output_tokens=n_scored)
        if scoring["gold"] is None:
            response = responses[0].response
            logprob = float(response if isinstance(response, float) else response[0])
            return replace(row, gold_logprob=logprob, output_digest=digest(""))
        choices, index = scoring["gold"]
        logprobs = [float(a.response[0]) for a in responses[: len(choices)]]
        text = choices[int(np.argmax(logprobs))]
        row = replace(row, text=text, output_digest=digest(text))
        if index is None:
            return row
        right, gold, others = choices[index], logprobs[index], logprobs[:index] + logprobs[index + 1 :]
        margin = gold - max(others) if others else None
        right_bytes = len(right.encode())
        return replace(row, references=(right,), gold_logprob=gold, margin=margin, gold_bytes=right_bytes)
