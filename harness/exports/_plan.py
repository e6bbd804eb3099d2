"""Plan and execution of one export of a stored run's weights.

Invariant: a folder appears with all its files or not at all. Weights are hashed again before they are read,
and must have the run's digest. The record, `export.json`, contains no machine paths.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from harness import __version__, plugins, prompting, provenance, store
from harness.cache import sync
from harness.errors import Problem, UserError, did_you_mean, refuse
from harness.evaluation import limits_of
from harness.evaluation.candidates import ResolvedCandidate, base_weights, merge_weights, read_weights
from harness.evaluation.row_sets import target_sets
from harness.evaluation.runner import verify_weights
from harness.evaluation.session import Session
from harness.models import hub
from harness.models.against_base import open_whole, save_whole, stored_precision, unmergeable
from harness.models.hub import ModelSource
from harness.models.weight_files import map_stored_tensors
from harness.progress import Advance
from harness.prompting import PromptingContext
from harness.records import Run, checksum
from harness.spec import ExportPolicy, Recipe, Task
from harness.store import EXPORT_RECORD, Export, ExportedFile, list_exported_files, verify_export
from harness.training import Weights

_KINDS = ("base", "adapter", "delta", "model")
_TOOLS = ("torch", "transformers", "peft", "tokenizers")
_ONE, _OTHER = "weights of one language model", "export a candidate of another method"


class ExportPlan(NamedTuple):
    """Planned export: the run with its weights, format and quantization, and the target folder.

    `n_bytes` and `seconds` are estimates. `notes` say which parts of the run's answers the weights lack.
    """

    run: Run
    candidate: ResolvedCandidate
    weights: Weights
    source: ModelSource
    format: str
    quantization: str
    folder: Path
    policy: ExportPolicy
    n_bytes: float
    seconds: float
    notes: tuple[str, ...]


class Bits(NamedTuple):
    """Bits per weight in rows divisible by 256, in other rows, and in the embeddings."""

    divided: float
    others: float
    embedded: float


PRECISIONS = {"bf16": Bits(16, 16, 16), "fp16": Bits(16, 16, 16), "fp32": Bits(32, 32, 32)}


class Format(NamedTuple):
    """Export format, as its file declares it.

    `bits` lists the possible types, `seconds` the fixed time and the time per 1e9 parameters. Without a
    `default` the type is the precision of the base's files. `problems(policy, type)` yields what is missing
    here; `write(job, folder)` fills a new folder.
    """

    bits: Mapping[str, Bits]
    write: "Callable[[ExportJob, Path], Written]"
    seconds: tuple[float, float]
    default: str = ""
    problems: Callable[[ExportPolicy, str], Iterable[Problem]] = lambda policy, quantization: ()


class ExportJob(NamedTuple):
    """Input of a format's plugin: the session, what to export, and its progress."""

    session: Session
    plan: ExportPlan
    advance: Advance


class Written(NamedTuple):
    """Result of a format's plugin: tensors by type, versions of its tools, the merge's gap."""

    types: Mapping[str, int]
    versions: Mapping[str, str]
    gap: float


def plan_export(
    session: Session, run: Run, format_name: str, quantization: str = "", out: Path | None = None
) -> ExportPlan:
    """Plan the export of a finished run; nothing is written."""
    formats = plugins.names("exports")
    if format_name not in formats:
        raise UserError("--to", repr(format_name), ", ".join(formats), did_you_mean(format_name, formats))
    plugin: Format = plugins.load("exports", format_name).FORMAT
    candidate, weights = _find_weights(session, run)
    source = weights.source or session.source
    type_name = quantization.lower() or plugin.default or stored_precision(source.path)
    if type_name not in plugin.bits:
        type_names = ", ".join(plugin.bits)
        raise UserError("--quantize", quantization, type_names, did_you_mean(type_name, plugin.bits))
    policy = session.experiment.export
    refuse(plugin.problems(policy, type_name))
    default = session.store.place("exports", run.run_id) / f"{format_name}-{type_name}"
    at_first, by_size = plugin.seconds
    bits, shape = plugin.bits[type_name], hub.shape(source)
    embedded = min(shape.in_embeddings if shape else 0.0, source.n_parameters)
    # What else determined the run's answers besides weights, template and limits.
    recipe, notes = candidate.recipe, list[str]()
    if recipe.answer != "generate":
        notes += [f"answer: {recipe.answer}: a server generates, and its answers were chosen among labels"]
    if run.decoding and (run.decoding.get("samples") or 1) > 1:
        notes += ["its answers were chosen among several samples; a server gives one"]
    if methods := ", ".join(name for name in recipe.prompting if name not in ("zero_shot", "rag")):
        notes += [f"prompting: {methods}: what it puts in front of a question is not in the folder"]
    if rounded := source.quantization:
        notes += [f"trained and judged on a base in {rounded}, whose rounded weights are exported"]
    by_rows = bits.others if shape and shape.hidden % 256 else bits.divided
    n_bytes = (embedded * bits.embedded + (source.n_parameters - embedded) * by_rows) / 8
    expected_s = at_first + by_size * source.n_parameters / 1e9
    folder, made_of = out.absolute() if out else default, (run, candidate, weights, source)
    return ExportPlan(*made_of, format_name, type_name, folder, policy, n_bytes, expected_s, tuple(notes))


def _find_weights(session: Session, run: Run) -> tuple[ResolvedCandidate, Weights]:
    where, rerun = f"run {run.run_id}", f"harness compare --candidates {run.candidate}, then export its run"
    recipe = Recipe.model_validate(run.recipe)
    if recipe.weights_of and recipe.weights_of not in session.candidates:
        found = f"the weights of {recipe.weights_of}, which is not a candidate now"
        raise UserError(where, found, "candidates as they were", "write it into the file again")
    candidate = session.resolve(run.candidate, recipe)
    if candidate.makes not in plugins.LANGUAGE_MODELS or candidate.is_remote:
        kind = "an endpoint, which are not here" if candidate.is_remote else f"the kind {candidate.makes}"
        found = f"the method {run.method}, with weights of {kind}"
        raise UserError(where, found, _ONE, _OTHER)
    # Look weights up by the run's key: data, precision or borrowed recipes may have changed since.
    key = run.training.fit_key
    weights = base_weights(candidate.given) if candidate.given else None
    if weights is None and key:
        weights = read_weights(candidate, session.store.weights(key))
    if weights is None:
        raise UserError(where, "no stored weights", "those that it answered with", rerun)
    if weights.kind not in _KINDS:
        found = f"weights of the kind {weights.kind}"
        raise UserError(where, found, _ONE, _OTHER)
    as_served = merge_weights(weights) if recipe.serve_merged else weights
    served = weights if weights.digest == run.weights_digest else as_served
    verify_weights(session.store, session.source, served, run)
    if (reason := unmergeable(weights.kind, weights.folder)) is not None:
        raise UserError(where, reason[0], "weights that can be merged into the base", reason[1])
    validation = target_sets(session, candidate.recipe, weights, run.seed)[0]
    # A run of another experiment (such as a limited one, named by id) answered other items on purpose.
    if run.experiment == session.experiment.name and validation.name in run.rows:
        then, now = store.read_identity(session.store, run.rows[validation.name]), validation.identity
        names = ("task_version", "template_digest", "prompting_digest")
        if changed := [name for name in names if getattr(then, name) != getattr(now, name)]:
            found = f"another {', another '.join(changed)} of {validation.name} by today's files"
            raise UserError(
                where, found, "prompts and limits that it answered by", f"put them back; or {rerun}"
            )
    return candidate, weights


def export_run(session: Session, plan: ExportPlan) -> tuple[Path, Export, bool]:
    """Return an export with its folder, and whether it is new; a complete one of the same weights is kept."""
    folder, work = plan.folder, plan.folder.with_name(f".{plan.folder.name}.{uuid4().hex}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / EXPORT_RECORD).is_file():
            found, step = "files, and no export.json among them", "name another folder with --out"
            raise UserError(str(folder), found, "a new or empty folder", step)
        export = verify_export(folder)
        same = (export.format, export.quantization, export.run_id, export.weights_digest)
        if same != (plan.format, plan.quantization, plan.run.run_id, plan.run.weights_digest):
            found = f"an export of {export.run_id} to {export.format} {export.quantization}"
            raise UserError(str(folder), found, "a new or empty folder", "name another with --out")
        return folder, export, False
    label = f"export {plan.run.candidate} to {plan.format} {plan.quantization}"
    errors = store.clear_errors(session.store, str(folder), store.AGAIN)
    with session.progress.stage(label, plan.seconds) as advance, errors:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir(mode=0o700)
        try:
            job = ExportJob(session, plan, advance)
            written = plugins.load("exports", plan.format).FORMAT.write(job, work)
            _write_passages(session, plan, work)
            export = _describe(session.target.task, plan, written, work)
            text = json.dumps(asdict(export), indent=2, ensure_ascii=False, allow_nan=False)
            (work / EXPORT_RECORD).write_text(f"{text}\n", "utf-8")
            for path in (*list_exported_files(work).values(), work):
                sync(path)
            work.rename(folder)  # replaces an empty folder
            sync(folder.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder, export, True


def _write_passages(session: Session, plan: ExportPlan, folder: Path) -> None:
    """Write the passages of a candidate with retrieval, and how to put them in front of a question."""
    task, items = session.target.task, session.target.items
    context = PromptingContext(task, items.train, items.documents, plan.run.seed, dry_run=True)
    for settings, passages in prompting.list_passages(plan.candidate.recipe.prompting, context):
        lines = (json.dumps(passage._asdict(), ensure_ascii=False) for passage in passages)
        (folder / "passages.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
        exception = ", but in scripts without blanks" if settings["retriever"] == "bm25" else ""
        score = _DENSE.format(model=settings["model"]) if settings["retriever"] == "dense" else _BM25
        best, top_k = _BEST.format(top_k=settings["top_k"]), settings["top_k"]
        if settings.get("rerank"):
            n = settings.get("rerank_from") or 20
            best = _RERANK.format(rerank=settings["rerank"], n=n, top_k=top_k)
        program = score + best + _PROMPT.format(mark=_MARKS[settings.get("mark")])
        page = _PAGE.format(n=len(passages), top_k=top_k, but=exception, lines=program)
        with (folder / "README.md").open("a", encoding="utf-8") as file:
            file.write(page)


def _describe(task: Task, plan: ExportPlan, written: Written, folder: Path) -> Export:
    run, recipe = plan.run, plan.candidate.recipe
    limits = limits_of(task, recipe.sampling)
    template = folder / "chat_template.jinja"
    versions = provenance.package_versions()
    packages = {name: version for name in _TOOLS if (version := versions.get(name))}
    return Export(
        format=plan.format,
        quantization=plan.quantization,
        run_id=run.run_id,
        candidate=run.candidate,
        seed=run.seed,
        experiment=run.experiment,
        target=task.name,
        base_model=Path(run.base_model).name if Path(run.base_model).is_absolute() else run.base_model,
        base_digest=run.base_digest,
        weights_digest=run.weights_digest,
        files={
            name: ExportedFile(checksum(path), path.stat().st_size)
            for name, path in list_exported_files(folder).items()
        },
        types=dict(written.types),
        versions={"harness": __version__, **packages, **written.versions},
        limits={"max_new_tokens": limits.max_new_tokens, "stop": list(limits.stop)}
        | ({"temperature": limits.temperature, "top_p": limits.top_p} if limits.temperature else {}),
        chat=task.chat_template,
        prompt={
            "system": task.system if recipe.system is None else recipe.system,
            "template": recipe.template,
            "prompting": recipe.prompting,
            "answer": recipe.answer,
        },
        chat_template=checksum(template) if template.exists() else "",
        merge_gap=written.gap,
        created=provenance.timestamp(),
        notes=plan.notes,
    )


def write_whole(job: ExportJob, folder: Path, precision: str) -> Written:
    """Write the run's weights as one model in safetensors, with its tokenizer."""
    plan = job.plan
    with open_whole(plan.source, plan.weights.kind, plan.weights.folder) as whole:
        limits = limits_of(job.session.target.task, plan.candidate.recipe.sampling)
        save_whole(whole, folder, precision, limits)
        return Written(Counter(tensor.dtype for tensor in map_stored_tensors(folder).values()), {}, whole.gap)


_BM25 = """\
import bm25s
index = bm25s.BM25(method="lucene")
def words(texts):
    return bm25s.tokenize(texts, token_pattern=r"\\w+", stopwords="en", return_ids=False, show_progress=False)
index.index(words(texts), show_progress=False)
def score(question):
    found = words([question])[0]
    return index.get_scores(found) if found else [0.0] * len(texts)
"""
_DENSE = """\
from sentence_transformers import SentenceTransformer
encoder = SentenceTransformer({model!r})
vectors = encoder.encode_document(texts, normalize_embeddings=True)
def score(question):
    return vectors @ encoder.encode_query([question], normalize_embeddings=True)[0]
"""
_RERANK = """\
from sentence_transformers import CrossEncoder
reranker = CrossEncoder({rerank!r})
def best(question):
    scores = score(question)
    read = sorted(range(len(texts)), key=lambda i: -scores[i])[:{n}]
    found = dict(zip(read, reranker.predict([(question, texts[i]) for i in read])))
    return sorted(read, key=lambda i: -found[i])[:{top_k}]
"""
_BEST = """\
def best(question):
    scores = score(question)
    return sorted(range(len(texts)), key=lambda i: -scores[i])[:{top_k}]
"""
_MARKS = {
    None: '""',
    "number": """f"[{ids.index(passage['id']) + 1}] \"""",
    "id": """f"[{passage['id']}] \"""",
}
_PROMPT = """\
def prompt(question):
    found = [passages[i] for i in best(question)]
    ids = list(dict.fromkeys(passage["id"] for passage in found))
    def line(passage):
        return {mark} + " ".join(f"{{passage['title']}}: {{passage['text']}}".removeprefix(": ").split())
    return "Context:\\n" + "\\n".join(map(line, found)) + "\\n\\n" + question
"""
_PAGE = """\
## Passages for these weights

`passages.jsonl` holds the {n} passages that this model was judged with, and `export.json` the system message
and the template of its prompts. These lines put the best {top_k} in front of a question, as in the judged
run{but}:

```python
import json
passages = [json.loads(line) for line in open("passages.jsonl", encoding="utf-8")]
texts = [f"{{p['title']}} {{p['text']}}" for p in passages]
{lines}print(prompt("your question"))
```
"""
