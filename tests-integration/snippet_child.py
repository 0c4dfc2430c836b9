"""
The process in which a page's Python blocks run, one after the other, in one ``__main__``.

It takes them as lines of JSON from its standard input, ``[file, line, code]``, and answers each
with one, ``[what was printed, the traceback or null]``.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from contextlib import redirect_stdout


def serve() -> None:
    """Run what comes in until the input ends."""
    # What a block's own processes print must not get between the answers.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            answers.write(json.dumps(_run(*json.loads(line))) + "\n")
            answers.flush()


def _run(file: str, first: int, code: str) -> tuple[str, str | None]:
    printed = io.StringIO()
    with redirect_stdout(printed):
        try:
            # At the file's own line numbers, so that a traceback shows the page.
            program = compile("\n" * (first - 1) + code, file, "exec", dont_inherit=True)
            exec(program, vars(sys.modules["__main__"]))
        except BaseException:
            return printed.getvalue(), traceback.format_exc()
    return printed.getvalue(), None
