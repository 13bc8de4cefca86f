"""One baseline of each family of continual learning, on a stream of tasks whose data come once.

A Comprehensive Survey of Continual Learning (Wang et al. 2024, arXiv:2302.00487). A round is a task k with data D_k:

    generate   predict the class of each new picture (test, then train)
    verify     is it the label
    filter     D_k with its labels, and the memory M
    remember   M: a reservoir of all examples so far
    train      theta_k from theta_{k-1}, by the family:
      finetune    L = CE(D_k)
      ewc         L + lambda/2 sum_i F_i (theta_i - theta_{k-1,i})^2,  F = sum of the tasks' Fisher diagonals
                  (Kirkpatrick et al. 2017; one anchor, as in online EWC)
      lwf         L + T^2 KL(p_{k-1} || p_k) at temperature T over the classes seen before (Li and Hoiem 2016)
      replay      L + CE(M), a batch of each a step (experience replay, ER)
      agem        g - (g . r) / (r . r) r  where g . r < 0; g of L, r the gradient of CE(M) (Chaudhry et al. 2019)
      prototypes  features stay as pre-trained; the class whose mean feature is nearest
      adapters    the body stays; each task trains a bottleneck and a head of its own

    joint: finetune from the base policy on D_1 ... D_k together, an upper bound and no continual learner.

Picks of one baseline a family are ours; the survey compares none. Labels are of all tasks in one head, and no task is
named when a class is asked for (class-incremental).

*Wrong when* the tasks' data may be kept: joint training is better. AA compares learners only at equal memory and steps.
"""

from __future__ import annotations

from selfimprove.filter.replay import labelled, reservoir
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.report.continual import figures as figures
from selfimprove.train.continual import continual

generate, filter, remember, train = best_of_n, labelled, reservoir, continual
