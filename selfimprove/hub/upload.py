"""Sends the two folders of a published run to the hub, by the user's own login."""

from __future__ import annotations

import logging
from pathlib import Path

from selfimprove.errors import ConfigError, RunError
from selfimprove.hub.folders import DATA, MODEL

log = logging.getLogger("selfimprove")


def require(repo: str) -> None:
    """Raises ConfigError for a name that is none, and where nobody is logged in."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
        validate_repo_id(f"{repo}-trajectories")
    except HFValidationError as problem:
        raise ConfigError(f"push: {problem}") from None
    if not get_token():
        raise ConfigError(
            "push: nobody is logged in; `hf auth login`, or the variable HF_TOKEN; --dry-run DIR needs none"
        )


def upload(folder: Path, repo: str, private: bool) -> list[str]:
    """Make or update both repositories; their addresses. What was there before stays in their history.

    Raises RunError if the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api, addresses = HfApi(), []
    try:
        for name, kind, part in ((repo, "model", MODEL), (f"{repo}-trajectories", "dataset", DATA)):
            addresses.append(str(api.create_repo(name, repo_type=kind, private=private, exist_ok=True)))
            api.upload_folder(
                repo_id=name, repo_type=kind, folder_path=folder / part, commit_message="A run of selfimprove"
            )
    except (HfHubHTTPError, OSError) as problem:
        raise RunError(f"push: {' '.join(str(problem).split()):.300}") from None
    return addresses
