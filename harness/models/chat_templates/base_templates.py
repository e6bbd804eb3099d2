"""Chat templates of an experiment's bases: their own, the one that the experiment names, or a refusal.

Invariant: chat prompts are for bases that have a template, and one that the experiment names was
tried on each of them before anything is trained by it.
"""

from collections.abc import Iterator, Mapping

from harness.errors import Problem, UserError, refuse
from harness.models.chat_templates import read_template, template_names, template_problems
from harness.models.hub import (
    ModelSource,
    has_chat_template,
    has_tokenizer,
    is_packed,
    load_tokenizer,
    map_end_tokens,
    set_template,
)
from harness.spec import Experiment


def set_templates(experiment: Experiment, sources: Mapping[str, ModelSource]) -> dict[str, ModelSource]:
    """Return the models of an experiment, those without a chat template with the one that it names.

    Raises:
        UserError: tasks are prompted in chat of a base without a template; or a template is named that cannot
            be used, or that no base needs.
    """
    lacking = [name for name, source in sources.items() if _lacks_template(source)]
    if experiment.chat_template is not None:
        return {**sources, **_complete(experiment.chat_template, {name: sources[name] for name in lacking})}
    in_chat = [task.name for task in experiment.tasks if task.chat_template and task.kind != "bits_per_byte"]
    if in_chat and lacking:
        raise UserError([_phrase_no_template(name, in_chat) for name in lacking])
    return dict(sources)


def _lacks_template(source: ModelSource) -> bool:
    return not is_packed(source) and has_tokenizer(source.path) and not has_chat_template(source)


def _phrase_no_template(name: str, in_chat: list[str]) -> Problem:
    known = ", ".join(template_names())
    return Problem(
        f"base_model {name}",
        f"a tokenizer without a chat template, and tasks prompted in chat: {', '.join(in_chat)}",
        "an instruction-tuned model, or a template for this one",
        f"chat_template: {known.replace(', ', ' or ')} in harness.yaml, choose an instruct model, "
        "or set chat_template: false on these tasks",
    )


def _complete(written: str, lacking: Mapping[str, ModelSource]) -> dict[str, ModelSource]:
    text = read_template(written)
    if not lacking:
        found, expected = f"{written}, and every base has a template of its own", "a base without one"
        raise UserError(Problem("chat_template", found, expected, "remove chat_template"))
    made = {name: set_template(source, text) for name, source in lacking.items()}
    problems = [p for source in made.values() for p in _problems(source, f"chat_template {written}")]
    refuse(problems)
    return made


def _problems(source: ModelSource, where: str) -> Iterator[Problem]:
    tokenizer = load_tokenizer(source)
    ends = [*map_end_tokens(source, tokenizer).values()]
    yield from template_problems(tokenizer, ends, f"{where}, {source.name}")
