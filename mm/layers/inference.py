"""Linear maps prepared for inference on a CPU: their weights in the layout that oneDNN multiplies with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mm.errors import UsageError

LEAST_ROWS = 4  # in float32, so many rows take less time than one
_SMALLEST = 1e-30  # the largest value of a row of zeros, which is divided by


class PreparedLinear(nn.Linear):
    """A linear map that has no parameters, so it can't be trained or saved. It is a Linear for code that asks for one.

    What a row gives doesn't depend on the rows beside it.

    Args:
        weight: (out, in).
        bias: (out,), as it is to be added; None for none.
    """

    bias: Tensor | None  # type: ignore[assignment]

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else bias.detach()

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The (out, in) weight, unpacked: a float32 copy."""
        raise NotImplementedError

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses to save what it is a part of without its weights.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "a model that mm.load prepared for inference can't be saved; mm.checkpoints.resolve.load_model gives it "
            "as it was saved"
        )


class PackedLinear(PreparedLinear):
    """A linear map in float32 or bfloat16 whose weight is packed once.

    Args:
        weight: (out, in).
        bias: (out,); None for none.
        dtype: what is multiplied in: float32 or bfloat16. Sums are always in float32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(weight, None if bias is None else bias.to(dtype))
        self.dtype = dtype
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous(), None)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The (out, in) weight, unpacked: a float32 copy."""
        return self._packed.to_dense().float()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., out), in the precision of ``x``."""
        given = x.to(self.dtype)
        if given.numel() == self.in_features and self.dtype == torch.float32:
            given = given.expand(LEAST_ROWS, *given.shape).contiguous()
            return torch.ops.mkldnn._linear_pointwise(given, self._packed, self.bias, "none", [], "")[0]
        return torch.ops.mkldnn._linear_pointwise(given, self._packed, self.bias, "none", [], "").to(x.dtype)


class Int8Linear(PreparedLinear):
    """A linear map of 8-bit integers.

    Weights have one scale for each output. Each row of the input gets its own when it comes in (vector-wise
    quantization, arXiv:2208.07339).

    Args:
        weight: (out, in).
        bias: (out,); None for none.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, None if bias is None else bias.float())
        weight = weight.detach().float()
        scale = weight.abs().amax(1).clamp_min(_SMALLEST) / 127
        rounded = (weight / scale[:, None]).round().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self._scale = scale
        self._row_scale = scale / 127  # of the sums, where rows are scaled by the largest value alone
        self._zeros = torch.zeros(self.out_features, dtype=torch.int64)
        self._one, self._middle = torch.ones(()), torch.tensor(128, dtype=torch.int32)
        self._rounding = torch.tensor(128.5)  # 128 stands for zero, and what is behind the point is cut off

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The (out, in) weight, unpacked: what the integers stand for, in float32."""
        return self._packed.to_dense().t().float() * self._scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., out), in the precision of ``x``."""
        rows = x.reshape(-1, self.in_features).float()
        largest = rows.abs().amax(1, keepdim=True).clamp_min_(_SMALLEST)
        integers = torch.addcdiv(self._rounding, rows, largest, value=127).to(torch.uint8)
        sums = torch.ops.onednn.qlinear_pointwise.tensor(
            integers,
            self._one,
            self._middle,
            self._packed,
            self._row_scale,
            self._zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        out = sums.mul_(largest) if self.bias is None else torch.addcmul(self.bias, sums, largest)
        return out.view(*x.shape[:-1], self.out_features).to(x.dtype)
