"""The reward model against transformers called by hand, one row at a time."""

import asyncio
import itertools
import math

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaForCausalLM, LlamaForSequenceClassification

from selfimprove.errors import ConfigError
from selfimprove.verify import reward_model


def save(model, tokenizer, folder, template=True):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not template:
        (folder / "chat_template.jinja").unlink()
    return str(folder)


def judge(groups, context_of, **options):
    async def all_of_them():
        found = await asyncio.gather(*(reward_model.verify(p, ts, context_of(p), **options) for p, ts in groups))
        return list(itertools.chain.from_iterable(found))

    return asyncio.run(all_of_them())


def make(kind, config, tokenizer):
    torch.manual_seed(0)
    if kind == "encoder":
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        return BertForSequenceClassification(
            BertConfig(vocab_size=len(tokenizer), num_labels=1, initializer_range=0.5, **sizes)
        ).eval()
    padding = tokenizer.pad_token_id if kind == "padded" else tokenizer.eos_token_id if kind == "end" else None
    return LlamaForSequenceClassification(config(num_labels=1, pad_token_id=padding)).eval()


@pytest.mark.parametrize("kind", ["padded", "end", "none", "encoder"])
@pytest.mark.parametrize("template", [True, False])
def test_scores_equal_the_model_called_by_hand_whatever_the_batch(
    kind, template, tokenizer, small, opening, contexts, attempts, tmp_path
):
    model = make(kind, small, tokenizer)
    path = save(model, tokenizer, tmp_path / "model", template)
    groups = attempts()
    expected = []
    for problem, trajectories in groups:
        for trajectory in trajectories:
            if template:
                chat = [*problem.prompt, {"role": "assistant", "content": trajectory.text}]
                ids = tokenizer.apply_chat_template(chat, return_dict=False)
            else:
                ids = tokenizer(problem.prompt[0]["content"] + trajectory.text).input_ids
            with torch.no_grad():
                expected.append(model(torch.tensor([ids])).logits.item())
    assert torch.tensor(expected).std() > 0.01
    for max_batch in (1, 7, 64):
        scorer = reward_model.resource(opening(max_batch), model=path)
        outcomes = judge(groups, contexts(scorer), model=path, reward="raw", threshold=0.0)
        scorer.close()
        assert [o.reward for o in outcomes] == pytest.approx(expected, abs=1e-5)
        assert [o.status == "correct" for o in outcomes] == [score >= 0 for score in expected]


def test_one_forward_serves_many_problems(tokenizer, small, opening, contexts, attempts, tmp_path):
    path = save(make("padded", small, tokenizer), tokenizer, tmp_path / "model")
    scorer = reward_model.resource(opening(18), model=path)
    sizes = []
    scorer.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    groups, context_of = attempts(12), contexts(scorer)
    outcomes = judge(groups, context_of, model=path)
    assert [rows for rows, _ in sizes] == [18, 18]
    assert sizes[0][1] > sizes[1][1]  # longest first
    assert all(0 < o.reward < 1 for o in outcomes)
    raw = judge(groups, context_of, model=path, reward="raw")
    assert [o.reward for o in outcomes] == pytest.approx([1 / (1 + math.exp(-o.reward)) for o in raw], abs=1e-6)
    meter = context_of(groups[0][0]).policy.meter
    assert meter.calls == 72
    assert meter.take()["scored"] > 72 * 10


def test_of_two_labels_the_second_is_good(tokenizer, small, opening, contexts, attempts, tmp_path):
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(small(num_labels=2)).eval()
    path = save(model, tokenizer, tmp_path / "model")
    groups = attempts(2)
    problem, (first, *_) = groups[0]
    ids = reward_model.tokens(tokenizer, problem, first.text)
    with torch.no_grad():
        expected = torch.softmax(model(torch.tensor([ids])).logits[0], -1)[1].item()
    outcomes = judge(groups, contexts(reward_model.resource(opening(), model=path)), model=path)
    assert outcomes[0].reward == pytest.approx(expected, abs=1e-6)


def test_an_answer_too_long_for_the_model_is_no_fault_of_the_answer(
    tokenizer, small, opening, contexts, attempts, tmp_path
):
    path = save(make("padded", small, tokenizer), tokenizer, tmp_path / "model")
    groups = attempts(2)
    groups[0][1][1].samples[0].text = "9" * 200
    outcomes = judge(groups, contexts(reward_model.resource(opening(), model=path)), model=path)
    assert [o.status == "error" for o in outcomes] == [False, True, False, False, False, False]
    assert "160" in outcomes[1].reason


def test_models_that_are_no_reward_model_are_refused(tokenizer, small, opening, tmp_path):
    base = save(LlamaForCausalLM(small()), tokenizer, tmp_path / "base")
    with pytest.raises(ConfigError, match=r"no trained SequenceClassification model, its weights lack score\.weight"):
        reward_model.resource(opening(), model=base)
    three = save(LlamaForSequenceClassification(small(num_labels=3)), tokenizer, tmp_path / "three")
    with pytest.raises(ConfigError, match="has 3 labels"):
        reward_model.resource(opening(), model=three)
    with pytest.raises(ConfigError, match="nowhere"):
        reward_model.resource(opening(), model=str(tmp_path / "nowhere"))


def test_what_the_model_raises_reaches_every_waiter(tokenizer, small, opening, contexts, attempts, tmp_path):
    path = save(make("padded", small, tokenizer), tokenizer, tmp_path / "model")
    scorer = reward_model.resource(opening(4), model=path)
    scorer.close()  # there is no model any more
    with pytest.raises((AttributeError, TypeError)):
        judge(attempts(3), contexts(scorer), model=path)
