"""Faults in the blocks that are computed by hand: packing, kernels, products, attention, which models they serve."""

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
        "prompts-without-length",
        "cache.SlotCache.insert",
        "self.lengths[rows] = lengths",
        "pass",
        "responses begin without their prompts",
    ),
    Fault(
        "read-in-another-order",
        "trunk.run",
        ".index_select(0, places)",
        ".index_select(0, places.sort().values)",
        "log-probabilities are of other tokens",
    ),
    Fault(
        "masters-rounded",
        "precision.round_frozen_matrices",
        "and not module.weight.requires_grad",
        "",
        "small steps are lost in bfloat16 weights",
        ("test_what_is_trained_keeps_its_master",),
    ),
    Fault(
        "adapters-dropout-ignored",
        "weights._is_plain",
        "layer.training and getattr(layer.lora_dropout[name]",
        "False and getattr(layer.lora_dropout[name]",
        "dropout that is switched on does nothing",
        ("test_everything_else_goes_through_the_modules",),
    ),
)
