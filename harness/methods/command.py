"""Weights made by the user's command from our training rows: TRL's, axolotl's, LLaMA-Factory's or a script.

Invariant: its result in `{out}`, an adapter or a whole model with the base's layers, is judged like weights
made here, and identified by the command's text, the files it reads, the rows and the seed. Unknown names in a
template are refused; double braces, and braces around anything but a lower-case name, are left as they are.
"""

import json
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from harness.errors import CandidateFailed, Problem, did_you_mean
from harness.masking import mask_file, mask_secrets
from harness.models import join_to_plain_text
from harness.models.against_base import PICKLED, adapter_problems, model_problems, read_adapter_config
from harness.models.hub import ModelSource, has_tokenizer, load_tokenizer
from harness.models.programs import read_last_lines, read_lines, run
from harness.models.weight_files import CONFIG, WEIGHTS, parameters_of, tensors_of
from harness.plugins import Method
from harness.provenance import digest_code
from harness.records import Curve, TrainingRecord, checksum, digest
from harness.spec import Recipe, Spec
from harness.training import CHECKPOINTS, FitContext, Weights, made_weights

NAMES = ("data", "validation", "data_dir", "base", "out", "seed", "config")
_ONE = re.compile(r"(?<!\{)\{([a-z_]+)\}(?!\})")
LOG = "command.log"
_OF_A_MODEL = {".json", ".safetensors", ".jinja", ".model", ".txt"}
_BY_HAND = "running it by hand, and the folder that it fills as base_model of an experiment of its own"
_SAID = 3  # number of last log lines quoted in an error


class Params(Spec):
    """`run` is the command, with the placeholders listed in docs/howto/trainers.md.

    `config` is a template file or folder in which placeholders are filled, too; `{config}` is the path of the
    result. The command runs in `folder`, by default that of harness.yaml. `rows` is the layout of `{data}`:
    chat `messages`, or `prompt_completion`. With `shell` a shell runs the command, for pipes and variables.
    `version` is a command whose first output line is stored, such as `trl --version`. The command is ended
    after `timeout_s` seconds.
    """

    run: str = Field(min_length=1)
    config: str | None = Field(None, exclude=True)
    folder: str = Field(".", exclude=True)
    rows: Literal["messages", "prompt_completion"] = "messages"
    shell: bool = False
    version: str | None = Field(None, exclude=True)
    timeout_s: float | None = Field(None, gt=0, exclude=True)

    @model_validator(mode="after")
    def _check_command(self) -> "Params":
        for text in filter(None, (self.run, self.version)):
            if problem := misspelt(text):
                raise ValueError(problem)
            try:
                arguments(text, dict.fromkeys(placeholders_in(text), ""))
            except ValueError as error:
                raise ValueError(f"{text!r} is not a command: {error}") from None
        if ("config" in placeholders_in(self.run)) != (self.config is not None):
            raise ValueError("{config} in run and `config:` go together: add the other one")
        return self


def problems(recipe: Recipe, source: ModelSource, where: str) -> Iterator[Problem]:
    """Yield the problems of the command: missing program or template, or no `{out}` to write to."""
    params = Params(**recipe.params)
    if not params.run.strip():
        yield Problem(f"{where}: run", "an empty command", "a program and its arguments", "write what trains")
        return
    if not Path(params.folder).is_dir():
        step = "create it, or correct the path"
        yield Problem(f"{where}: folder", f"no folder {params.folder}", "one to run the command in", step)
    used_placeholders = placeholders_in(params.run)
    if params.config:
        template = Path(params.config)
        if not template.exists():
            found, expected = f"no file {template}", "the template of the command's configuration"
            yield Problem(f"{where}: config", found, expected, "create it, or correct the path")
            return
        for problem in template_problems(template):
            step = "docs/howto/trainers.md lists them"
            yield Problem(f"{where}: config", problem, "placeholders that are known", step)
        for path in template_files(template).values():
            used_placeholders |= placeholders_in(path.read_text("utf-8", errors="replace"))
    if "out" not in used_placeholders:
        found, step = "a command that is not told where to write", "name {out} in run or in config"
        yield Problem(f"{where}: run", found, "weights in {out}", step)
    if params.shell:
        return
    program = arguments(params.run, dict.fromkeys(placeholders_in(params.run), "x"))[0]
    if shutil.which(str(Path(params.folder) / program) if "/" in program else program) is None:
        step = f"install it, best in an environment of its own, and write its path: /opt/venv/bin/{program}"
        yield Problem(f"{where}: run", f"no program {program}", "one that can be run here", step)


def fit(context: FitContext, params: Params) -> Weights:
    """Write the rows, run the command and take over its weights."""
    log = context.folder / CHECKPOINTS / LOG  # kept there if this fails
    log.parent.mkdir(exist_ok=True)
    log.write_bytes(b"")
    values = _write_input(context, params)
    folder, command = Path(params.folder).absolute(), arguments(params.run, values, shell=params.shell)
    result = run(command, folder, log, params.timeout_s, context.advance)
    for file in (log, *(context.folder / "config").rglob("*"), context.folder / "config"):
        mask_file(file)
    if result.code or result.timed_out:
        tail = " / ".join(line[:200] for line in read_last_lines(log, _SAID)) or "it wrote nothing"
        outcome = f"ended with exit code {result.code}"  # that of a signal is negative
        if result.timed_out:
            outcome = f"had not finished after {params.timeout_s:g} s (timeout_s) and was ended"
        program = params.run.split()[0]
        raise CandidateFailed(f"{program} {outcome}; its last lines: {tail}", f"fixing it by its log, {log}")
    version = arguments(params.version, values, shell=params.shell) if params.version else None
    out = Path(values["out"])
    if not out.is_dir():
        raise CandidateFailed("the command ended well and removed the folder {out}", "leaving weights in it")
    version_text = mask_secrets(next(iter(read_lines(version, folder)), "")) if version else ""
    record = TrainingRecord(
        wall_s=round(result.wall_s, 3), peak_memory_gib=round(result.peak_bytes / 2**30, 3), **_curves(out)
    ).add(command=mask_secrets(params.run), command_version=version_text or None, exit_code=result.code)
    weights = _take_over(context, out, record)
    shutil.move(log, context.folder / LOG)
    if out.is_symlink():
        out.unlink()
    for scratch in (out, Path(values["data_dir"])):
        shutil.rmtree(scratch, ignore_errors=True)  # the command may have removed it
    return weights


def _write_input(context: FitContext, params: Params) -> dict[str, str]:
    """Write rows and filled templates; return the values of the placeholders."""
    data, out = context.folder / "data", context.folder / "out"
    for new_folder in (data, out):
        new_folder.mkdir()
    splits = {"data": ("train.jsonl", context.train), "validation": ("validation.jsonl", context.validation)}
    if params.rows == "messages" and not context.chat_template:
        found = "rows: messages, and a target with chat_template: false"
        raise CandidateFailed(found, "rows: prompt_completion")
    for name, rows in splits.values():
        with (data / name).open("w", encoding="utf-8") as file:
            for row in rows:
                prompt, answer = list(row.messages), row.references[0]
                answer_turn = [{"role": "assistant", "content": answer}]
                if params.rows == "messages":
                    line: dict[str, Any] = {"messages": [*prompt, *answer_turn]}
                elif context.chat_template:
                    line = {"prompt": prompt, "completion": answer_turn}
                else:
                    line = {"prompt": join_to_plain_text(prompt), "completion": answer}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    values = {name: str((data / file).absolute()) for name, (file, _) in splits.items()}
    values |= {"data_dir": str(data.absolute()), "out": str(out.absolute()), "seed": str(context.seed)}
    values |= {"base": str(context.source.path.absolute())}
    if params.config:
        template, folder = Path(params.config), (context.folder / "config").absolute()
        values["config"] = str(folder / template.name)  # also within the template
        for name, path in template_files(template).items():
            filled = folder / name if template.is_file() else folder / template.name / name
            filled.parent.mkdir(parents=True, exist_ok=True)
            filled.write_text(fill(path.read_text("utf-8"), values), "utf-8")
            shutil.copymode(path, filled)
    return values


def _curves(out: Path) -> dict[str, Any]:
    """Read the curves from the last trainer state that a transformers trainer left, as most tools do."""
    # An unreadable state or value loses only its curve, not the weights.
    states = []
    for path in out.rglob("trainer_state.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            state = json.loads(path.read_text("utf-8"))
            states.append((int(state["global_step"]), [(int(e["step"]), e) for e in state["log_history"]]))
    if not states:
        return {}
    _, history = max(states, key=lambda state: state[0])
    names = {"loss": "loss", "validation_loss": "eval_loss", "learning_rate": "learning_rate"}
    curves: dict[str, Curve] = {}
    for name, logged_name in names.items():
        curves[name] = tuple(
            (step, float(value))
            for step, entry in history
            if isinstance(value := entry.get(logged_name), int | float) and isfinite(value)
        )
    losses = [loss for _, loss in curves["validation_loss"] if loss is not None]
    return curves | {"best_validation_loss": min(losses, default=None)}


def _take_over(context: FitContext, out: Path, record: TrainingRecord) -> Weights:
    """Move the command's weights to the folder for their kind."""
    if (out / CONFIG).exists() and (out / WEIGHTS).exists():
        _refuse(adapter_problems(out, context.source, "out"), out)
        folder, files = context.folder / "adapter", [out / CONFIG, out / WEIGHTS]
    elif (out / "config.json").exists() and any(out.glob("*.safetensors")):
        _refuse(model_problems(out, context.source, "out"), out)
        folder = context.folder / "model"
        files = [path for path in out.iterdir() if path.is_file() and path.suffix in _OF_A_MODEL]
    else:
        if (out / PICKLED).exists() or any(out.glob("pytorch_model*.bin")):
            raise CandidateFailed("the command left pickled weights in {out}", "saving them as safetensors")
        names = sorted(path.name for path in out.iterdir())
        contents = f"what lies there: {', '.join(names[:8])}" if names else "it is empty"
        expected = f"{CONFIG} with {WEIGHTS}, or config.json with safetensors"
        reason = f"the command ended well and left no weights in {{out}} ({expected}); {contents}"
        raise CandidateFailed(reason, "writing the finished weights to {out} itself, not below it")
    folder.mkdir()
    for file in files:  # a link's target may lie anywhere and must not be moved
        (shutil.copyfile if file.is_symlink() else shutil.move)(file, folder / file.name)
    n_trainable = sum(sum(parameters_of(tensors_of(file)).values()) for file in folder.glob("*.safetensors"))
    record = replace(record, n_trainable=n_trainable)
    if folder.name == "adapter":
        record = replace(record, named_base=read_adapter_config(folder).get("base_model_name_or_path"))
    elif not has_tokenizer(folder):
        load_tokenizer(context.source).save_pretrained(folder)
    return made_weights(context, folder.name, record)


def _refuse(weights_problems: Iterable[Problem], out: Path) -> None:
    if problem := next(iter(weights_problems), None):
        file_note = "" if problem.where == "out" else f" ({Path(problem.where).name})"
        reason = f"the command left {problem.found}{file_note}; expected {problem.expected}"
        # The output folder is deleted later, so no message may name a path in it.
        raise CandidateFailed(reason, _BY_HAND if str(out) in problem.next_step else problem.next_step)


def placeholders_in(text: str) -> set[str]:
    """Return the names of the placeholders in a text."""
    return set(_ONE.findall(text))


def misspelt(text: str) -> str:
    """Name an unknown placeholder of a text with a suggestion; empty if all are known."""
    name = min(placeholders_in(text) - set(NAMES), default="")
    return name and f"unknown placeholder {{{name}}}: {did_you_mean(name, NAMES)}"


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replace the placeholders of a text by their values."""
    return _ONE.sub(lambda match: values[match[1]], text)


def arguments(command: str, values: Mapping[str, str], *, shell: bool = False) -> list[str]:
    """Split a command into arguments; a placeholder's value always stays within one argument."""
    if shell:
        quoted = {name: shlex.quote(value) for name, value in values.items()}
        return ["/bin/sh", "-c", fill(command, quoted)]
    return [fill(argument, values) for argument in shlex.split(command)]


def template_files(template: Path) -> dict[str, Path]:
    """Map the files of a template (a file or a folder) to their names within it."""
    if template.is_file():
        return {template.name: template}
    paths = sorted(path for path in template.rglob("*") if path.is_file())
    return {str(path.relative_to(template)): path for path in paths}


def template_problems(template: Path) -> Iterator[str]:
    """List the problems of a template's files."""
    for name, path in template_files(template).items():
        try:
            if problem := misspelt(path.read_text("utf-8")):
                yield f"{name}: {problem}, or {{{{two pairs of braces}}}} where none is meant"
        except UnicodeDecodeError:
            yield f"{name}: not UTF-8"


def digest_files(params: Params) -> str:
    """Return the digest of the files that the command reads besides its rows: templates and named files.

    For a Python file this includes the modules that it imports from its own folder.
    """
    folder = Path(params.folder)
    named_paths = [folder / argument for argument in params.run.split() if not placeholders_in(argument)]
    local_paths = [p for p in named_paths if p.is_file() and p.resolve().is_relative_to(folder.resolve())]
    own_files = {str(path.relative_to(folder)): path for path in local_paths}
    template_paths = template_files(Path(params.config)) if params.config else {}
    return digest(
        [
            {name: digest_code(f) if f.suffix == ".py" else checksum(f) for name, f in files.items()}
            for files in (own_files, template_paths)
        ]
    )


METHOD = Method(
    params=Params,
    fit=fit,
    makes="adapter or model",
    draws_from="train",
    seeded=True,
    loops=("placeholders",),
    reads=digest_files,
    problems=problems,
)
