"""Keeps its model, its tools and a database connection in `ctx.store`."""

import sqlite3
from collections.abc import Callable

from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class FakeLLM:
    def __init__(self, model: str) -> None:
        self.model = model

    async def acomplete(self, prompt: str) -> str:
        await call(f"live_store/{self.model}")
        return f"select count(*) from people where name like '{prompt}%'"  # noqa: S608 - a model would write anything


class QueryEvent(Event):
    sql: str


class ResultEvent(Event):
    rows: list[tuple[int]]


class TextToSQL(Workflow):
    @step
    async def connect(self, ctx: Context, ev: StartEvent) -> QueryEvent:
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        connection.execute("create table people (name text)")
        connection.executemany("insert into people values (?)", [("Ada",), ("Alan",), ("Grace",)])
        tools: dict[str, Callable[[str], str]] = {"upper": str.upper, "shout": lambda text: text + "!"}
        await ctx.store.set("connection", connection)
        await ctx.store.set("tools", tools)
        await ctx.store.set("llm", FakeLLM(model="fast"))
        llm = await ctx.store.get("llm")
        ctx.write_event_to_stream(Event(msg=f"connected for {ev.letter}"))
        return QueryEvent(sql=await llm.acomplete(ev.letter))

    @step
    async def execute(self, ctx: Context, ev: QueryEvent) -> ResultEvent:
        connection = await ctx.store.get("connection")
        return ResultEvent(rows=connection.execute(ev.sql).fetchall())

    @step
    async def answer(self, ctx: Context, ev: ResultEvent) -> StopEvent:
        await call("live_store/answer")
        tools = await ctx.store.get("tools")
        (await ctx.store.get("connection")).close()
        return StopEvent(result=tools["shout"](f"{ev.rows[0][0]} people"))


text_to_sql = TextToSQL(timeout=30)
