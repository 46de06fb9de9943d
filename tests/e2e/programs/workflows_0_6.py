import asyncio
import sys

from llama_index.core.workflow import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)

from llama_deploy import ControlPlaneConfig, WorkflowServiceConfig, deploy_workflow


class EchoWorkflow(Workflow):
    """Returns its argument with a suffix."""

    @step()
    async def run_step(self, ev: StartEvent) -> StopEvent:
        arg1 = ev.get("arg1")
        if not arg1:
            raise ValueError("arg1 is required.")
        return StopEvent(result=str(arg1) + "_result")


class ProgressEvent(Event):
    progress: float


class StreamingWorkflow(Workflow):
    @step()
    async def run_step(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for progress in (0.3, 0.6, 0.9):
            ctx.write_event_to_stream(ProgressEvent(progress=progress))
        return StopEvent(result=str(ev.get("arg1")) + "_result")


class SessionWorkflow(Workflow):
    @step()
    async def step_1(self, ctx: Context, ev: StartEvent) -> StopEvent:
        count = await ctx.store.get("count", default=0)
        await ctx.store.set("count", count + 1)
        return StopEvent(result=count + 1)


class HumanInTheLoopWorkflow(Workflow):
    @step()
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent(prefix=str(ev.get("question", "What is the answer? ")))

    @step()
    async def answer(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=ev.response)


WORKFLOWS = {
    "echo_workflow": EchoWorkflow,
    "streaming_workflow": StreamingWorkflow,
    "session_workflow": SessionWorkflow,
    "hitl_workflow": HumanInTheLoopWorkflow,
}


async def main(name: str, port: int) -> None:
    await deploy_workflow(
        workflow=WORKFLOWS[name](),
        workflow_config=WorkflowServiceConfig(
            host="127.0.0.1", port=port, service_name=name, description="A service of a 0.6 program."
        ),
        control_plane_config=ControlPlaneConfig(),
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
