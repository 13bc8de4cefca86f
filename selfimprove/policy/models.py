"""Finds and loads models and adapters. Imports torch and transformers only when loading."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfimprove.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGED = Path(__file__).resolve().parent.parent / "models"  # holds the tiny model


def cache_root() -> Path:
    """The folder of downloads and files built once: SELFIMPROVE_CACHE, or ~/.cache/selfimprove."""
    return Path(os.environ.get("SELFIMPROVE_CACHE") or Path.home() / ".cache" / "selfimprove")


def resolve(name: str, path: str) -> str:
    """The folder or hub id to load for the model `name` of conf/model/, whose config has `path`.

    `package` means the folder `name` in this package. `made` means a folder of the cache; `fit.require_there` puts the
    model there that `studies/made/<name>.py` makes. An existing folder is used as it is. A hub id is looked up in the
    cache first (`models/<hub id>`, where scripts/fetch.py puts it), else left to the hub. Raises ConfigError for a
    model that the package does not make.
    """
    if path == "package":
        return str(PACKAGED / name)
    if path == "made":
        script = PACKAGED.parent / "studies" / "made" / f"{name}.py"
        if not script.is_file():
            raise ConfigError(f"model.path=made: the package makes no model {name}", "model.path")
        mark = hashlib.blake2b(script.read_bytes(), digest_size=4).hexdigest()  # a changed script makes another model
        return str(cache_root() / "made" / f"{name}-{mark}")
    for folder in (Path(path).expanduser(), cache_root() / "models" / path):
        if (folder / "config.json").is_file() or is_adapter(folder):
            return str(folder.absolute())
    if Path(path).expanduser().is_dir():  # loading reports what it lacks
        return str(Path(path).expanduser().absolute())
    return path


def local(path: str) -> Path | None:
    """The folder with the files of a result of `resolve`: itself, or the hub's snapshot in this machine's cache.

    None if they are not on this machine. The hub is not asked.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in ("config.json", "adapter_config.json"):
        try:
            file = try_to_load_from_cache(path, name)
        except HFValidationError:  # not a hub id but a folder on another machine
            return None
        if isinstance(file, str):
            return Path(file).parent
    return None


def quiet_hub() -> None:
    """Silence the hub client's message for each retry. One line in the end reports the outcome."""
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def is_adapter(path: str | Path) -> bool:
    """Whether `path` is a PEFT adapter folder."""
    return (Path(path) / "adapter_config.json").is_file()


def adapter_base(path: str | Path) -> str:
    """The base model that an adapter folder names. Raises ConfigError if it names none."""
    recorded = json.loads((Path(path) / "adapter_config.json").read_text()).get("base_model_name_or_path")
    if not recorded:
        raise ConfigError(
            f"{path}/adapter_config.json: base_model_name_or_path is empty; name the adapter's base model"
        )
    return str(recorded)


def load_model(
    path: str,
    base: str | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A causal language model in eval mode, with sdpa attention. An adapter is merged into fresh base weights.

    `base` is the adapter's base model; None: the one the adapter names. dtype "auto" is bfloat16 on an accelerator and
    float32 on a CPU. Raises ConfigError if the model is not found or lacks weights, or the adapter has another base.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    quiet_hub()
    device = pick_device(device)
    if dtype == "auto":
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
    elif isinstance(dtype, str):
        dtype = getattr(torch, dtype)
    adapter = path if is_adapter(_present(path)) else None
    if adapter:
        path = check_base(adapter, base)
    try:
        model_and_info: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation="sdpa",
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except OSError as error:
        raise not_found(path, error) from error
    except ValueError as error:
        if "trust_remote_code" in str(error):
            reason = "comes with its own code, which runs only with model.trust_remote_code=true"
            raise ConfigError(f"model {path!r} {reason}") from None
        raise
    model, info = model_and_info
    if missing := sorted(info["missing_keys"]):  # transformers would initialise them at random
        others = f" and of {len(missing) - 1} more" if missing[1:] else ""
        raise ConfigError(f"model {path!r} is not whole: its files lack the weights of {missing[0]}{others}")
    if adapter:
        from peft import PeftModel

        # Left to itself, PEFT reads adapters onto the first GPU, wherever the model is.
        model = PeftModel.from_pretrained(model, adapter, torch_device="cpu").merge_and_unload()
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def merge(adapter: str, base: str, folder: str, *, dtype: str, trust_remote_code: bool = False) -> None:
    """Save in `folder` the whole weights that an adapter makes of its base, with the adapter's tokenizer. Raises
    ConfigError as `load_model` does."""
    how: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    load_model(adapter, base, dtype=dtype, device="cpu", **how).save_pretrained(folder)
    load_tokenizer(adapter, **how).save_pretrained(folder)


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id, or of an adapter's base if its folder has none.

    Raises ConfigError if there is none.
    """
    if is_adapter(_present(path)) and not (Path(path) / "tokenizer_config.json").is_file():
        path = _present(adapter_base(path))
    from transformers import AutoTokenizer

    quiet_hub()
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # several libraries raise here, each its own types; the cause is chained
        raise not_found(path, error, "tokenizer") from error
    return tokenizer


def pick_device(device: str) -> str:
    """`device`, where "auto" is the first accelerator, or else the CPU."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def require_device(device: str) -> None:
    """Raises ConfigError if `device` is a GPU and PyTorch finds none."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            reason = "PyTorch finds no GPU on this machine; use hardware=cpu"
            raise ConfigError(f"hardware.device=cuda: {reason}", "hardware.device")


def not_found(path: str, error: Exception, part: str = "") -> ConfigError:
    """The error for a model that is not found, or for a `part` of an existing folder that cannot be read."""
    reason = str(error).strip().split("\n")[0]
    if part and Path(path).is_dir():
        return ConfigError(f"model.path: the {part} in {path} cannot be read ({reason:.300})", "model.path")
    return ConfigError(
        f"model {path!r} cannot be loaded: no such folder, nothing in {cache_root() / 'models'}, and the Hugging Face "
        f"hub did not provide it ({reason}); set model.path to a folder with config.json and weights, or go online once"
    )


def _present(path: str) -> str:
    """`path`. Raises ConfigError if it can only be a folder and there is none, without minutes of asking the hub."""
    if (path.startswith((".", "~", "/")) or path.count("/") > 1) and not Path(path).is_dir():
        raise not_found(path, FileNotFoundError("it is no hub id either"))
    return path


def check_base(adapter: str, base: str | None) -> str:
    """The base model to load for `adapter`.

    Raises ConfigError if the two are different folders. Two names may mean one model.
    """
    recorded = adapter_base(adapter)
    if base is None:
        return recorded
    if Path(recorded).is_dir() and Path(base).is_dir() and not os.path.samefile(recorded, base):
        raise ConfigError(f"adapter {adapter} was trained on {recorded}, but the model in use is {base}")
    return base
