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


def times(x: Tensor, matrix: Tensor, out: Tensor, *, add: bool = False) -> None:
    """Write x (n, k) @ matrix (k, m) to `out` (n, m), or add it to what is there."""
    rows = PART * torch.get_num_threads()
    in_parts = x.dtype == torch.bfloat16 and x.device.type == "cpu" and NARROW < matrix.shape[1] <= WIDE
    for factor, part in zip(*(torch.split(y, rows if in_parts else max(len(x), 1)) for y in (x, out)), strict=True):
        part.addmm_(factor, matrix) if add else torch.mm(factor, matrix, out=part)
