"""Iterative DPO: pair the policy's correct answers with its incorrect ones, prefer, repeat.

Iterative Reasoning Preference Optimization (Pang et al. 2024, arXiv 2404.19733): each round trains on pairs of its own
answers against the policy that gave them, by DPO (Rafailov et al. 2023, arXiv 2305.18290) with an NLL term.

    generate   y_1..y_n ~ pi_v(. | x)
    verify     correct or not, by the data set's verifier
    filter     (y_w, y_l): y_w correct, y_l not, K pairs a problem, no answer used twice where that can be
    train      L = -log sigmoid(beta [log pi/pi_v (y_w|x) - log pi/pi_v (y_l|x)]) - alpha log pi(y_w|x) / |y_w|

*Wrong when* few problems have answers of both kinds: the others make no pair. It harms at a learning rate at which the
probability of the chosen answers falls along with that of the rejected ones, which the NLL term is there to prevent.
"""

from __future__ import annotations

from selfimprove.filter.pairs import right_and_wrong
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.train.dpo import dpo

generate, pairs, train = best_of_n, right_and_wrong, dpo
