"""Which of an environment's numbered rows are trained on, and which are held out for evaluation."""

import numpy as np


def split_rows(num_rows: int, test_fraction: float) -> tuple[list[int], list[int]]:
    """Split the rows of an environment; the same rows are held out in every run, whatever its seed.

    Args:
        num_rows: Rows that there are.
        test_fraction: Share that is held out, rounded, but at least one row.

    Returns:
        Rows of the training and held-out rows, both ascending. Nothing is held out if the fraction is 0 or there is
        only one row.
    """
    if num_rows < 2 or test_fraction == 0:
        return list(range(num_rows)), []
    count = min(max(1, round(num_rows * test_fraction)), num_rows - 1)
    order = np.random.default_rng(num_rows).permutation(num_rows).tolist()
    return sorted(order[count:]), sorted(order[:count])
