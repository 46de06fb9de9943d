"""`llamactl inbox`: the questions of all services."""

# ruff: noqa: FBT002, PLC0415 - typer reads options from parameters; each imports its implementation
from __future__ import annotations

from typing import Annotated

import typer

from llama_deploy.cli.client_commands import with_client
from llama_deploy.cli.options import AsJson
from llama_deploy.cli.shared_options import CommandGroup

QuestionId = Annotated[str, typer.Argument(metavar="QUESTION", help="The id of the question.")]


inbox = CommandGroup(help="List and answer the questions of waiting tasks.", no_args_is_help=True)


@inbox.command("list")
def list_questions(
    context: typer.Context,
    service: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only questions of this service.")
    ] = None,
    assignee: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only questions assigned to this name.")
    ] = None,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="Only questions with this tag.")] = None,
    cursor: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Where to go on, as the page before says.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, metavar="N", help="The most questions to show.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List open questions, the oldest first."""
    from llama_deploy.cli.inbox.questions import Listing, print_questions

    listing = Listing(service=service, assignee=assignee, tag=tag, cursor=cursor, limit=limit)
    with_client(context.obj, lambda client: print_questions(client, listing, as_json=as_json))


@inbox.command()
def show(context: typer.Context, question: QuestionId, as_json: AsJson = False) -> None:
    """Show a question: what is asked, and what an answer looks like."""
    from llama_deploy.cli.inbox.questions import print_question

    with_client(context.obj, lambda client: print_question(client, question, as_json=as_json))


@inbox.command()
def answer(
    context: typer.Context,
    question: QuestionId,
    fields: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="The fields of the answer, as for `llamactl send`; @FILE reads all of them from a JSON "
            "object. Without any, you are asked for each field in the terminal.",
        ),
    ] = None,
    event_type: Annotated[
        str | None,
        typer.Option("--type", metavar="CLASS", help="The class of the answer, if there are several."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question. It counts once: a later answer is refused."""
    from llama_deploy.cli.inbox.questions import answer_question

    with_client(
        context.obj,
        lambda client: answer_question(client, question, fields or [], event_type, as_json=as_json),
    )


@inbox.command()
def refuse(
    context: typer.Context,
    question: QuestionId,
    reason: Annotated[str, typer.Argument(metavar="REASON", help="Why, for the error of the task.")],
    as_json: AsJson = False,
) -> None:
    """Refuse to answer a question. Its task fails."""
    from llama_deploy.cli.inbox.questions import refuse_question

    with_client(context.obj, lambda client: refuse_question(client, question, reason, as_json=as_json))


@inbox.command()
def assign(
    context: typer.Context,
    question: QuestionId,
    assignee: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Who is to answer. Default: anybody.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say who is to answer a question."""
    from llama_deploy.cli.inbox.questions import assign_question

    with_client(context.obj, lambda client: assign_question(client, question, assignee, as_json=as_json))


@inbox.command()
def callback(context: typer.Context, question: QuestionId, as_json: AsJson = False) -> None:
    """Print a URL that answers a question once.

    Who has the URL can answer, without any other right: it is a secret.
    """
    from llama_deploy.cli.inbox.questions import print_callback

    with_client(context.obj, lambda client: print_callback(client, question, as_json=as_json))
