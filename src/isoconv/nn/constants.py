"""Tensors that follow from a layer's arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from torch import Tensor, nn

__all__ = ["WithConstants"]


class WithConstants(nn.Module):
    """A layer that keeps tensors which follow from its arguments, as buffers outside of the state dict.

    They are made anew, and not converted, where the layer gets another device or dtype: what was rounded to float32 is
    not exact in float64, and what was made on the device meta has no values.
    """

    def _set_constants(self, like: Tensor) -> None:
        """Make them, of the device and dtype of ``like``."""
        raise NotImplementedError

    def _like(self) -> Tensor:
        """A floating-point tensor of the layer."""
        return next(self.parameters())

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._set_constants(self._like())
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, local_metadata: Mapping[str, Any], *args: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if local_metadata.get("assign_to_params_buffers"):
            self._set_constants(self._like())
