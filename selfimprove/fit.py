"""Whether a model is complete, and whether its window holds the problems.

This is checked before a run begins, from the model's configuration, its tokenizer and the headers of its files.
"""

from __future__ import annotations

import importlib
import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfimprove.errors import ConfigError
from selfimprove.policy import chat
from selfimprove.policy.models import adapter_base, is_adapter, load_tokenizer, not_found, resolve
from selfimprove.schema import Config
from selfimprove.types import Problem

_log = logging.getLogger("selfimprove")


@dataclass(frozen=True)
class Reader:
    """What is known of a model without its weights."""

    name: str  # as messages have it
    tokenizer: Any
    window: int  # tokens of prompt and completion together
    ends: bool  # it has a token that ends an answer


def open_reader(config: Config, trains: bool) -> Reader | None:
    """The configured model's reader. None if the policy is not a language model. `trains`: its weights are needed here.

    Raises ConfigError if a file of the model is missing or cannot be read.
    """
    if not {"weights", "logprobs"} <= set(config.engine["gives"]):
        return None
    model = config.model
    path = require_there(config, weights=trains or config.engine["name"] != "openai")
    tokenizer = load_tokenizer(path, trust_remote_code=model.trust_remote_code)
    own = _own_config(adapter_base(path) if is_adapter(path) else path, model.trust_remote_code)
    text = own.get_text_config(decoder=True)
    window = min(model.max_length, getattr(text, "max_position_embeddings", None) or model.max_length)
    name = f"{model.name} ({model.path})" if model.path not in ("package", "made") else model.name
    return Reader(name, tokenizer, window, ends=tokenizer.eos_token_id is not None or text.eos_token_id is not None)


def require_there(config: Config, weights: bool = False) -> str:
    """The folder or hub id that the configured model is loaded from. The models of other roles are checked too.

    A model that the package makes is trained here, if the cache lacks it. Raises ConfigError if a folder on this
    machine lacks a file.
    """
    others = [role.model for role in config.method.roles.values() if role.model and role.kind in ("causal", "sequence")]
    for model in (*others, config.model):
        path = resolve(model.name, model.path)
        if model.path == "made" and not Path(path).exists():
            _log.warning("model=%s is trained now, for the first time; this takes about half a minute", model.name)
            importlib.import_module(f"selfimprove.studies.made.{model.name}").make(Path(path))
        if Path(path).is_dir() and "logprobs" in config.engine["gives"]:
            require_files(Path(path), weights)
    return path


def _own_config(path: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # of several libraries' types; the cause is chained
        raise not_found(path, error, "config.json") from error


def require_files(folder: Path, weights: bool = True) -> None:
    """Raises ConfigError that names the missing file of a model's folder.

    Without `weights`, only configuration and tokenizer are needed.
    """
    if is_adapter(folder):
        if weights:
            _require_weights(folder, ("adapter_model.safetensors", "adapter_model.bin"))
        base = Path(adapter_base(folder)).expanduser()
        if base.is_dir():
            require_files(base, weights)
        return
    found = _read_json(folder / "config.json")
    if weights:
        _require_weights(folder, ("model.safetensors", "pytorch_model.bin"))
        _require_shape(folder, found)
    if not any(file for words in ("*token*", "vocab*", "*.model", "merges*") for file in folder.glob(words)):
        raise ConfigError(f"model.path: {folder} has no tokenizer (tokenizer.json)", "model.path")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"model.path: {file.parent} has no {file.name}", "model.path") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"model.path: {file} cannot be read ({reason})", "model.path") from None
    if not isinstance(found, dict):
        raise ConfigError(f"model.path: {file} cannot be read (it is not a JSON object)", "model.path")
    return found


def _require_weights(folder: Path, names: Sequence[str]) -> None:
    """Raises ConfigError unless the folder has one of the files `names`, or all shards of one, each whole."""
    for name in names:
        index = folder / f"{name}.index.json"
        if (folder / name).exists() or index.exists():
            shards = [name]
            if not (folder / name).exists():
                shards = sorted(set(map(str, dict(_read_json(index).get("weight_map") or {}).values())))
            for shard in shards or [name]:
                _require_whole(folder / shard)
            return
    raise ConfigError(f"model.path: {folder} has no weights ({' or '.join(names)})", "model.path")


def _require_whole(file: Path) -> None:
    reason = ""
    if not file.is_file():
        reason = "it is not there"
    elif file.suffix == ".safetensors":
        reason = "" if isinstance(shapes := _shapes(file), dict) and shapes else str(shapes or "it holds no tensor")
    elif not file.stat().st_size or (file.read_bytes()[:2] == b"PK" and not zipfile.is_zipfile(file)):
        reason = "it is cut short"
    if reason:
        raise ConfigError(f"model.path: the weights {file} cannot be read ({reason})", "model.path")


def _shapes(file: Path) -> dict[str, list[int]] | str:
    """Tensor name -> shape, from the file's header. A text if it cannot be read: the reason."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            return {name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        return " ".join(str(error).split())


def _require_shape(folder: Path, config: dict[str, Any]) -> None:
    """Raises ConfigError if the size of the embedding differs from config.json: the weights are another model's."""
    file = folder / "model.safetensors"
    wanted = [config.get("vocab_size"), config.get("hidden_size")]
    shapes = _shapes(file) if file.exists() and None not in wanted and "quantization_config" not in config else {}
    for name, shape in shapes.items() if isinstance(shapes, dict) else ():
        if name.endswith("embed_tokens.weight") and shape != wanted:
            said = f"{file} holds {name} of {shape}, and config.json says {wanted}: they are of two models"
            raise ConfigError(f"model.path: {said}", "model.path")


def unfit(reader: Reader, problems: Sequence[Problem], max_tokens: int) -> tuple[dict[str, str], int]:
    """Problems whose prompt leaves no room for an answer, with the reason, and how many prompts leave less than
    `max_tokens`.

    Raises ConfigError if the chat template refuses the roles of a prompt's messages. An ASCII prompt has at most as
    many tokens as it has letters, plus those of the template. So most prompts need not be tokenized.
    """
    found: dict[str, str] = {}
    frames: dict[tuple[str, ...], int] = {}
    tight = 0
    for problem in problems:
        prompt = problem.prompt
        roles = ("user",) if isinstance(prompt, str) else tuple(message["role"] for message in prompt)
        if roles not in frames:
            frames[roles] = _tokens(reader, problem, [{"role": role, "content": "x"} for role in roles])
        texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        bound = frames[roles] + sum(len(text) + 2 for text in texts)
        if bound + max_tokens <= reader.window and all(map(str.isascii, texts)):
            continue
        tokens = _tokens(reader, problem, prompt)
        if tokens >= reader.window:
            found[problem.id] = f"its prompt has {tokens} tokens, and the window of {reader.name} is {reader.window}"
        elif tokens + max_tokens > reader.window:
            tight += 1
    return found, tight


def _tokens(reader: Reader, problem: Problem, prompt: Any) -> int:
    from jinja2 import TemplateError

    try:
        return len(chat.render(reader.tokenizer, prompt))
    except (TemplateError, ValueError, TypeError) as error:
        roles = [message["role"] for message in prompt]
        what = "a system message" if roles[0] == "system" else f"messages of the roles {', '.join(roles)}"
        more = "; set dataset.system=null" if roles[0] == "system" else ""
        key = "dataset.system" if more else "dataset.prompt_field"
        raise ConfigError(
            f"{key}: the chat template of model {reader.name} refuses {what}, as problem {problem.id} has "
            f"({' '.join(str(error).split())}){more}",
            key,
        ) from error
