"""Non-linear RNNs computed in parallel over time."""

from typing import TYPE_CHECKING

from lmlab._lazy import door

if TYPE_CHECKING:
    from lmlab.recurrent.options import RecurrentOptions as RecurrentOptions

__all__ = ["RecurrentOptions"]

__getattr__, __dir__ = door(__name__, {"options": ["RecurrentOptions"]})
