"""Turns prompts and dialogue turns into token ids by a model's chat template. All engines use it.

A dialogue continues id for id: sampled ids stay unchanged, and `turn` gives only the ids that the template puts between
two answers. A template that removes parts of earlier answers (mostly reasoning) is not followed in that.
"""

from __future__ import annotations

from typing import Any, Protocol

from selfimprove.types import Message

_REPLY = "[an earlier reply]"  # a placeholder, to find what the template puts after an assistant's turn


def messages_of(prompt: str | list[Message]) -> list[Message]:
    """A prompt as chat messages: a text is what a user says."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def render(tokenizer: Any, prompt: str | list[Message]) -> list[int]:
    """Token ids of a prompt, with one BOS if the tokenizer or the template adds any.

    With a chat template, a text is one user message, and an assistant's message at the end is left open, to be
    continued. Without a template, messages are joined by blank lines.
    """
    if tokenizer.chat_template:
        messages = messages_of(prompt)
        resume = messages[-1]["role"] == "assistant"
        ids: list[int] = tokenizer.apply_chat_template(
            messages, add_generation_prompt=not resume, continue_final_message=resume, return_dict=False
        )
        return ids
    text = prompt if isinstance(prompt, str) else "\n\n".join(m["content"] for m in prompt)
    bos, eos = tokenizer.bos_token, tokenizer.eos_token_id
    ids = tokenizer(text, add_special_tokens=not (bos and text.startswith(bos))).input_ids
    if ids and ids[-1] == eos and not text.endswith(tokenizer.eos_token):
        ids = ids[:-1]  # some tokenizers end every text, but a prompt is to be continued
    return ids


def turn(tokenizer: Any, text: str, ended: bool) -> list[int]:
    """The ids that close an assistant's turn, add `text` as the user's turn, and open the assistant's next turn.

    `ended`: the assistant's turn already has its end token. Without a chat template, `text` follows a blank line.
    """
    if not tokenizer.chat_template:
        return encode(tokenizer, f"\n\n{text}")
    chat = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": _REPLY},
        {"role": "user", "content": text},
    ]
    whole: str = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    between = whole[whole.index(_REPLY) + len(_REPLY) :]
    ids = encode(tokenizer, between)
    return ids[1:] if ended and ids[0] in tokenizer.added_tokens_decoder else ids


def encode(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text inside a turn: no BOS, no end token, no added blank.

    Some tokenizers put a blank before the first word. So the text is tokenized after an extra token, which is removed.
    """
    anchor = tokenizer.eos_token or tokenizer.bos_token or "\n"
    before: list[int] = tokenizer(anchor, add_special_tokens=False).input_ids
    ids: list[int] = tokenizer(anchor + text, add_special_tokens=False).input_ids
    return ids[len(before) :] if ids[: len(before)] == before else ids


def inert(tokenizer: Any, text: str) -> list[int]:
    """As `encode`, but a special token that is spelt out in the text, as a program may print it, is read as letters."""
    added = tokenizer.added_tokens_decoder.values()
    special = [token.content for token in added if token.special and len(token.content) > 1]
    if not any(token in text for token in special):
        return encode(tokenizer, text)
    for token in special:
        text = text.replace(token, f"{token[0]}\0{token[1:]}")
    return [token for part in text.split("\0") if part for token in encode(tokenizer, part)]


def text(tokenizer: Any, ids: list[int]) -> str:
    """The text of a completion, without special tokens and with all its blanks."""
    decoded: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return decoded


class Text(Protocol):
    """Turns text into token ids without a model: for filters that put their own words between samples."""

    def render(self, prompt: str | list[Message]) -> list[int]: ...

    def turn(self, text: str, ended: bool) -> list[int]: ...

    def encode(self, text: str) -> list[int]: ...

    @property
    def end(self) -> int:
        """The id that ends an assistant's turn."""
        ...


class Speaker:
    """The text methods of selfimprove.policy.Engine, for engines with a `tokenizer`."""

    tokenizer: Any

    def render(self, prompt: str | list[Message]) -> list[int]:
        """Token ids of a prompt, by this module's `render`."""
        return render(self.tokenizer, prompt)

    def turn(self, text: str, ended: bool) -> list[int]:
        return turn(self.tokenizer, text, ended)

    def encode(self, text: str) -> list[int]:
        """The ids of a text inside an assistant's running turn. No special token is read in it."""
        return inert(self.tokenizer, text)

    @property
    def end(self) -> int:
        eos: int = self.tokenizer.eos_token_id
        return eos


class Tokenizer(Speaker):
    """The text methods of a policy, from its tokenizer alone."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
