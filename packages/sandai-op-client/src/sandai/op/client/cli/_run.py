"""``sandai-op run``: one task."""

import click

from sandai.op.client import OperatorError

from ._commands import Failure, Target, operator_command
from ._inputs import artifacts_of, options_of
from ._output import Output


@operator_command
@click.option(
    "--input",
    "-i",
    "inputs",
    multiple=True,
    metavar="URI[:slot]",
    help="An input artifact; what follows the last colon is its slot if it is a name.",
)
@click.option(
    "--input-json", "documents", multiple=True, metavar="JSON", help="An artifact, or a list."
)
@click.option(
    "--option",
    "-o",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option; the value is JSON where it can be, else a text.",
)
@click.option(
    "--options-json",
    "document",
    metavar="JSON|@FILE|-",
    help="The options as an object, from a file, or from the standard input.",
)
@click.option("--persistent-output", is_flag=True, help="Ask the operator to keep its output.")
def run(
    target: Target,
    output: Output,
    inputs: tuple[str, ...],
    documents: tuple[str, ...],
    pairs: tuple[str, ...],
    document: str | None,
    persistent_output: bool,
) -> None:
    """
    Hand over one task, and show its answer.

    \b
      sandai-op run clipper v1 -i file:///a.mp4:video -o start=1.5 -o codec=h264
    """
    artifacts, options = artifacts_of(inputs, documents), options_of(pairs, document)
    with target.client() as client:
        with output.waiting(f"waiting for {target.name} {target.version}"):
            [result] = client.batch_sync_detailed(
                [(artifacts, options)], persistent_output=persistent_output
            )
        told = {**target.described, "task_id": result.task_id, "success": result.success}
        if result.error is not None:
            if not isinstance(result.error, OperatorError):
                raise result.error
            raise Failure(result.error, told)
    if output.as_json:
        output.document({**told, "artifacts": result.artifacts, "results": result.results})
        return
    output.heading(f"{target.name} {target.version}: done")
    output.line(f"task {result.task_id}")
    if result.artifacts:
        output.heading("artifacts", "cyan")
        output.value(result.artifacts)
    if result.results:
        output.heading("results", "cyan")
        output.value(result.results)
