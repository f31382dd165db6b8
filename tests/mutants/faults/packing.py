"""Faults in rows that are packed: which tokens they share, and where these stand."""

from ..fault import Fault

FAULTS = (
    Fault(
        "padding-from-the-next-row",
        "packed.PackedRows.sources",
        "torch.minimum(columns, self.lengths[:, None] - 1)",
        "columns.expand(len(self.lengths), -1)",
        "the padding of a row is read from other rows, and that of long ones from nowhere",
        ("test_padding_and_packing_undo_each_other",),
    ),
    Fault(
        "positions-across-rows",
        "packed.PackedRows.positions",
        "return self.slots % self.width",
        "return self.slots",
        "a row's angles go on where the row before it ended",
        ("test_values_and_gradients_are_those_of_the_modules",),
    ),
    Fault(
        "sharing-goes-on-behind-a-difference",
        "packed._owners",
        ".cumprod(1).bool()",
        ".bool()",
        "a row takes another one's token, which has read something else",
        ("test_each_beginning_is_kept_once",),
    ),
    Fault(
        "places-of-shared-tokens-counted-from-the-first-row",
        "packed.PackedRows.begins_before",
        "return self.begins.cumsum(0) - self.begins",
        "return self.begins * 0",
        "gradients of what several rows share overwrite each other",
        ("attention",),
    ),
)
