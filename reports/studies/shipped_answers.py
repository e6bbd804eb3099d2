"""Generate the embedded base's answers to general prompts, which replay reads instead of generating them.

`python -m reports.studies.shipped_answers` runs the base on the first prompts (5 minutes on two cores) and writes
`harness/regularizers/answers/DIGEST.jsonl`, named by the base's weights and template.
"""

import json
import tempfile
from pathlib import Path

import harness
from harness import frames
from harness.models import hub
from harness.records import digest
from harness.regularizers import general_prompts

ANSWERS = Path(harness.__file__).parent / "regularizers" / "answers"
N_PROMPTS = 360  # one general row per training row (320), with a reserve
EXPERIMENT = """
name: general-prompts
base_model: smollm2-135m
target: {name: prompts, data: {validation: timed.jsonl, test: prompts.jsonl}, metrics: [no_refusal], max_new_tokens: 64}
candidates: {prompt: prompt}
"""


def main() -> None:
    """Run the base on the prompts, and write its answers."""
    prompts = general_prompts()[:N_PROMPTS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = ({"id": str(i), "prompt": prompt, "reference": "-"} for i, prompt in enumerate(prompts))
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        timed = json.dumps({"id": "timed", "prompt": "How do I tune a banjo?", "reference": "-"})
        (folder / "timed.jsonl").write_text(timed + "\n", "utf-8")
        (folder / "harness.yaml").write_text(EXPERIMENT, "utf-8")
        harness.compare(folder / "harness.yaml")
        samples = frames.samples(folder / "runs")
    base = hub.resolve("smollm2-135m")
    path = ANSWERS / f"{digest([base.weights_digest, base.template_digest])[:16]}.jsonl"
    path.parent.mkdir(exist_ok=True)
    answered = samples.set_index("example_id").loc[[str(i) for i in range(len(prompts))]]
    lines = (
        json.dumps({"prompt": prompt, "answer": text, "status": status}, ensure_ascii=False) + "\n"
        for prompt, text, status in zip(prompts, answered["text"], answered["status"], strict=True)
    )
    path.write_text("".join(lines), "utf-8")
    print(path)  # noqa: T201


if __name__ == "__main__":
    main()
