"""A language model of some 30,000 parameters, made on the spot: whole experiments on it take seconds.

Invariant: the same seed gives the same files; fp32, so that packing and batching can be checked to 1e-4.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STARTED = "{{ bos_token }}" + CHATML

_LINES = (
    "The desk answers every letter with one word.",
    "My parcel is late, and nobody at the depot picks up the telephone.",
    "Where is the parcel that I paid for on Monday?",
    "The invoice shows the wrong sum; please send the money back.",
    "I was charged two times for one lamp.",
    "How do I change the address of my account?",
    "A red fox and a brown hen walk past a green gate at noon.",
    "system user assistant",
    "Context: question and answer, yes or no, one two three four five six seven eight nine ten.",
)

QUESTIONS = (
    "Where is my parcel?",
    "I was charged two times for one lamp, and nobody at the depot picks up the telephone.",
    "Yes?",
    "How do I change the address of my account?",
)
ASKED = [{"role": "user", "content": "Where is my parcel?"}]
CHOICES = ("late", "the money back", "a red fox and a brown hen")


def build(
    folder: Path,
    *,
    seed: int = 0,
    template: str | None = CHATML,
    adds_bos: bool = False,
    hidden_size: int = 32,
    head_dim: int = 8,
) -> Path:
    """Save model and tokenizer; with `adds_bos` the tokenizer itself writes `<s>` before a text."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    chat_tokenizer = tokenizer(template, adds_bos)
    config = LlamaConfig(
        vocab_size=len(chat_tokenizer),
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=256,
        initializer_range=0.3,  # at the usual 0.02 all tokens are about equally likely
        tie_word_embeddings=True,
        bos_token_id=chat_tokenizer.bos_token_id,
        eos_token_id=chat_tokenizer.eos_token_id,
        pad_token_id=chat_tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    chat_tokenizer.save_pretrained(folder)
    return folder


def build_bert(folder: Path, words: list[str], kind: str = "BertModel", *, seed: int = 0, **settings) -> Path:
    """Save a random BERT of some kind, and a tokenizer with these words."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tok = transformers.BertTokenizer(str(folder / "vocab.txt"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(seed)
    config = transformers.BertConfig(vocab_size=len(tok), max_position_embeddings=64, **sizes, **settings)
    getattr(transformers, kind)(config).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def tokenizer(template: str | None = CHATML, adds_bos: bool = False):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", "<pad>", "<s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_LINES, trainer)
    if adds_bos:
        bos = [("<s>", bpe.token_to_id("<s>"))]
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=bos)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="<|im_end|>", pad_token="<pad>",
        chat_template=template, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def copy(model: Path, folder: Path, **config) -> Path:
    shutil.copytree(model, folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | config))
    return folder


def train_adapter(model: Path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    tuned = get_peft_model(loaded, config)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.05)
    encoded = AutoTokenizer.from_pretrained(model)("Where is the parcel that I paid for on Monday?")
    ids = torch.tensor([encoded["input_ids"]])
    for _ in range(5):
        tuned(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return tuned


def adapter_on(model: Path, folder: Path, *, seed: int = 1, **settings) -> Path:
    """Save an adapter that changes the model's answers: its weights are random and nonzero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", **settings)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    for name, tensor in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor.data, std=0.3)
    adapted.save_pretrained(folder)
    return folder


@contextmanager
def note_shapes(module) -> Iterator[list[tuple[int, ...]]]:
    shapes = []
    hook = module.register_forward_hook(lambda _, args, __: shapes.append(tuple(args[0].shape)))
    try:
        yield shapes
    finally:
        hook.remove()


@contextmanager
def unchanged(model, ids) -> Iterator:
    """Yield a model's logits, and check that they and all its tensors are bit-identical afterwards."""
    plain, before = logits(model, ids), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    yield plain
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(tensor.equal(after[name]) for name, tensor in before.items())
    assert logits(model, ids).equal(plain)


def logits(model, ids: list[int]):
    """Return the logits of a model in memory for each next token of one row."""
    import torch

    model.eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def score_alone(model, context, continuation) -> float:
    """Return a continuation's log-probability by transformers alone: one sequence, no mask."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([[*context, *continuation]]), use_cache=False).logits[0].double()
    rows = torch.log_softmax(logits, -1)[len(context) - 1 : -1]
    return sum(row[token].item() for row, token in zip(rows, continuation, strict=True))
