"""A settlement of the simple queue, in process and over HTTP alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from llama_deploy.message_queues.settlement import MAX_SECONDS, SettleAction


@dataclass(frozen=True, slots=True)
class Settlement:
    """What one consumer says about one delivery."""

    delivery_id: str
    action: SettleAction
    seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False, strict=True)] = 0.0
    """For `nack` and `extend`."""
