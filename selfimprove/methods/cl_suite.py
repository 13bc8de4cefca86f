"""One baseline of each family of continual learning, on a stream of tasks whose data come once.

A Comprehensive Survey of Continual Learning (Wang et al. 2024, arXiv:2302.00487). A round is a task k with data D_k:

    generate   predict the class of each new picture (test, then train)
    verify     compare it with the label
    filter     D_k with its labels, and the memory M
    remember   M: a reservoir of all examples so far
    train      theta_k from theta_{k-1}, by the family:
      finetune    L = CE(D_k)
      ewc         L + lambda/2 sum_i F_i (theta_i - theta_{k-1,i})^2,  F = sum of the tasks' Fisher diagonals
                  (Kirkpatrick et al. 2017; one anchor, as in online EWC)
      lwf         L + T^2 KL(p_{k-1} || p_k) at temperature T over the classes seen before (Li and Hoiem 2016)
      replay      L + CE(M), a batch of D_k and one of M in each step (experience replay, ER)
      agem        g - (g . r) / (r . r) r  if g . r < 0; g, r: gradients of L and CE(M) (Chaudhry et al. 2019)
      prototypes  features stay as pre-trained; the answer is the class with the nearest mean feature
      adapters    the body stays; each task trains its own bottleneck and head

    joint: finetune from the base policy on D_1 ... D_k together, an upper bound and no continual learner.

The choice of one baseline for a family is ours; the survey compares none. One head has the labels of all tasks, and the
policy is not told the task of a picture (class-incremental).

*Wrong when* the tasks' data may be kept: joint training is better. AA compares learners only at equal memory and steps.
"""

from __future__ import annotations

from selfimprove.filter.replay import labelled, reservoir
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.report.continual import figures as figures
from selfimprove.train.continual import continual

generate, filter, remember, train = best_of_n, labelled, reservoir, continual
