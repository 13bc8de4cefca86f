"""`selfimprove push`: a run's policy and training answers on the Hugging Face Hub, or in a folder."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from selfimprove.commands.common import require_out
from selfimprove.printable import printable


def add(commands: Any, allow: dict[str, Any]) -> None:
    push = commands.add_parser("push", help="publish a run on the Hugging Face Hub: policy, card, training answers")
    push.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    push.add_argument("repo", metavar="USER/NAME")
    push.add_argument("--dry-run", type=Path, metavar="DIR", help="write it to a folder and send nothing")
    push.add_argument("--license", metavar="ID", help="of the base model, where its files do not say: e.g. apache-2.0")
    push.add_argument(
        "--control", type=Path, action="append", default=[], metavar="RUN_DIR", help="a control run, for the card"
    )
    push.add_argument("--private", action="store_true", help="make the repositories private")
    push.add_argument("--allow", **allow)
    push.set_defaults(do=push_run, restricted=True)


def push_run(chosen: argparse.Namespace) -> int:
    from selfimprove.hub import folders, upload

    if chosen.dry_run:
        require_out(chosen.dry_run)
        folders.write(chosen.run_dir, chosen.repo, chosen.dry_run, chosen.license, chosen.control)
        print(printable(chosen.dry_run))
        return 0
    upload.require(chosen.repo)
    with tempfile.TemporaryDirectory(prefix="selfimprove-push-") as scratch:
        folders.write(chosen.run_dir, chosen.repo, Path(scratch), chosen.license, chosen.control)
        for address in upload.upload(Path(scratch), chosen.repo, chosen.private):
            print(printable(address))
    return 0
