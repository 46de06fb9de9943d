import asyncio

from llama_index.core.workflow import HumanResponseEvent

from llama_deploy import Client
from llama_deploy.types import ServiceDefinition


async def main() -> None:
    client = Client(timeout=20)

    session = await client.core.sessions.create()
    print("run:", await session.run("echo_workflow", arg1="hello_world"))
    print("tasks:", len(await session.get_tasks()))

    task_id = await session.run_nowait("streaming_workflow", arg1="hello_world")
    async for event in session.get_task_result_stream(task_id):
        if "progress" in event:
            print("progress:", event["progress"])
    final = await session.get_task_result(task_id)
    print("streamed:", final.result if final else None)

    counting = await client.core.sessions.create()
    results = [await counting.run("session_workflow") for _ in range(3)]
    print("counted:", *results)

    human = await client.core.sessions.create()
    task_id = await human.run_nowait("hitl_workflow", question="The answer? ")
    await human.send_event("hitl_workflow", task_id, HumanResponseEvent(response="42"))
    async for event in human.get_task_result_stream(task_id):
        if "prefix" in event:
            print("asked:", event["prefix"])
    final = await human.get_task_result(task_id)
    print("answered:", final.result if final else None)

    same = await client.core.sessions.get_or_create("my-session")
    again = await client.core.sessions.get_or_create("my-session")
    print("same session:", same.id == again.id == "my-session")

    await client.core.services.register(
        ServiceDefinition(service_name="by_hand", description="d", host="127.0.0.1", port=9999)
    )
    print("registered:", "by_hand" in [service.id for service in await client.core.services.list()])
    await client.core.services.deregister("by_hand")
    print("deregistered:", "by_hand" not in [service.id for service in await client.core.services.list()])

    await client.core.sessions.delete(session.id)
    print("deleted:", session.id not in [item.id for item in await client.core.sessions.list()])


if __name__ == "__main__":
    asyncio.run(main())
