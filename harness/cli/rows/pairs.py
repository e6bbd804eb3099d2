"""Command that makes preference pairs of a candidate's own answers: pairs make.

Invariant: a new file stands beside a manifest, never over a file; stdout says how many prompts gave a pair
and why others gave none.
"""

from pathlib import Path
from typing import Annotated

from harness.cli.app import ROWS, group, say
from harness.cli.options import (
    AnswerTokens,
    Argument,
    ExperimentFile,
    Json,
    Option,
    Seed,
    TopP,
    name_beside,
    verb,
)
from harness.cli.rows.refusals import refuse_draws, refuse_grid, require_out
from harness.formatting import price

pairs_app = group("pairs", ROWS, "Make preference pairs, such as DPO trains on.")


@verb(
    pairs_app,
    "harness pairs make lora --samples 8 --out pairs.jsonl",
    "harness pairs make lora --rank judge:./rubric.yaml --max-cost 5 --out judged.jsonl",
    name="make",
)
def pairs_make(
    candidate: Annotated[str, Argument("A candidate of the experiment, whose answers are drawn.")],
    at: ExperimentFile,
    out: Annotated[Path | None, Option("The new file of pairs. A manifest is written beside it.")] = None,
    rank: Annotated[
        str,
        Option(
            "What ranks answers: a metric, a Python file with a function reward, a judge of the target, "
            "or a candidate that makes a reward model. By default the metric that decides."
        ),
    ] = "",
    samples: Annotated[int, Option("Answers drawn to each prompt.", min=2)] = 4,
    temperature: Annotated[float, Option("Sampling temperature, above 0.")] = 1.0,
    top_p: TopP = 1.0,
    max_new_tokens: AnswerTokens = None,
    gap: Annotated[float, Option("Scores that differ by no more than this are a tie.", min=0)] = 0.0,
    rows: Annotated[int | None, Option("Training prompts to ask, at most.", min=1)] = None,
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
    from harness.cli.rows.data import print_saved
    from harness.data.edit import refuse_output, save
    from harness.experiment.generated_rows.preference_pairs import Drawing, make_pairs

    refuse_draws(temperature, top_p)
    out = require_out(out, "harness pairs make", "pairs.jsonl")
    refuse_output(out, [])
    session, _ = at.open_session(candidate)
    refuse_grid(candidate, session.candidates, "harness pairs make")
    drawing = Drawing(samples, temperature, top_p, max_new_tokens, rank, gap, rows, seed, max_cost)
    made = make_pairs(session, candidate, drawing, str(out))
    refuse_output(out, made.edit.inputs)
    saved = save(made.edit, made.outcomes, out)
    print_saved(saved, as_json)
    for note in made.notes:
        say(note)
    answers, ranking = map(price, (made.spent.cost_usd, made.ranking_usd))
    say(f"the answers took {made.spent.n_output_tokens:,} tokens and {answers}, ranking them {ranking}")
    train = f"train: {name_beside(at.config, out)} on a candidate with method: dpo in {at.config}"
    say(f"next: {train}, or the file as pairs: in data: of the target")
