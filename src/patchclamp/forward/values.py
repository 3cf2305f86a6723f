"""Tensors as fields of frozen specifications: nested lists in JSON, equal by content, never NaN."""

from typing import Annotated, Any

import torch
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


class Values:
    """A float32 tensor that compares and hashes by content, so that edits holding one stay frozen values."""

    __slots__ = ("_key", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        # adding 0.0 turns -0.0 into 0.0: the two are equal, so they must hash alike
        self.tensor = (tensor.detach().to(device="cpu", dtype=torch.float32) + 0.0).contiguous()
        self._key: int | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Values) and torch.equal(self.tensor, other.tensor)

    def __hash__(self) -> int:
        if self._key is None:
            self._key = hash((tuple(self.tensor.shape), self.tensor.numpy().tobytes()))
        return self._key

    def __repr__(self) -> str:
        return f"Values{list(self.tensor.shape)}"

    @classmethod
    def of(cls, value: Any) -> "Values":
        """From a tensor, an array or nested lists of numbers. ValueError if it is none, or not finite."""
        if isinstance(value, Values):
            return value
        try:
            tensor = torch.as_tensor(value, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"expected numbers, got {type(value).__name__}") from error
        if tensor.numel() == 0:
            raise ValueError("expected numbers, got an empty list")
        if not torch.isfinite(tensor).all():
            where = int((~torch.isfinite(tensor.flatten())).nonzero()[0])
            raise ValueError(f"the value is not finite: entry {where} is {tensor.flatten()[where].item()}")
        return cls(tensor)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.of,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda v: v.tensor.tolist()),
            json_schema_input_schema=core_schema.any_schema(),
        )


Numbers = Annotated[Values, "a number, a list of numbers, or nested lists"]
