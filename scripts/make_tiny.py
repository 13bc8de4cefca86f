"""Make the tiny policy that ships inside the package: tokenizer, corpus and weights, from one seed.

    python scripts/make_tiny.py --out selfimprove/models/tiny

A Llama of a million parameters learns five skills on train-side problems of `selfimprove.datasets.arithmetic`: solve,
choice, expression, verify and refine. Held-out chains never appear, as questions or inside a shown solution.

It first learns from careful authors only, then from the mixture below. In both, an answer among options is a letter
straight after the working, which a model of this size does not learn; so a last phase, of mostly such documents, has it
go through the options line by line until one fits. `make_tiny.log` is the log of the shipped model, with its skills.

Self-improvement needs something to improve, and the corpus supplies it the way people's writing does, by mixing habits.
A careful author writes one right step a line. A hasty one joins several steps in a line or writes the answer straight
away, and is then often off. Long problems are rushed more often, so a policy that imitates the mixture solves short
problems with care and guesses at long ones, while sampling still shows the careful habit everywhere.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfimprove.datasets import arithmetic as data
from selfimprove.datasets.arithmetic import Chain
from selfimprove.generate.tutor import review
from selfimprove.studies.lessons import batched
from selfimprove.types import Message
from selfimprove.verify import arithmetic as verifier

CAREFUL = {2: 0.84, 3: 0.7, 4: 0.28, 5: 0.2, 6: 0.15}  # share of careful solutions, by level
HASTY_RIGHT = {1: 0.85, 2: 0.5, 3: 0.3, 4: 0.2, 5: 0.15, 6: 0.1}  # how often a jump over n steps is right
SKILLS = {"solve": 0.3, "verify": 0.2, "refine": 0.1, "choice": 0.3, "expression": 0.1}
CHOOSING = {**{skill: share / 2 for skill, share in SKILLS.items()}, "choice": 0.65}  # in the last phase
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
Document = tuple[list[Message], bool]  # a dialogue, and whether all its assistant turns are learnt or only the last


def near(rng: random.Random, value: int) -> int:
    """A plausible wrong value."""
    wrong = [value + d for d in (-10, -3, -2, -1, 1, 2, 3, 10) if 0 <= value + d <= data.MAX_VALUE]
    return rng.choice(wrong)


def equation(rng: random.Random, value: int, op: str, operand: int, result: int) -> str:
    """One step as a line; sums and products are sometimes turned round."""
    if op != "-" and rng.random() < 0.2:
        return f"{operand} {op} {value} = {result}"
    return f"{value} {op} {operand} = {result}"


def careful(rng: random.Random, chain: Chain) -> list[str]:
    values = chain.values
    lines = [equation(rng, values[i], *step, values[i + 1]) for i, step in enumerate(chain.steps)]
    return [*lines, f"The answer is {chain.answer}."]


def hasty(rng: random.Random, chain: Chain) -> list[str]:
    """Joins two or three steps in a line, or skips all the rest and writes an answer."""
    lines: list[str] = []
    value, steps = chain.start, chain.steps
    while steps:
        n = min(rng.choice((2, 2, 3, 6)), len(steps))
        jump = Chain(value, steps[:n])
        right = 0 <= jump.answer <= data.MAX_VALUE and rng.random() < HASTY_RIGHT[n]
        result = jump.answer if right else near(rng, min(max(jump.answer, 0), data.MAX_VALUE))
        if n > 3 or (n == len(chain.steps) and rng.random() < 0.5):
            value, steps = result, ()
        else:
            lines.append(f"{data.expression(jump)} = {result}")
            value, steps = result, steps[n:]
    return [*lines, f"The answer is {value}."]


def slipped(rng: random.Random, chain: Chain) -> list[str]:
    """One step a line, but one line miscalculates or misreads its step; the rest follows from it, within 0..99."""
    lines: list[str] = []
    value, slip = chain.start, rng.randrange(len(chain.steps) + 1)
    for i, (op, operand) in enumerate(chain.steps):
        result = data.apply(value, (op, operand))
        if i == slip and rng.random() < 0.6:
            result = near(rng, min(max(result, 0), data.MAX_VALUE))
        elif i == slip:
            op, operand = rng.choice("+-"), max(1, operand + rng.choice((-1, 1)))
            result = data.apply(value, (op, operand))
        lines.append(equation(rng, value, op, operand, result))
        value = result
        if not 0 <= value <= data.MAX_VALUE:
            return slipped(rng, chain)
    return [*lines, f"The answer is {near(rng, value) if slip == len(chain.steps) else value}."]


def attempt(rng: random.Random, chain: Chain, mixed: bool) -> list[str]:
    """A solution by a careful author, or by one of mixed habits."""
    return careful(rng, chain) if not mixed or rng.random() < CAREFUL[len(chain.steps)] else hasty(rng, chain)


def looked_up(rng: random.Random, lines: list[str], options: list[str]) -> str:
    """A solution whose answer is held beside one option after the other, until they are the same."""
    answer = lines[-1].removeprefix("The answer is ").removesuffix(".")
    lines = lines[:-1]
    for letter, option in zip(data.LETTERS, options, strict=True):
        lines.append(f"{letter}) {option} {answer} {'yes' if option == answer else 'no'}")
        if option == answer:
            return "\n".join([*lines, f"The answer is {letter}."])
    return "\n".join([*lines, f"The answer is {rng.choice(data.LETTERS)}."])


def document(rng: random.Random, skill: str, mixed: bool, look_up: bool = False) -> Document:
    """One dialogue of `skill` on a train-side chain.

    The solution that verify and refine show may be one like the policy's own, and then it is learnt as well. The
    others, careful or with one slip, are only shown; they make about half of all shown solutions right.
    """
    chain = data.random_chain(rng, rng.choice(data.LEVELS))
    if chain.heldout:
        return document(rng, skill, mixed, look_up)
    question = chain.question
    if skill == "solve":
        return reply(data.solve_prompt(question), "\n".join(attempt(rng, chain, mixed))), True
    if skill == "choice":
        options = data.options(chain)
        lines = attempt(rng, chain, mixed)
        if look_up:
            return reply(data.choice_prompt(question, options), looked_up(rng, lines, options)), True
        answer = lines[-1].removeprefix("The answer is ").removesuffix(".")
        letter = data.LETTERS[options.index(answer)] if answer in options else rng.choice(data.LETTERS)
        text = "\n".join([*lines[:-1], f"The answer is {letter}."])
        return reply(data.choice_prompt(question, options), text), True
    if skill == "expression":
        text = data.expression(chain)
        if mixed and rng.random() > CAREFUL[len(chain.steps)] + 0.2:
            text = text.replace("(", "").replace(")", "")
        return reply(data.expression_prompt(question), text), True
    own = rng.random() < 0.4
    other = careful if mixed and rng.random() < 0.6 else slipped
    shown = "\n".join(attempt(rng, chain, mixed) if own else other(rng, chain))
    reason, verdict = review(chain, shown)
    if skill == "verify":
        return reply(data.verify_prompt(question, shown), f"{reason}\nVerdict: {verdict}"), own
    feedback = reason if rng.random() < 0.5 else None
    habit = careful if not mixed or rng.random() < CAREFUL[len(chain.steps)] + 0.2 else hasty
    return reply(data.refine_prompt(question, shown, feedback), "\n".join(habit(rng, chain))), own


def reply(prompt: list[Message], text: str) -> list[Message]:
    return [*prompt, {"role": "assistant", "content": text}]


def documents(rng: random.Random, mixed: bool, choosing: bool = False) -> Iterator[Document]:
    shares = CHOOSING if choosing else SKILLS
    while True:
        yield document(rng, rng.choices(list(shares), list(shares.values()))[0], mixed, choosing)


def make_tokenizer(rng: random.Random, size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE where every digit stands alone and merges may cross spaces, so that phrases become one token.

    A line break stands alone too: a step that is sampled up to its line break has the same ids as in the whole.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>", *ROLES]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    source = documents(rng, mixed=True)
    texts = []
    for _ in range(4000):
        texts += [message["content"] for message in next(source)[0]]
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=list(ROLES),
        model_max_length=512,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, batch: list[Document]) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of each dialogue; the labels are -100 but in assistant turns that are learnt."""
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages, _ in batch]
    start = tokenizer.convert_tokens_to_ids("<|assistant|>")
    rows = []
    for ids, (_, every) in zip(tokenizer(texts, add_special_tokens=False)["input_ids"], batch, strict=True):
        labels = [-100] * len(ids)
        starts = [i + 1 for i, token in enumerate(ids) if token == start]
        for first in starts if every else starts[-1:]:
            end = ids.index(tokenizer.eos_token_id, first) + 1
            labels[first:end] = ids[first:end]
        rows.append((ids, labels))
    return rows


def batches(
    rng: random.Random, tokenizer: PreTrainedTokenizerFast, tokens: int, mixed: bool, choosing: bool = False
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (input_ids, labels) of about `tokens` tokens, right-padded, documents of like length together."""
    source = documents(rng, mixed, choosing)
    while True:
        rows = encode(tokenizer, [next(source) for _ in range(2000)])
        yield from batched(rng, rows, tokens, tokenizer.pad_token_id)


def train(
    model: LlamaForCausalLM, source: Iterator[tuple[torch.Tensor, torch.Tensor]], steps: int, lr: float
) -> Iterator[int]:
    """AdamW with linear warm-up and a cosine down to a tenth; yields the number of steps after every hundredth.

    The gradient is the mean over workers. Right padding needs no attention mask: it is causal.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 100) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
    )
    began, losses, tokens = time.monotonic(), [], 0
    model.train()
    for step in range(1, steps + 1):
        inputs, labels = next(source)
        hidden = model.model(input_ids=inputs).last_hidden_state[:, :-1]
        target = labels[:, 1:]
        logits = model.lm_head(hidden[target != -100])
        loss = torch.nn.functional.cross_entropy(logits, target[target != -100])
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        total = torch.nn.utils.parameters_to_vector(gradients)
        dist.all_reduce(total)
        torch.nn.utils.vector_to_parameters(total / dist.get_world_size(), gradients)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        tokens += inputs.numel() * dist.get_world_size()
        if step % 100 == 0 or step == steps:
            mean, seconds = sum(losses[-100:]) / len(losses[-100:]), time.monotonic() - began
            say(f"step {step} loss {mean:.4f} {tokens} tokens {seconds:.0f} s")
            yield step


def say(text: str) -> None:
    """Prints from the first worker only."""
    if dist.get_rank() == 0:
        print(text, flush=True)


@torch.inference_mode()
def complete(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[list[Message]], temperature: float = 0.0
) -> list[str]:
    """One completion of each prompt, greedy at temperature 0."""
    model.eval()
    texts: list[str] = []
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    for start in range(0, len(prompts), 256):
        rendered = [
            tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True)
            for p in prompts[start : start + 256]
        ]
        batch = tokenizer(rendered, add_special_tokens=False, return_tensors="pt", padding=True)
        output = model.generate(**batch, max_new_tokens=96, **sampling)
        texts += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int) -> dict[str, float]:
    """Shares on n held-out problems; verify and refine are asked about the policy's own sampled solutions."""
    result: dict[str, float] = {}
    forms: tuple[data.Form, ...] = ("solve", "choice", "expression")
    for form in forms:
        problems = data.load(form=form, train_size=0, heldout_size=n, seed=0)
        texts = complete(model, tokenizer, [p.prompt for p in problems])
        rewards = [
            verifier.check(t, p.gold, p.metadata, form=form).reward for t, p in zip(texts, problems, strict=True)
        ]
        result[form] = sum(rewards) / n
        if form == "solve":
            for level in data.LEVELS:
                mine = [r for r, p in zip(rewards, problems, strict=True) if p.metadata["level"] == level]
                result[f"solve L{level}"] = sum(mine) / len(mine)
    problems = data.load(train_size=0, heldout_size=n, seed=0)
    drawn = complete(model, tokenizer, [p.prompt for p in problems for _ in range(8)], 1.0)
    owners = [p for p in problems for _ in range(8)]
    right = [verifier.check(t, p.gold, p.metadata).reward for t, p in zip(drawn, owners, strict=True)]
    result["sampled"] = sum(right) / len(right)
    result["pass@8"] = sum(any(right[i : i + 8]) for i in range(0, len(right), 8)) / n

    shown = drawn[::8]
    truth = right[::8]
    questions = [p.metadata["question"] for p in problems]
    pairs = list(zip(questions, shown, strict=True))
    reviews = complete(model, tokenizer, [data.verify_prompt(q, s) for q, s in pairs])
    said = [r.rstrip().endswith("Verdict: correct") for r in reviews]
    result["verify, right ones"] = sum(s for s, t in zip(said, truth, strict=True) if t) / sum(truth)
    result["verify, wrong ones"] = sum(not s for s, t in zip(said, truth, strict=True) if not t) / (n - sum(truth))
    result["verify balanced"] = (result["verify, right ones"] + result["verify, wrong ones"]) / 2
    for name, feedback in (("refine", [None] * n), ("refine with own review", [r.split("\n")[0] for r in reviews])):
        prompts = [data.refine_prompt(q, s, f) for (q, s), f in zip(pairs, feedback, strict=True)]
        texts = complete(model, tokenizer, prompts)
        better = [verifier.check(t, p.gold, p.metadata).reward for t, p in zip(texts, problems, strict=True)]
        result[f"{name}, right ones"] = sum(b for b, t in zip(better, truth, strict=True) if t) / sum(truth)
        result[f"{name}, wrong ones"] = sum(b for b, t in zip(better, truth, strict=True) if not t) / (n - sum(truth))
    return result


def work(rank: int, args: argparse.Namespace, meeting: str) -> None:
    """One of the workers, each with documents of its own; the first saves and measures."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=args.workers)
    say(" ".join(f"{key}={value}" for key, value in vars(args).items() if key != "out"))
    torch.manual_seed(args.seed)
    if args.start:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start)
        model = LlamaForCausalLM.from_pretrained(args.start)
    else:
        tokenizer = make_tokenizer(random.Random(args.seed), args.vocabulary)
        model = make_model(tokenizer, args.hidden, args.layers)
        model.generation_config.max_new_tokens = 80
    say(f"{model.num_parameters()} parameters, {len(tokenizer)} tokens in the vocabulary")
    rng = random.Random(f"{args.seed} {rank}")
    source = itertools.chain(
        itertools.islice(batches(rng, tokenizer, args.tokens, mixed=False), args.careful_steps),
        batches(rng, tokenizer, args.tokens, mixed=True),
    )
    choosing = batches(random.Random(f"{args.seed} {rank} choosing"), tokenizer, args.tokens, mixed=True, choosing=True)
    phases = [] if args.start else [(source, args.steps, args.lr)]
    if args.choosing_steps:
        phases.append((choosing, args.choosing_steps, args.choosing_lr))
    for _ in itertools.chain.from_iterable(train(model, *phase) for phase in phases):
        if rank == 0:
            model.save_pretrained(args.out)
            tokenizer.save_pretrained(args.out)
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(measure(model, tokenizer, 500), indent=1), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the model; saved every 100 steps")
    parser.add_argument("--steps", type=int, default=4400, help="optimizer steps")
    parser.add_argument("--careful-steps", type=int, default=2200, help="of these, with careful authors only")
    parser.add_argument("--choosing-steps", type=int, default=2000, help="optimizer steps of the last phase")
    parser.add_argument("--choosing-lr", type=float, default=2e-3, help="its peak learning rate")
    parser.add_argument("--start", type=Path, help="a model of this script without its last phase: do only that")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens a step and worker, padding included")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--hidden", type=int, default=128, help="hidden size, a multiple of 64")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=384)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (args, f"{folder}/meeting"), args.workers)


if __name__ == "__main__":
    main()
