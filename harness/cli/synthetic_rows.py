"""Commands by which models write rows: data distill, pairs make, data propose-prompts.

Invariant: a new file, never over one; beside rows stands a manifest that says whose answers they are and what
they cost. The requests are announced before one is sent, and proposed texts are tried on validation like what
anybody else writes.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from harness.cli.app import BY_A_MODEL, ROWS, data_app, group, print_lines, say
from harness.cli.options import (
    AnswerTokens,
    Argument,
    DryRequests,
    ExperimentFile,
    Json,
    MaxCost,
    Option,
    Seed,
    Temperature,
    TopP,
    name_beside,
    refuse_draws,
    refuse_grid,
    require_out,
    verb,
)
from harness.formatting import price

if TYPE_CHECKING:
    from harness.evaluation.session import Session

_DISTILL, _MAKE, _PROPOSE = "harness data distill", "harness pairs make", "harness data propose-prompts"
pairs_app = group("pairs", ROWS, "Make preference pairs, such as DPO trains on.")


@verb(
    data_app,
    "harness data distill large --dry-run",
    "harness data distill large --out taught.jsonl --max-cost 5",
    name="distill",
    heading=BY_A_MODEL,
)
def data_distill(
    teacher: Annotated[str, Argument("A candidate of the experiment, such as a larger model's.")],
    at: ExperimentFile,
    out: Annotated[Path | None, Option("The new file of rows. A manifest is written next to it.")] = None,
    rewrite: Annotated[str, Option("Rewrite the rows' own answers by this instruction.")] = "",
    prompts: Annotated[
        str | None, Option("A file of prompts, in place of the target's training rows.")
    ] = None,
    min_score: Annotated[
        float | None, Option("Keep answers with at least this score against the row's own.")
    ] = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    max_new_tokens: AnswerTokens = None,
    rows: Annotated[int | None, Option("Rows to send, at most.", min=1)] = None,
    max_cost: MaxCost = None,
    seed: Seed = 0,
    dry_run: DryRequests = False,
    as_json: Json = False,
) -> None:
    """Let a teacher label training rows or rewrite answers.

    The teacher is a candidate, such as a larger model behind an endpoint; the new file is one to train on.
    """
    from harness.cli.data import print_saved
    from harness.data.edit import refuse_output, save
    from harness.experiment.generated_rows import Distillation, distill_rows, plan_distillation

    refuse_draws(temperature, top_p, greedy=True)
    if not dry_run:
        refuse_output(require_out(out, _DISTILL, "taught.jsonl"), [prompts] if prompts else [])
    session = _open_session(at, teacher, _DISTILL, dry_run=dry_run)
    request = Distillation(
        rewrite, prompts, temperature, top_p, max_new_tokens, min_score, rows, max_cost, seed
    )
    plan = plan_distillation(session, teacher, request)
    if out is None or dry_run:
        print_lines(plan._asdict(), [str(plan)], as_json)
        say("a dry run sends no request")
        return
    say(str(plan))
    made = distill_rows(session, teacher, request, str(out))
    refuse_output(out, made.edit.inputs)
    print_saved(save(made.edit, made.outcomes, out), as_json)
    for note in made.notes:
        say(note)
    if made.agreement is not None:
        metric = session.target.primary
        said = f"{metric.name} of the answers against the rows' own"
        say(f"{said}: {made.agreement * metric.unit.scale:.1f} over all rows that have one")
    cost = price(made.spent.cost_usd)
    say(f"the teacher's answers took {made.spent.n_output_tokens:,} tokens and {cost}, kept in the manifest")
    say(f"next: train: {name_beside(at.config, out)} on a candidate in {at.config}")


@verb(
    pairs_app,
    "harness pairs make lora --samples 8 --out pairs.jsonl",
    "harness pairs make lora --rank judge:./rubric.yaml --max-cost 5 --out judged.jsonl",
    name="make",
)
def pairs_make(
    candidate: Annotated[str, Argument("A candidate of the experiment, whose answers are sampled.")],
    at: ExperimentFile,
    out: Annotated[Path | None, Option("The new file of pairs. A manifest is written next to it.")] = None,
    rank: Annotated[
        str,
        Option(
            "What ranks answers: a metric, a Python file with a function reward, a judge of the target, "
            "or a candidate that makes a reward model. By default the metric that decides."
        ),
    ] = "",
    samples: Annotated[int, Option("Answers sampled for each prompt.", min=2)] = 4,
    temperature: Annotated[float, Option("Sampling temperature, above 0.")] = 1.0,
    top_p: TopP = 1.0,
    max_new_tokens: AnswerTokens = None,
    gap: Annotated[float, Option("Scores that differ by no more than this are a tie.", min=0)] = 0.0,
    rows: Annotated[int | None, Option("Training prompts to send, at most.", min=1)] = None,
    max_cost: Annotated[
        float | None,
        Option(
            "Budget in USD for answers and a judge's grades; no request is sent that could exceed it.", min=0
        ),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Draw answers, rank them, and write pairs of them.

    Of each training prompt the best answer and the worst make a pair.
    """
    from harness.cli.data import print_saved
    from harness.data.edit import refuse_output, save
    from harness.experiment.generated_rows import Drawing, make_pairs

    refuse_draws(temperature, top_p)
    out = require_out(out, _MAKE, "pairs.jsonl")
    refuse_output(out, [])
    session = _open_session(at, candidate, _MAKE)
    drawing = Drawing(samples, temperature, top_p, max_new_tokens, rank, gap, rows, seed, max_cost)
    made = make_pairs(session, candidate, drawing, str(out))
    refuse_output(out, made.edit.inputs)
    print_saved(save(made.edit, made.outcomes, out), as_json)
    for note in made.notes:
        say(note)
    answers, ranking = map(price, (made.spent.cost_usd, made.ranking_usd))
    say(f"the answers took {made.spent.n_output_tokens:,} tokens and {answers}, ranking them {ranking}")
    train = f"train: {name_beside(at.config, out)} on a candidate with method: dpo in {at.config}"
    say(f"next: {train}, or the file as pairs: in data: of the target")


@verb(
    data_app,
    "harness data propose-prompts large --n 8 --out proposed.yaml",
    name="propose-prompts",
    heading=BY_A_MODEL,
)
def data_propose_prompts(
    proposer: Annotated[str, Argument("A candidate of the experiment, such as a larger model's.")],
    at: ExperimentFile,
    out: Annotated[Path | None, Option("The new YAML file with a candidate to copy.")] = None,
    n: Annotated[int, Option("How many texts to request.", min=1, max=64)] = 6,
    examples: Annotated[int, Option("How many training rows to show.", min=0)] = 4,
    max_new_tokens: Annotated[int, Option("Tokens of a text, at most.", min=1)] = 200,
    temperature: Temperature = 0.7,
    max_cost: MaxCost = None,
    seed: Seed = 0,
    dry_run: DryRequests = False,
    as_json: Json = False,
) -> None:
    """Let a model propose system texts to be tried.

    It is shown the task and some training rows, and the texts are written as a grid.
    """
    from harness.data.edit import refuse_existing
    from harness.experiment.generated_rows import PromptProposal, plan_proposals, propose_prompts, recipe_text

    refuse_draws(temperature, 1.0, greedy=True)
    if not dry_run:
        refuse_existing(require_out(out, _PROPOSE, "proposed.yaml"))
    session = _open_session(at, proposer, _PROPOSE, dry_run=dry_run)
    request = PromptProposal(n, examples, max_new_tokens, temperature, max_cost, seed)
    plan = plan_proposals(session, proposer, request)
    if dry_run or out is None:
        print_lines(plan._asdict(), [str(plan)], as_json)
        say("a dry run sends no request")
        return
    say(str(plan))
    path, made = out, propose_prompts(session, proposer, request)
    with path.open("x", encoding="utf-8") as file:
        file.write(recipe_text(made))
    print_lines({"texts": list(made.texts), **made.provenance}, made.texts, as_json)
    say(f"{len(made.texts)} of {n} texts differ; next: copy the candidate in {path} into harness.yaml")


def _open_session(at: ExperimentFile, name: str, command: str, *, dry_run: bool = False) -> "Session":
    """Open the experiment for the one candidate that writes."""
    session, _ = at.open_session(name, dry_run=dry_run)
    refuse_grid(name, session.candidates, command)
    return session
