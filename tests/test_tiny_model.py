import json
from importlib.resources import files

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfimprove.datasets import arithmetic as data
from selfimprove.verify.arithmetic import check

FOLDER = files("selfimprove") / "models" / "tiny"
DIALOGUE = [
    {"role": "system", "content": "Be exact."},
    {"role": "user", "content": "Start with 3. Add 4. What is the result?"},
    {"role": "assistant", "content": "3 + 4 = 7\nThe answer is 7."},
    {"role": "user", "content": "Improve this solution."},
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(FOLDER))


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(str(FOLDER)).eval()


def test_size(model, tokenizer):
    assert 1_000_000 <= model.num_parameters() <= 3_000_000
    assert model.config.head_dim == 64
    assert model.config.max_position_embeddings == 512
    assert model.config.vocab_size == len(tokenizer)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 9_000_000
    assert "auto_map" not in json.loads((FOLDER / "config.json").read_text())


@pytest.mark.parametrize(
    "text",
    [
        "7 + 5 = 12\nThe answer is 12.",
        "  spaces \t\r\n\n kept ",
        "naïve Ω ≤ 漢字 🙂👩‍👩‍👧",
        "\x00\u200b٣½",
        "((1 + 2) * 3) - 4",
        "",
    ],
)
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_digits_and_line_breaks_stand_alone(tokenizer):
    tokens = tokenizer.get_vocab()
    assert not [t for t in tokens if len(t) > 1 and any(c.isdigit() or c == "Ċ" for c in t)]
    ids = tokenizer("12\n\n345.", add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode([i]) for i in ids] == ["1", "2", "\n", "\n", "3", "4", "5", "."]


def test_four_step_solutions_are_short(tokenizer):
    problems = data.load(levels=[4], train_size=100, heldout_size=0, seed=0)
    texts = [data.solution(data.Chain.of(p.metadata)) for p in problems]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    assert sum(lengths) / len(lengths) < 40
    assert max(lengths) <= 45


def test_a_turn_extends_the_dialogue_before_it_id_for_id(tokenizer):
    def render(messages, **options):
        return tokenizer.apply_chat_template(messages, return_dict=False, **options)

    asked = render(DIALOGUE[:2], add_generation_prompt=True)
    answer = tokenizer(DIALOGUE[2]["content"], add_special_tokens=False)["input_ids"]
    answered = asked + answer + [tokenizer.eos_token_id]
    assert render(DIALOGUE[:3]) == answered
    assert render(DIALOGUE, add_generation_prompt=True)[: len(answered)] == answered
    assert asked.count(tokenizer.bos_token_id) == 1


def test_greedy_accuracy_leaves_room(model, tokenizer):
    problems = data.load(train_size=0, heldout_size=200, seed=0)
    texts = [tokenizer.apply_chat_template(p.prompt, tokenize=False, add_generation_prompt=True) for p in problems]
    batch = tokenizer(texts, add_special_tokens=False, return_tensors="pt", padding=True)
    with torch.inference_mode():
        output = model.generate(**batch, max_new_tokens=80, do_sample=False)
    completions = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    rewards = [check(t, p.gold, p.metadata).reward for t, p in zip(completions, problems, strict=True)]
    assert 0.30 <= sum(rewards) / len(rewards) <= 0.60
