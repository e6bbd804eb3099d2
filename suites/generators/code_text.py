"""Held-out code: short pieces in several languages, for bits per byte.

Invariant: a piece and its variants, which differ in names and numbers, are one cluster.
"""

import random

from generators.rows import Row, variants

# «slot» marks an open place, since braces are code here
SLOTS = {
    "item": ["order", "ticket", "sensor", "invoice", "player", "booking", "parcel", "account"],
    "field": ["price", "weight", "score", "length", "delay", "amount", "distance", "level"],
    "n": ["3", "5", "8", "12", "20", "50", "64", "100"],
    "word": ["total", "result", "summary", "output", "answer", "buffer"],
    "file": ["data", "input", "records", "events", "stock", "log"],
}

PIECES = {
    "py-mean": '''def mean_«field»(«item»s):
    """Return the mean «field» of the «item»s, or None if there are none."""
    values = [«item».«field» for «item» in «item»s if «item».«field» is not None]
    if not values:
        return None
    return sum(values) / len(values)
''',
    "py-csv": """import csv

def read_«file»(path):
    with open(path, newline="") as handle:
        rows = csv.DictReader(handle)
        return {row["id"]: float(row["«field»"]) for row in rows if row["«field»"]}
""",
    "py-class": """class «Item»:
    def __init__(self, name, «field»=0):
        self.name = name
        self.«field» = «field»

    def __lt__(self, other):
        return self.«field» < other.«field»

    def __repr__(self):
        return f"«Item»({self.name!r}, {self.«field»})"
""",
    "py-retry": """import time

def fetch_«item»(client, key, attempts=«n»):
    for attempt in range(attempts):
        try:
            return client.get(f"/«item»s/{key}")
        except ConnectionError:
            if attempt == attempts - 1:
                raise
            time.sleep(2 ** attempt)
""",
    "py-group": """from collections import defaultdict

«item»s_by_«field» = defaultdict(list)
for «item» in «item»s:
    «item»s_by_«field»[«item»["«field»"] // «n»].append(«item»["id"])

for bucket, ids in sorted(«item»s_by_«field».items()):
    print(f"{bucket * «n»:>6}: {len(ids)} «item»s")
""",
    "py-test": """import pytest

@pytest.mark.parametrize("«field», expected", [(0, "low"), («n», "high")])
def test_«item»_is_classified_by_its_«field»(«field», expected):
    assert classify({"«field»": «field»}) == expected

def test_a_negative_«field»_is_refused():
    with pytest.raises(ValueError):
        classify({"«field»": -1})
""",
    "py-search": """def first_above(values, limit=«n»):
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if values[middle] <= limit:
            low = middle + 1
        else:
            high = middle
    return low
""",
    "py-json": """import json
from pathlib import Path

def save_«word»(«word», folder):
    path = Path(folder) / "«file».json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(«word», indent=2, sort_keys=True))
    return path
""",
    "js-fetch": """async function load«Item»s(url) {
  const response = await fetch(url);
  if (!response.ok) {
    throw new Error(`Could not load «item»s: ${response.status}`);
  }
  const «item»s = await response.json();
  return «item»s.filter((«item») => «item».«field» > «n»);
}
""",
    "js-sort": """const «word» = «item»s
  .map(({ id, «field» }) => ({ id, «field»: Number(«field») }))
  .filter(({ «field» }) => !Number.isNaN(«field»))
  .sort((a, b) => b.«field» - a.«field»)
  .slice(0, «n»);

console.log(«word»);
""",
    "js-event": """document.querySelector("#«item»-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = new FormData(event.target);
  const «field» = parseInt(form.get("«field»"), 10);
  if («field» > «n») {
    showError("The «field» must not be more than «n».");
    return;
  }
  save«Item»({ «field» });
});
""",
    "js-debounce": """function debounce(callback, delay = «n»0) {
  let timer = null;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => callback(...args), delay);
  };
}

export const update«Item» = debounce((«field») => render(«field»));
""",
    "ts-type": """interface «Item» {
  id: string;
  «field»: number;
  createdAt: Date;
  tags?: string[];
}

export function isHeavy(«item»: «Item», limit = «n»): boolean {
  return «item».«field» > limit && !(«item».tags ?? []).includes("archived");
}
""",
    "sql-top": """SELECT c.name, COUNT(*) AS n_«item»s, AVG(o.«field») AS mean_«field»
FROM «item»s AS o
JOIN customers AS c ON c.id = o.customer_id
WHERE o.created_at >= DATE '2024-01-01'
GROUP BY c.name
HAVING COUNT(*) > «n»
ORDER BY mean_«field» DESC;
""",
    "sql-create": """CREATE TABLE IF NOT EXISTS «item»s (
    id INTEGER PRIMARY KEY,
    customer_id INTEGER NOT NULL REFERENCES customers (id),
    «field» NUMERIC(10, 2) DEFAULT 0 CHECK («field» >= 0),
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);

CREATE INDEX idx_«item»s_«field» ON «item»s («field»);
""",
    "sql-window": """WITH ranked AS (
    SELECT id, «field»,
           ROW_NUMBER() OVER (PARTITION BY customer_id ORDER BY «field» DESC) AS place
    FROM «item»s
)
SELECT id, «field» FROM ranked WHERE place <= «n»;
""",
    "sh-loop": """#!/usr/bin/env bash
set -euo pipefail

for path in «file»/*.csv; do
    lines=$(wc -l < "$path")
    if [ "$lines" -gt «n» ]; then
        gzip --keep "$path"
        echo "compressed $path ($lines lines)"
    fi
done
""",
    "sh-backup": """backup_dir="$HOME/backup/«file»"
mkdir -p "$backup_dir"
tar -czf "$backup_dir/$(date +%F).tar.gz" "«file»" || exit 1
# keep only the «n» newest archives
ls -1t "$backup_dir"/*.tar.gz | tail -n +«n» | xargs -r rm --
""",
    "c-max": """#include <stddef.h>

int max_«field»(const struct «item» *«item»s, size_t count) {
    int best = 0;
    for (size_t i = 0; i < count; i++) {
        if («item»s[i].«field» > best) {
            best = «item»s[i].«field»;
        }
    }
    return best;
}
""",
    "c-string": """#include <ctype.h>
#include <stdio.h>

int main(void) {
    char «word»[«n»];
    if (fgets(«word», sizeof «word», stdin) == NULL) {
        return 1;
    }
    for (char *p = «word»; *p != '\\0'; p++) {
        putchar(toupper((unsigned char) *p));
    }
    return 0;
}
""",
    "java-class": """public final class «Item» {
    private final String id;
    private final double «field»;

    public «Item»(String id, double «field») {
        this.id = id;
        this.«field» = «field»;
    }

    public boolean isLarge() {
        return «field» > «n»;
    }
}
""",
    "java-stream": """List<String> «word» = «item»s.stream()
    .filter(«item» -> «item».«field»() >= «n»)
    .sorted(Comparator.comparingDouble(«Item»::«field»).reversed())
    .map(«Item»::id)
    .limit(«n»)
    .collect(Collectors.toList());
""",
    "go-read": """func read«Item»s(path string) ([]«Item», error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	var «item»s []«Item»
	if err := json.Unmarshal(data, &«item»s); err != nil {
		return nil, err
	}
	return «item»s, nil
}
""",
    "go-worker": """jobs := make(chan «Item», «n»)
var wg sync.WaitGroup
for i := 0; i < «n»; i++ {
	wg.Add(1)
	go func() {
		defer wg.Done()
		for job := range jobs {
			process(job)
		}
	}()
}
""",
    "rust-struct": """#[derive(Debug, Clone)]
struct «Item» {
    id: u32,
    «field»: f64,
}

fn heaviest(«item»s: &[«Item»]) -> Option<&«Item»> {
    «item»s
        .iter()
        .filter(|«item»| «item».«field» < «n».0)
        .max_by(|a, b| a.«field».total_cmp(&b.«field»))
}
""",
    "rust-read": """use std::fs;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let text = fs::read_to_string("«file».txt")?;
    let «word»: u64 = text.lines().filter_map(|line| line.trim().parse::<u64>().ok()).sum();
    println!("«word»: {}", «word» + «n»);
    Ok(())
}
""",
    "html-form": """<form action="/«item»s" method="post">
  <label for="«field»">«Field»</label>
  <input type="number" id="«field»" name="«field»" min="0" max="«n»" required>
  <button type="submit">Save «item»</button>
</form>
""",
    "css-card": """.«item»-card {
  display: flex;
  flex-direction: column;
  gap: «n»px;
  padding: 1rem;
  border-radius: 4px;
  background: #f7f7f7;
}

.«item»-card:hover .«field» {
  color: #c03;
}
""",
    "yaml-ci": """name: «item»s
on:
  push:
    branches: [main]
jobs:
  test:
    runs-on: ubuntu-latest
    timeout-minutes: «n»
    steps:
      - uses: actions/checkout@v4
      - run: make test
      - run: ./publish --«field» «n» «file»/
""",
    "docker": """FROM python:3.12-slim
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY «item»s ./«item»s
ENV MAX_«FIELD»=«n»
EXPOSE 80«n»
CMD ["python", "-m", "«item»s.server", "--input", "«file».json"]
""",
}
N_VARIANTS = 3


def items(seed: int) -> list[Row]:
    """Fill the pieces' open places in several ways."""
    rng = random.Random(f"code_text-{seed}")
    return [
        row
        for name, text in sorted(PIECES.items())
        for row in variants(name, N_VARIANTS, lambda text=text: filled(text, rng))
    ]


def filled(text: str, rng: random.Random) -> str:
    """Draw a word for every open place, and spell it as the place asks."""
    for slot, words in SLOTS.items():
        word = rng.choice(words)
        for mark, spelled in (
            (slot, word),
            (slot.capitalize(), word.capitalize()),
            (slot.upper(), word.upper()),
        ):
            text = text.replace(f"«{mark}»", spelled)
    return text
