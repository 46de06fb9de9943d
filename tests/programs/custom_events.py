"""Start and stop events of its own, with nested models, defaults and constraints."""

from datetime import date
from decimal import Decimal
from uuid import UUID

from pydantic import BaseModel, Field
from tests.programs.outside import call
from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Item(BaseModel):
    sku: UUID
    price: Decimal
    count: int = Field(default=1, gt=0)


class Order(StartEvent):
    customer: str
    items: list[Item]  # type: ignore[assignment]
    due: date | None = None


class Priced(Event):
    order: Order
    total: Decimal


class Invoice(StopEvent):
    customer: str
    total: Decimal
    due: date
    lines: list[str] = Field(default_factory=list)


class Billing(Workflow):
    @step
    async def price(self, ev: Order) -> Priced:
        return Priced(order=ev, total=sum((each.price * each.count for each in ev.items), Decimal(0)))

    @step
    async def bill(self, ev: Priced) -> Invoice:
        await call("custom_events/bill")
        lines = [f"{each.count} x {each.sku}" for each in ev.order.items]
        return Invoice(
            customer=ev.order.customer,
            total=ev.total,
            due=ev.order.due or date(2026, 12, 31),
            lines=lines,
        )
