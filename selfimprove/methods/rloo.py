"""RLOO: REINFORCE whose baseline for an answer is the mean reward of the other answers to the same question.

REINFORCE leave-one-out (Kool et al. 2019; Ahmadian et al. 2024, Back to Basics, arXiv 2402.14740, section 2.2). One
pass of a round is one step of the algorithm:

    generate   y_1..y_k ~ pi(. | x) for a batch of prompts x, at temperature 1
    verify     R(y_i, x), by the data set's verifier
    filter     A_i = R(y_i, x) - 1/(k - 1) sum_{j != i} R(y_j, x)
    train      max_pi  1/k sum_i A_i log pi(y_i | x)

An answer is one action: its log-probability is the sum over its tokens, so the loss is the sum over tokens, here over
the constant `max_tokens` (`loss: dr_grpo`), which changes the size of the loss and not its direction. One optimizer
step a pass makes it on-policy, and clipping does nothing.

The paper takes beta log(pi / pi_ref) off the reward. Here KL(pi | pi_ref) is a term of the loss, as in GRPO, with the
coefficient `method.train.beta`; with a verifier in place of a reward model it is 0.

Wrong when all answers to a prompt get the same reward, which then teaches nothing; with k = 2 the baseline is a single
answer and most of what is learned is its noise.
"""

from __future__ import annotations

from selfimprove.filter.advantages import advantages
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.train.policy_gradient import policy_gradient

generate, leave_one_out, train = best_of_n, advantages, policy_gradient
