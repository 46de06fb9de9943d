"""Claims of an instance."""

from __future__ import annotations

from typing import cast

from llama_deploy.services.gateway import ControlPlaneGateway
from llama_deploy.services.worker.attempt import Attempt
from llama_deploy.services.worker.claims import Claims
from llama_deploy.services.worker.ledger import Ledger
from llama_deploy.types import Durability
from llama_deploy.types.instance_protocol import (
    AttemptPart,
    ClaimReply,
    ClaimRequest,
    PartReply,
    PartRequest,
    TaskDispatch,
)


class Slow:
    """Grants a claim, and takes the attempt back while its input is fetched."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def claim(self, _: ClaimRequest) -> ClaimReply:
        return ClaimReply(granted=True, token="t", omitted=[AttemptPart.INPUT])

    async def part(self, request: PartRequest) -> PartReply:
        self.ledger.drop(request.task_id, request.attempt)
        return PartReply(text="{}", size=2, digest="d")


def must_not_begin(reply: ClaimReply) -> Attempt:
    raise AssertionError(reply)


async def test_an_attempt_that_is_lost_before_it_is_complete_does_not_begin() -> None:
    ledger = Ledger()
    claims = Claims(
        instance_id="i1",
        gateway=cast("ControlPlaneGateway", Slow(ledger)),
        ledger=ledger,
        durability=Durability.STEP,
    )
    dispatch = TaskDispatch(task_id="t", session_id="s", attempt=1, agent_id="a")
    assert await claims.claim(dispatch, must_not_begin) is None
    assert len(ledger) == 0
