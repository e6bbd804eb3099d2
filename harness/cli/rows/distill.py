"""Command that lets a teacher answer training rows: data distill.

Invariant: a new file stands beside a manifest that says whose answers they are and what they cost, never over
a file; what will be asked is said before anything is.
"""

from pathlib import Path
from typing import Annotated

from harness.cli.app import BY_A_MODEL, data_app, print_lines, say
from harness.cli.options import (
    AnswerTokens,
    Argument,
    DryAsking,
    ExperimentFile,
    Json,
    MaxCost,
    Option,
    Seed,
    Temperature,
    TopP,
    name_beside,
    verb,
)
from harness.cli.rows.refusals import refuse_draws, refuse_grid, require_out
from harness.formatting import price

_COMMAND = "harness data distill"


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
    out: Annotated[Path | None, Option("The new file of rows. A manifest is written beside it.")] = None,
    rewrite: Annotated[str, Option("Rewrite the rows' own answers by this instruction.")] = "",
    prompts: Annotated[
        str | None, Option("A file of rows that ask, in place of the target's training rows.")
    ] = None,
    min_score: Annotated[
        float | None, Option("Keep answers with at least this score against the row's own.")
    ] = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    max_new_tokens: AnswerTokens = None,
    rows: Annotated[int | None, Option("Rows to ask about, at most.", min=1)] = None,
    max_cost: MaxCost = None,
    seed: Seed = 0,
    dry_run: DryAsking = False,
    as_json: Json = False,
) -> None:
    """Let a teacher label training rows or rewrite answers.

    The teacher is a candidate, such as a larger model behind an endpoint; the new file is one to train on.
    """
    from harness.cli.rows.data import print_saved
    from harness.data.edit import refuse_output, save
    from harness.experiment.generated_rows.distilled_rows import Distillation, distill_rows, plan_distillation

    refuse_draws(temperature, top_p, greedy=True)
    if not dry_run:
        refuse_output(require_out(out, _COMMAND, "taught.jsonl"), [prompts] if prompts else [])
    session, _ = at.open_session(teacher, dry_run=dry_run)
    refuse_grid(teacher, session.candidates, _COMMAND)
    asked = Distillation(
        rewrite, prompts, temperature, top_p, max_new_tokens, min_score, rows, max_cost, seed
    )
    plan = plan_distillation(session, teacher, asked)
    if out is None or dry_run:
        print_lines(plan._asdict(), [str(plan)], as_json)
        say("nothing is asked in a dry run")
        return
    say(str(plan))
    made = distill_rows(session, teacher, asked, str(out))
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
