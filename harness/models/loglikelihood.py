"""Log-probabilities of continuations, computed on one model in the layout that `batching` plans.

Invariant: the layout depends on token ids alone. Sequences with a common prefix share a row, under a mask
that separates their branches; the prefix of all contexts is read once. A random copy of a base with two
narrow layers shows the base's scoring engine without its weights: it has each kind of layer that the base
has, with windows of a few tokens. If no copy can be made (of recurrent layers, for example), the base itself
is probed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf, isnan
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar, cast

from harness.errors import CandidateFailed, one_line
from harness.models import batching, prefix_cache
from harness.models.cpu_kernels import chunk_attention
from harness.models.later import Cache, Config, Model, torch, transformers
from harness.models.out_of_memory import SHORTER, compute_in_halves, explain_out_of_memory, ran_out_of_memory
from harness.models.prefix_cache import windows
from harness.progress import quiet_libraries
from harness.provenance import versions_of
from harness.records import digest

# Mean gap per token on random ids: some 0.2 in 16 bits, 1e-4 in fp32, several nats if a mask is ignored.
AGREEMENT_NATS = {2: 0.5, 4: 0.05}  # by bytes per number
# Errors of transformers if a model takes no custom mask or cache.
UNSUPPORTED = (ValueError, RuntimeError, TypeError, LookupError, AttributeError, AssertionError)

# Rows of logits that are converted to fp32 at a time: on a CPU more would need fresh memory, which is slower
# than the model; a GPU would idle with fewer.
_SLICE = {"cpu": 16, "cuda": 1024}

_ANOTHER = "another base_model"

# Score of a pair: log-probabilities of its continuation's tokens in nats, and whether all are argmaxes.
Scored = tuple[list[float], bool]
# Layouts of pairs: `packed` into prefix trees under masks, `padded` to the longest of a batch, or `plain`,
# one at a time, on request.
ENGINES = ("packed", "padded", "plain")


def layout_digest(engine: str, budget: int, costs: batching.PassCosts = batching.CPU_COSTS) -> str:
    """Return the digest of what determines the shapes of batches on any model."""
    own_costs = [] if costs == batching.CPU_COSTS else [costs]
    tried = ["tried beside others"] if engine == "padded" else []  # see `generation`
    return digest([versions_of("layout"), engine, budget, *own_costs, *tried])


class Executor:
    """Executor of planned packs on one model; `engine` is `packed`, or `padded` if masks are ignored.

    Unless `engine` is known, a small tree is scored in both layouts. CandidateFailed is raised if the model's
    logits are NaN or infinite.
    """

    def __init__(
        self,
        model: Model,
        budget: int,
        engine: str | None = None,
        soft: Cache | None = None,
        costs: batching.PassCosts = batching.CPU_COSTS,
    ) -> None:
        self.costs = costs
        self.model, self.budget, self.prefixes = model, budget, prefix_cache.PrefixCache(model, soft=soft)
        self.engine = engine or self._choose_engine()

    def score(self, pairs: Sequence[batching.Pair]) -> list[Scored]:
        """Return the log-probabilities of each pair's continuation, and whether all tokens are argmaxes."""
        # Texts so long that positions scale with their length are scored alone.
        lengths = [len(context) + len(continuation) for context, continuation in pairs]
        alike = inf if self.prefixes.virtual_ids else self.prefixes.longest_alike
        short = [i for i, length in enumerate(lengths) if length < alike]
        by_place = dict(zip(short, self._score_together([pairs[i] for i in short]), strict=True))
        for i in sorted({*range(len(pairs))} - by_place.keys()):
            prefix_cache.forget_length(self.model)
            by_place[i] = self._score_alone(pairs[i])
        scored = [by_place[i] for i in range(len(pairs))]
        if any(isnan(sum(logprobs)) for logprobs, _ in scored):
            raise self._no_numbers()
        return scored

    def refuse_no_numbers(self) -> None:
        """Score a probe; CandidateFailed if the model cannot be run or its logits are not numbers."""
        if any(map(isnan, self._probe_alone(self._probes()[0][0]))):
            raise self._no_numbers()

    def _probe_alone(self, pair: batching.Pair) -> list[float]:
        try:
            return self._score_alone(pair)[0]
        except UNSUPPORTED as error:
            found = f"{type(self.model).__name__} cannot be computed by transformers ({one_line(error)})"
            raise CandidateFailed(found, _ANOTHER) from error

    def _no_numbers(self) -> CandidateFailed:
        found = f"the model's logits are not numbers in {str(self.model.dtype).removeprefix('torch.')}"
        return CandidateFailed(found, "precision: fp32, or bf16 where the device has it")

    def _score_together(self, pairs: Sequence[batching.Pair]) -> list[Scored]:
        if self.engine == "plain":
            return [self._score_alone(pair) for pair in pairs]
        if self.engine == "padded":
            return self._score_trees(pairs, 0, None)
        virtual = self.prefixes.virtual_ids
        pairs = [(virtual + context, continuation) for context, continuation in pairs] if virtual else pairs
        with chunk_attention(self.model):
            shared = batching.count_shared_prefix([context for context, _ in pairs], len(virtual))
            found = "out of memory while reading what all prompts begin with"
            with explain_out_of_memory(found, SHORTER):
                prefix = self.prefixes.read(pairs[0][0][:shared]) if shared else None
            return self._score_trees(pairs, shared, prefix)

    def _score_alone(self, pair: batching.Pair) -> Scored:
        return self._with_less_memory(self._trees([pair]), [pair], None)[0]

    def _score_trees(self, pairs: Sequence[batching.Pair], shared: int, prefix: Cache | None) -> list[Scored]:
        trees = self._trees(pairs, shared)
        scored: dict[int, Scored] = {}
        lengths, size = [len(tree.ids) for tree in trees], batching.Size(self.budget, self.budget)
        for group in batching.plan(lengths, size, self.costs.reading, self.costs.keys, shared):
            scored |= self._with_less_memory([trees[i] for i in group], pairs, prefix)
        return [scored[i] for i in range(len(pairs))]

    def _trees(
        self, pairs: Sequence[batching.Pair], shared: int = 0, numbers: Sequence[int] | None = None
    ) -> list[batching.PrefixTree]:
        joins, attending = self.engine == "packed", self.costs.attention
        return batching.grow(pairs, self.budget, shared, numbers, joins=joins, attending=attending)

    def _with_less_memory(
        self, trees: Sequence[batching.PrefixTree], pairs: Sequence[batching.Pair], prefix: Cache | None
    ) -> dict[int, Scored]:
        """Score trees; after memory ran out, half of the pairs at a time, without kept prefixes."""
        numbers = [number for tree in trees for number in tree.numbers]

        def score(part: list[int]) -> dict[int, Scored]:
            grown = trees if len(part) == len(numbers) else self._trees(pairs, _length(prefix), part)
            return self._score(grown, pairs, prefix)

        return compute_in_halves(numbers, score, self.prefixes.forget, "scoring")

    def _score(
        self,
        trees: Sequence[batching.PrefixTree],
        pairs: Sequence[batching.Pair],
        prefix: Cache | None = None,
    ) -> dict[int, Scored]:
        packed = batching.pack(trees, pairs)
        with torch.inference_mode():
            logits = self._logits(packed, prefix)  # (u, v)
            where = torch.tensor(packed.where, device=logits.device)  # (m,)
            targets = torch.tensor(packed.targets, device=logits.device)  # (m,)
            n_rows = _SLICE[logits.device.type]
            # log Σ exp of each row; `logsumexp` would make five passes over fresh memory.
            slices = (rows.float() for rows in logits.split(n_rows))
            total = torch.cat([rows.amax(-1) - rows.log_softmax(-1).amax(-1) for rows in slices])
            chosen = logits[where, targets]
            greedy = chosen == logits.amax(-1)[where]
            # The argmax is the first of equal logits.
            for hits in greedy.nonzero()[:, 0].split(n_rows):
                greedy[hits] = logits[where[hits]].float().argmax(-1) == targets[hits]
            logprobs, best = (chosen.float() - total[where]).tolist(), greedy.tolist()
        return {
            number: (logprobs[a:b], all(best[a:b]))
            for number, (a, b) in zip(packed.numbers, packed.spans, strict=True)
        }

    def _logits(self, packed: batching.Pack, prefix: Cache | None) -> "torch.Tensor":
        device = self.model.device
        inputs: dict[str, Any] = {"input_ids": torch.tensor(packed.ids, device=device), "use_cache": False}
        if self.engine == "packed":
            inputs["position_ids"] = torch.tensor(packed.positions, device=device)
            # Each token attends to the prefix and to its path from the root: (b, w, shared + w).
            positions, shared = inputs["position_ids"], _length(prefix)
            ends = torch.tensor(packed.ends, device=device)  # (b, w)
            order = torch.arange(ends.shape[1], device=device)
            is_visible = (order[:, None] >= order) & (order[:, None] < ends[:, None])
            visible = torch.nn.functional.pad(is_visible, (shared, 0), value=True)
            mask = prefix_cache.additive_mask(self.model, visible)
            places = torch.cat([torch.arange(shared, device=device).expand(len(ends), -1), positions], 1)
            windows = self.prefixes.windows or ()
            inputs["attention_mask"] = prefix_cache.cut_to_windows(mask, positions, places, windows)
        if prefix:
            cache = prefix_cache.row_cache(self.model, prefix, len(packed.ids))
            inputs |= {"past_key_values": cache, "use_cache": True}
        with project_only(self.model, torch.tensor(packed.sources, device=device)):
            return cast("torch.Tensor", self.model(**inputs).logits[0])

    def _choose_engine(self) -> str:
        is_stateful = self.model._is_stateful  # noqa: SLF001 (there is no public attribute)
        if is_stateful and self.prefixes.windows is not None:
            reason = f"{type(self.model).__name__} keeps a state that no cache of transformers' holds"
            raise CandidateFailed(reason, _ANOTHER)
        probes = self._probes()
        tolerance, packed = AGREEMENT_NATS[self.model.dtype.itemsize], list[list[list[float]]]()
        self.engine = "packed"
        for pairs in probes if self.prefixes.windows is not None else ():
            longest = max(len(context) + len(continuation) for context, continuation in pairs)
            try:
                with chunk_attention(self.model):
                    scored = self._score(batching.grow(pairs, max(64, longest)), pairs)
                packed.append([scored[i][0] for i in range(len(pairs))])
            except UNSUPPORTED as error:
                if ran_out_of_memory(error):
                    raise
                packed.append([])  # the model takes no such mask
        self.engine = "padded"
        alone = [[self._probe_alone(pair) for pair in pairs] for pairs in probes]
        if any(isnan(p) for pairs in alone for logprobs in pairs for p in logprobs):
            raise self._no_numbers()
        # Dropping the second half of each continuation must not change the scores of the first.
        halves = [self._score_alone((context, ids[: len(ids) // 2]))[0] for context, ids in probes[0]]
        first_halves = [logprobs[: len(half)] for logprobs, half in zip(alone[0], halves, strict=True)]
        if gap(halves, first_halves) > tolerance:
            reason = f"{type(self.model).__name__} reads a token by those after it too"
            raise CandidateFailed(reason, _ANOTHER)
        agree = packed and all(a and gap(a, b) < tolerance for a, b in zip(packed, alone, strict=True))
        return "packed" if agree else "padded"

    def _probes(self) -> list[list[batching.Pair]]:
        """Return pairs with a common prefix, and one longer than the model's attention window."""
        n_ids = self.model.config.get_text_config().vocab_size
        ids = tuple(i % n_ids for i in range(5, 37))
        branches = (ids[4:8], ids[8:16], ids[16:20], ids[20:])
        short = [(ids[:4], branch) for branch in branches] + [(ids[:1], ids[1:7]), (ids[3:4], ids[4:7])]
        window = max(self.prefixes.windows or (0,))
        if window == 0 or window + len(ids) > self.budget:
            return [short]
        long = tuple((5 + i * i) % n_ids for i in range(window + len(ids)))
        return [short, [(long[:-8], long[-8:])]]


def gap(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> float:
    """Return the mean absolute difference of log-probabilities of the same tokens, in nats."""
    pairs = (zip(*rows, strict=True) for rows in zip(first, second, strict=True))
    return fmean(abs(p - q) for pair in pairs for p, q in pair)


def _length(prefix: Cache | None) -> int:
    return int(prefix.get_seq_length()) if prefix else 0


@contextmanager
def project_only(model: Model, indices: "torch.Tensor") -> Iterator[None]:
    """Project only the hidden states at `indices` (u rows and positions): inside, logits are (1, u, v)."""

    def select(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        at = indices.to(args[0].device)  # layers may be on several devices
        return (args[0][at[:, 0], at[:, 1]][None], *args[1:])

    projection: Any = model.get_output_embeddings()
    hook = projection.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


_Answer = TypeVar("_Answer")

_MOST_PARAMETERS = 100_000_000  # of a copy; a configuration that we cannot make narrower has more
_BUDGET = 512  # tokens of a pass: room for all probes
_WINDOW = 8  # tokens; a difference of one changes log p visibly
# Standard deviation of a weight row's product with inputs of unit variance, so that a softmax is uneven.
_SPREAD = 1.7
_BIAS = 0.1  # added to parameters that families initialise with 0 or 1
_HEARD_NATS = 0.5  # smallest difference of log p between contexts
# Largest sizes in a copy, by transformers' names.
_MOST = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 512),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 8),
    **dict.fromkeys(("first_k_dense_replace", "n_group", "topk_group"), 1),
    "num_experts_per_tok": 2,
    "sliding_window": _WINDOW,
}
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_MOST_HEADS = 4
_NOT_COPIED = ("quantization_config", "dtype", "torch_dtype", "architectures")


def find_copied_engine(path: Path, device: str) -> str | None:
    """Return the scoring engine of a base; None if no copy shows it."""

    def find_engine(model: Any) -> str | None:
        executor = Executor(model.to(device), _BUDGET)
        # Its answers must depend on their context; otherwise an ignored mask would not show.
        contexts, answer = [tuple(range(5 + n, 11 + n)) for n in range(0, 24, 6)], (40, 41, 42)
        scores = [logprobs for logprobs, _ in executor.score([(context, answer) for context in contexts])]
        return executor.engine if gap(scores[1:], scores[:-1]) > _HEARD_NATS else None

    return ask_copy(path, find_engine)


def ask_copy(path: Path, ask: Callable[[Any], _Answer]) -> _Answer | None:
    """Return the result of `ask` for a random copy of a base; None if no copy can be made or run."""
    from huggingface_hub.errors import StrictDataclassError

    quiet_libraries()
    try:
        model = two_layer_copy(path)
        return None if model is None else ask(model)
    except (CandidateFailed, OSError, ImportError, ArithmeticError, StrictDataclassError, *UNSUPPORTED):
        return None


def two_layer_copy(path: Path) -> Model | None:
    """Make a random copy of a base from its configuration; None if it is large or has other layers."""
    config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
    kinds = _kinds(config)
    if not kinds:
        return None
    values = config.to_dict()
    for name in getattr(config, "sub_configs", {}):
        if isinstance(values.get(name), Mapping):
            values[name] = _narrow(values[name])
    small = type(config).from_dict(_narrow(values))
    if _kinds(small) != kinds:
        return None
    kind: Any = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        planned = kind.from_config(small, dtype=torch.float32)
    if sum(p.numel() for p in planned.parameters()) > _MOST_PARAMETERS:
        return None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Model = kind.from_config(small, dtype=torch.float32)
        # Weights with which each layer changes log p, whatever the family's initialisation.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0, _SPREAD * parameter.shape[-1] ** -0.5)
            else:
                parameter.data += _BIAS * torch.randn_like(parameter)
        embeddings: Any = model.get_input_embeddings()
        embeddings.weight.data *= embeddings.weight.shape[1] ** 0.5 / _SPREAD
    model.eval()
    return model


def _kinds(config: Config) -> set[bool] | None:
    """Return the kinds of a model's layers (True: with a window); None if they do not keep keys."""
    by_layer = windows(config)
    return None if by_layer is None else set(map(bool, by_layer))


def _narrow(config: Mapping[str, Any]) -> dict[str, Any]:
    """Narrow a configuration; the width of a head stays, because rotations of positions depend on it."""
    small = {name: value for name, value in config.items() if name not in _NOT_COPIED}
    small |= {name: _cap(small[name], largest) for name, largest in _MOST.items() if small.get(name)}
    # Keep the first layer of each kind, at least two in all, with their entries in the configuration.
    if name := _find_first(_LAYERS, small):
        n_layers = small[name]
        kinds: Sequence[str] = small.get("layer_types") or ()
        layers = sorted({list(kinds).index(kind) for kind in kinds})
        others = [n for n in range(n_layers) if n not in layers]
        layers = sorted({*layers, *others[: max(0, 2 - len(layers))]})
        small[name] = len(layers)
        for key, value in small.items():
            if isinstance(value, list) and len(value) == n_layers:
                small[key] = [value[n] for n in layers]
            elif isinstance(value, dict) and value and all(str(n).isdigit() for n in value):
                small[key] = {str(layers.index(int(n))): value[n] for n in value if int(n) in layers}
    # At most four heads of the same width as before; one key head or all stay so, other numbers become two.
    heads, hidden = _find_first(_HEADS, small), _find_first(_HIDDEN, small)
    if heads and hidden and small[heads] > _MOST_HEADS:
        n_heads, width = small[heads], small.get("head_dim") or small[hidden] // small[heads]
        small |= {heads: _MOST_HEADS, hidden: _MOST_HEADS * width}
        if name := _find_first(_KEY_HEADS, small):
            small[name] = {1: 1, n_heads: _MOST_HEADS}.get(small[name], _MOST_HEADS // 2)
    last = small.get("vocab_size", 1) - 1
    ids = {name: value for name, value in small.items() if name.endswith(("_token_id", "_token_index"))}
    return small | {name: _cap(value, last) for name, value in ids.items() if value is not None}


def _cap(value: Any, limit: int) -> Any:
    return [_cap(item, limit) for item in value] if isinstance(value, list) else min(value, limit)


def _find_first(names: Sequence[str], config: Mapping[str, Any]) -> str:
    return next((name for name in names if isinstance(config.get(name), int) and config[name]), "")
