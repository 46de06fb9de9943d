from llama_index.core.workflow import HumanResponseEvent

from llama_deploy import Client


def main() -> None:
    client = Client(timeout=20)

    session = client.sync.core.sessions.create()
    print("run:", session.run("echo_workflow", arg1="hello_world"))

    task_id = session.run_nowait("streaming_workflow", arg1="hello_world")
    for event in session.get_task_result_stream(task_id):
        if "progress" in event:
            print("progress:", event["progress"])
    final = session.get_task_result(task_id)
    print("streamed:", final.result if final else None)

    counting = client.sync.core.sessions.create()
    results = [counting.run("session_workflow") for _ in range(3)]
    print("counted:", *results)

    task_id = session.run_nowait("hitl_workflow")
    session.send_event("hitl_workflow", task_id, HumanResponseEvent(response="42"))
    for event in session.get_task_result_stream(task_id):
        if "prefix" in event:
            print("asked:", event["prefix"])
    final = session.get_task_result(task_id)
    print("answered:", final.result if final else None)

    print("services:", *sorted(service.id for service in client.sync.core.services.list()))


if __name__ == "__main__":
    main()
