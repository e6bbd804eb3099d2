"""Passages of a candidate with retrieval, beside its exported weights, with lines that retrieve from them.

Invariant: the lines print the prompt that the run was asked by, word for word, but in scripts without blanks.
"""

import json
from pathlib import Path
from typing import Any

from harness import prompting
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.session import MeasuredTask
from harness.prompting import PromptingContext

FILE = "passages.jsonl"
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


def add_passages(target: MeasuredTask, candidate: ResolvedCandidate, seed: int, folder: Path) -> None:
    """Write the passages of a candidate with retrieval into its export, with README.md; nothing of others."""
    items = target.items
    context = PromptingContext(target.task, items.train, items.documents, seed, dry_run=True)
    for settings, passages in prompting.list_passages(candidate.recipe.prompting, context):
        lines = (json.dumps(passage._asdict(), ensure_ascii=False) for passage in passages)
        (folder / FILE).write_text("".join(f"{line}\n" for line in lines), "utf-8")
        but = ", but in scripts without blanks" if settings["retriever"] == "bm25" else ""
        page = _PAGE.format(n=len(passages), top_k=settings["top_k"], but=but, lines=_lines(settings))
        with (folder / "README.md").open("a", encoding="utf-8") as file:
            file.write(page)


def _lines(settings: dict[str, Any]) -> str:
    """Return the lines that retrieve by these settings."""
    score = _DENSE.format(model=settings["model"]) if settings["retriever"] == "dense" else _BM25
    best, top_k = _BEST.format(top_k=settings["top_k"]), settings["top_k"]
    if settings.get("rerank"):
        n = settings.get("rerank_from") or 20
        best = _RERANK.format(rerank=settings["rerank"], n=n, top_k=top_k)
    return score + best + _PROMPT.format(mark=_MARKS[settings.get("mark")])
