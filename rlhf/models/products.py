"""Matrix products in the forms that a CPU computes fastest; on other devices, the plain ones.

oneDNN chooses how to cut a product into blocks from its shape. Some choices leave all but one thread idle. Measured
with torch 2.13 on two cores with AMX, bfloat16, in GFLOP/s:

    rows of x                           512   640   832   1,024   1,216
    x W', W 576 x 576                   650   360   380     380     630     in parts of 512 rows: 510 to 600
    x W', W 576 x 1,536                 610   330   330     320     340     in parts of 512 rows: 490 to 550

Widths of 768, 960 and 1,024 have such gaps too, at other numbers of rows; 256, 688, 1,536 and more have none, and
neither has float32.
"""

import torch
from torch import Tensor

NARROW, WIDE = 512, 1024  # columns of the result between which many rows are multiplied in parts
PART = 256  # rows for each thread


def times(x: Tensor, matrix: Tensor, onto: Tensor | None = None) -> Tensor:
    """Return x (n, k) @ matrix (k, m), added in place to `onto` (n, m) if that is given."""
    rows = PART * torch.get_num_threads()
    if len(x) <= rows or not NARROW < matrix.shape[1] <= WIDE or x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return x @ matrix if onto is None else onto.addmm_(x, matrix)
    result = x.new_empty(len(x), matrix.shape[1]) if onto is None else onto
    for factor, part in zip(torch.split(x, rows), torch.split(result, rows), strict=True):
        torch.mm(factor, matrix, out=part) if onto is None else part.addmm_(factor, matrix)
    return result
