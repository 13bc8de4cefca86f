"""A shape of rewards that tests/filter/test_advantages.py names."""


def short(attempt, *, weight: float):
    """Short answers are better."""
    return [-weight * attempt.trajectory.sampled_tokens]
