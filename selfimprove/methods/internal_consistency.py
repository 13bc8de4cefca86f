"""Self-Feedback: a policy learns from its agreement with itself, without a gold answer.

Internal Consistency and Self-Feedback in Large Language Models: A Survey (Liang et al. 2024, arXiv 2407.14507) divides
methods into two modules, which are slots of the runner here. SelfEvaluate captures a consistency signal. SelfUpdate
uses it to change the model or its answer. This method is the plainest instance of both.

    generate   y_1..y_n ~ pi_v(. | x) at temperature T
    verify     SelfEvaluate (verify/consensus.py): f_i = share of y_1..y_n whose answer is that of y_i
    filter     SelfUpdate: keep y_i of the most common answer, where f_i is at least `agreement`
    train      pi_{v+1} = argmax_pi  sum log pi(y_i | x) over the kept

What the survey measures is in selfimprove/report/consistency.py. Any method can have it measured on the held-out
problems before and after every round: eval.consistency={samples:16,temperature:0.7}.

*Wrong when* the policy agrees on wrong answers: it then learns to give them more often. It teaches nothing where the
samples of a problem are all alike, because the most common answer is then the policy's own already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from selfimprove.filter.distinct import distinct
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Count, Example, Share

generate, train = best_of_n, sft


def update(groups: Iterable[list[Attempt]], *, agreement: Share, per_problem: Count, seed: int) -> Iterator[Example]:
    """The distinct texts of each problem's most common answer; a random `per_problem` of them where there are more.

    Nothing of a problem is kept where the answer's share is below `agreement`: there the policy contradicts itself.
    """
    for attempts in groups:
        leading = [a for a in attempts if a.verdict.status == "correct" and a.verdict.reward >= agreement]
        yield from distinct(leading, per_problem, seed)
