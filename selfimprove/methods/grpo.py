"""GRPO: sample a group of answers, learn each by how much better it was than its group, repeat.

Group relative policy optimization (Shao et al. 2024, DeepSeekMath, arXiv 2402.03300, section 4.1, algorithm 1). One
pass of a round is one step of the algorithm:

    generate   o_1..o_G ~ pi_old(. | q) for a batch of questions q, at temperature 1
    verify     r_i, by the data set's verifier: 1 for a correct answer, else 0
    filter     A_i = (r_i - mean(r_1..r_G)) / std(r_1..r_G), for every token of o_i
    train      max_pi  1/G sum_i 1/|o_i| sum_t [ min(rho A_i, clip(rho, 1 - eps, 1 + eps) A_i) - beta KL(pi | pi_ref) ]
               with rho = pi(o_it | q, o_i<t) / pi_old(o_it | q, o_i<t)

pi_old is the policy as the pass begins. One optimizer step a pass (`batch_size` is the questions times G) makes rho 1
and needs no clipping; a smaller `batch_size` or more `epochs` take several steps on the same answers. `carry` keeps
the optimizer's moments from pass to pass. The optimization is one run, not one a pass.

Relatives differ by a key: `method.filter.scale=none method.train.loss=dr_grpo` is Dr. GRPO (arXiv 2503.20783) and
`method.train.loss=dapo method.train.clip_high=0.28` takes DAPO's loss and clipping (arXiv 2503.14476).

Wrong when all answers to a question get the same reward: it teaches nothing, so a data set that is too easy or too hard
for the policy wastes its samples. Wrong too when the verifier can be pleased without solving the task: that is learned.
"""

from __future__ import annotations

from selfimprove.filter.advantages import advantages
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.train.policy_gradient import policy_gradient

generate, group_relative, train = best_of_n, advantages, policy_gradient
