"""
The price of a query: one credit for each item of its batch.

Rule 1: what the custodian signed decides: `ModelInterface.batch` names, for each input that holds a
        batch, the axis along which its items lie; None says that a query is one item, whatever
        its shapes.
Rule 2: where it says nothing, a first dimension that is free in every input is the batch's.
Rule 3: every input of the batch holds as many items, at least one. A runtime that broadcasts would
        compute many for the price of one.

Only this axis is priced. A model that is free along others too does as much work, for one credit,
as its memory holds; whoever minds seals it with fixed dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from aigovtool.errors import BadTensorError
from aigovtool.sealing.interface import MAX_BATCH_ITEMS, Batch
from aigovtool.sealing.manifest import ModelSignature, SealedManifest

FREE = -1


def batch_of(manifest: SealedManifest) -> Batch | None:
    """Return how *manifest*'s model takes batches; None when a query is one item."""
    interface = manifest.interface
    if interface is not None and not isinstance(interface.batch, msgspec.UnsetType):
        return interface.batch
    return default_batch(manifest.signature)


def default_batch(signature: ModelSignature) -> Batch | None:
    """Return the batch along a first dimension that is free in all inputs, if it is (Rule 2)."""
    if not signature.inputs or any(one.shape[:1] != (FREE,) for one in signature.inputs):
        return None
    return Batch(axes={one.name: 0 for one in signature.inputs}, max_items=MAX_BATCH_ITEMS)


def items_in(batch: Batch | None, shapes: Mapping[str, Sequence[int]]) -> int:
    """
    Return how many items a query of these input shapes holds, which is its price in credits.

    Args:
        shapes: of all inputs of the model, already checked against its signature.

    Raises:
        BadTensorError: no items, too many, or not as many in one input as in another (Rule 3).
    """
    if batch is None:
        return 1
    counts = [shapes[name][axis] for name, axis in batch.axes.items()]
    items = counts[0]
    if counts.count(items) != len(counts):
        raise BadTensorError(
            "the inputs do not hold equally many items",
            code="bad_tensor.batch",
            expected="the same length along the batch axis of each input",
            came=", ".join(map("{} {}".format, batch.axes, counts)),
        )
    if not 1 <= items <= batch.max_items:
        raise BadTensorError(
            "not a batch that this model takes",
            code="bad_tensor.batch",
            expected=f"1 to {batch.max_items} items",
            came=str(items),
            mend="send it in several queries" if items else None,
        )
    return items
