"""
The operators ``traced`` v1, which continues the caller's trace, and ``fixed`` v1.

What ``traced`` does is a span of its own process; finished ones are written as JSON lines to
the file that ``TRACED_OPERATOR_SPANS`` names. ``fixed`` has a fixed list of arguments, as older
operators have.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery, Task
from opentelemetry.propagate import set_global_textmap
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sandai.op.models import TaskRequest, TaskResult, task_name

TRACED, FIXED, VERSION = "traced", "fixed", "v1"
SPANS = Path(os.environ["TRACED_OPERATOR_SPANS"])

app = Celery(
    TRACED,
    broker=os.environ["TRACED_OPERATOR_BROKER_URL"],
    backend=os.environ["TRACED_OPERATOR_RESULT_BACKEND"],
)
app.conf.accept_content = ["json", "msgpack"]
app.conf.broker_connection_retry_on_startup = True

provider = TracerProvider()
provider.add_span_processor(
    SimpleSpanProcessor(
        ConsoleSpanExporter(
            out=SPANS.open("a", buffering=1, encoding="utf-8"),
            formatter=lambda span: f"{span.to_json(indent=None)}\n",
        )
    )
)
tracer = provider.get_tracer("traced-operator")
# It must not matter what this process propagates to others.
set_global_textmap(CompositePropagator([]))


@app.task(name=task_name(TRACED, VERSION), bind=True)  # type: ignore[untyped-decorator]  # Celery has no types
def traced(self: Task, **kwargs: Any) -> dict[str, Any]:
    """Answer with the carrier, from inside a span that is the caller's child."""
    request = TaskRequest.from_kwargs(kwargs, task_id=self.request.id)
    if request.is_description:
        return {"status": "success", "doc": f"{sorted(kwargs)}"}
    with tracer.start_as_current_span(
        "process",
        context=TraceContextTextMapPropagator().extract(request.tracing),
        kind=SpanKind.CONSUMER,
        attributes={"messaging.message.id": request.task_id},
    ):
        return TaskResult(results={"tracing": request.tracing}).to_reply()


@app.task(name=task_name(FIXED, VERSION))  # type: ignore[untyped-decorator]  # Celery has no types
def fixed(
    meta: Any = None, artifacts: Any = None, options: Any = None, deadline: float | None = None
) -> dict[str, Any]:
    """Answer."""
    return TaskResult(results={"options": options}).to_reply()
