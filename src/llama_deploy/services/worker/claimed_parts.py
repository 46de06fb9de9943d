"""Fetching what was too large for the answer to a claim."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, Final

from llama_deploy.backoff import Backoff
from llama_deploy.retrying import retry
from llama_deploy.services.gateway import ControlPlaneGateway
from llama_deploy.types.instance_protocol import AttemptPart, ClaimReply, ClaimRequest, PartRequest

_BACKOFF: Final = Backoff(first=0.1, longest=1.0)


async def complete(gateway: ControlPlaneGateway, claim: ClaimRequest, reply: ClaimReply) -> ClaimReply:
    """Return the answer to a claim that was granted, with the parts that it omits.

    Retries until the control plane answers: the heartbeats hold the lease meanwhile.

    Raises:
        FencedOutError: The attempt does not belong to this instance any more.
        TaskNotFoundError: The task was deleted.
    """
    omitted = [part for part in AttemptPart if part in reply.omitted]
    parts = {part.value: await _fetch(gateway, claim, reply.token, part) for part in omitted}
    return reply if not parts else ClaimReply.model_validate({**dict(reply), **parts})


async def _fetch(gateway: ControlPlaneGateway, claim: ClaimRequest, token: str, part: AttemptPart) -> Any:
    """Return the value of a part, which comes in slices of its JSON text."""
    text, digest = "", None
    while True:
        request = PartRequest(
            task_id=claim.task_id,
            attempt=claim.attempt,
            token=token,
            part=part,
            offset=len(text),
            digest=digest,
        )
        reply = await retry(partial(gateway.part, request), backoff=_BACKOFF)
        text = text + reply.text if reply.digest == digest else reply.text
        digest = reply.digest
        if len(text) >= reply.size:
            # The input travels as text: the control plane does not look into it.
            return text if part is AttemptPart.INPUT else json.loads(text)
