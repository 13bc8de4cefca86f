"""Process reward models: whether each step of a solution is right, read at the step's last token.

The model is a token classifier with two outputs, wrong and right, as `verify/steps.py` reads it (`kind:
token_classifier`). z_i are its outputs at the end of step i, and b_i in {0, 1} is that step's label (Lightman et al.
2023, arXiv 2305.20050, section 2.6):

    L = - sum over steps  log softmax(z_i)[b_i]  /  number of steps

It trains a role of `kind: token`. The first phase starts from a language model and replaces its head. A later phase
goes on from the last model. `filter/labels.py` makes the rows. TRL has no PRMTrainer any more (as of 1.16), so the loss
is our own. Full fine-tuning and LoRA, in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from selfimprove.errors import ConfigError
from selfimprove.train import Optimization, TrainContext
from selfimprove.train import reward as reward_models
from selfimprove.types import Example

if TYPE_CHECKING:
    from selfimprove.schema import Config, Stage

ENDS, LABELS = "step_ends", "step_labels"  # in a row's metadata: places in its completion, and 1 or 0 for each
IGNORED = -100


def require_stage(config: Config, stage: Stage, where: str) -> None:
    """Raises ConfigError unless the stage's learner is a reward model of tokens, trained by one process."""
    reward_models.require_stage(config, stage, where, "token")


def step_row(example: Example) -> dict[str, Any]:
    """Token ids of a row, and for each token the label of the step that ends there, or -100 if none does.

    Raises ValueError for a row without such labels, and ConfigError for a mask, a weight or a pair.
    """
    if example.weight != 1 or example.mask is not None or example.rejected_ids:
        raise ConfigError(
            f"a row of problem {example.problem_id} has a weight or a mask, or is a pair: use a filter of "
            "labelled steps"
        )
    ends, labels = example.metadata.get(ENDS), example.metadata.get(LABELS)
    places = range(len(example.completion_ids))
    if (
        not ends
        or not labels
        or len(ends) != len(labels)
        or not all(end in places and label in (0, 1) for end, label in zip(ends, labels, strict=True))
    ):
        raise ValueError(f"a row of problem {example.problem_id} has no steps with a label of 0 or 1 each")
    ids = [*example.prompt_ids, *example.completion_ids]
    beside = [IGNORED] * len(ids)
    for end, label in zip(ends, labels, strict=True):
        beside[len(example.prompt_ids) + end] = int(label)
    return {"chosen_ids": ids, "rejected_ids": ids, "labels": beside}  # TRL asks for two sides; one is read


def steps(rows: Sequence[Example], context: TrainContext, **options: Unpack[Optimization]) -> dict[str, float]:
    """Train a process reward model on rows with labelled steps, and save it in `context.out`.

    A step's loss is the mean over the labelled steps of its rows. Returns `loss` (mean over optimizer steps), `steps`,
    `seconds`, `tokens` (read), and `pair_accuracy`, the share of labelled steps whose probability is on the label's
    side of 1/2. Raises ValueError for empty rows, ConfigError and RunError as `selfimprove.train` does.
    """
    table = [step_row(example) for example in rows]
    load = partial(reward_models.load, kind="TokenClassification", outputs=2, task="TOKEN_CLS")
    return reward_models.fit([example.tokens for example in rows], table, context, options, _trainer, load)


def _trainer() -> tuple[Any, dict[str, Any]]:
    from selfimprove.train.reward_trainer import StepTrainer

    return StepTrainer, {}
