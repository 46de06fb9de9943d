"""A loop with a counter: a person guesses a number, and answers the same question again and again."""

from pydantic import BaseModel
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent


class Game(BaseModel):
    secret: int = 0
    guesses: list[int] = []


class Hint(Event):
    text: str


class GuessingGame(Workflow):
    @step
    async def start(self, ctx: Context[Game], ev: StartEvent) -> InputRequiredEvent:
        async with ctx.store.edit_state() as game:
            game.secret = ev.secret
        return InputRequiredEvent(prefix="Your guess: ", turn=1)

    @step
    async def check(self, ctx: Context[Game], ev: HumanResponseEvent) -> InputRequiredEvent | StopEvent:
        guess = int(ev.response)
        async with ctx.store.edit_state() as game:
            game.guesses.append(guess)
            if guess == game.secret:
                return StopEvent(result=f"{len(game.guesses)} guesses: {game.guesses}")
            ctx.write_event_to_stream(Hint(text="too low" if guess < game.secret else "too high"))
            return InputRequiredEvent(prefix="Your guess: ", turn=len(game.guesses) + 1)


game = GuessingGame(timeout=None)
