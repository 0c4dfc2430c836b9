"""``sandai-op doctor``: what is well, what is wrong, and what to do."""

from ._checks import Checkup
from ._commands import Finished, Target, operator_command
from ._errors import Exit
from ._findings import State
from ._output import Output

_PATIENCE = 5.0
_MARKS = {
    State.OK: ("ok", "green"),
    State.WARNING: ("!!", "yellow"),
    State.FAILED: ("XX", "red"),
    State.UNKNOWN: ("??", "cyan"),
}


@operator_command
def doctor(target: Target, output: Output) -> None:
    """
    Check the way to an operator, step by step.

    URLs, servers, TLS, permissions, push, workers, queues, budgets; and what to do about
    what is wrong. Exits with 1 if anything is. A worker is waited for --timeout seconds, 5
    unless told.
    """
    patience = _PATIENCE if not target.timeout else target.timeout
    findings = []
    with target.client() as client:
        for finding in Checkup(client, patience).run():
            findings.append(finding)
            if output.as_json:
                continue
            mark, colour = _MARKS[finding.state]
            output.item(mark, f"{finding.subject}: {finding.said}", colour=colour)
            if finding.advice is not None:
                output.item("  ", f"-> {finding.advice}")
    wrong = sum(finding.state is State.FAILED for finding in findings)
    if output.as_json:
        checks = [finding.to_dict() for finding in findings]
        output.document({**target.described, "ok": not wrong, "checks": checks})
    elif wrong:
        output.heading(f"{wrong} of {len(findings)} checks failed", "red")
    else:
        output.heading("all is well")
    if wrong:
        raise Finished(Exit.FAILED)
