"""Results: what an operator answers and what a client's calls return."""

from typing import Any

from attrs import define, field, frozen

from ._errors import OperatorError
from ._redact import redact
from ._text import text

LegacyTaskResult = tuple[list[dict[str, Any]], dict[str, Any]]


@define
class TaskResult:
    """
    A successful answer: output artifacts and a JSON object of results.

    An operator's author passes :class:`Artifact` objects or mappings; a client
    gets plain dicts.
    """

    artifacts: list[Any] = field(factory=list)
    results: dict[str, Any] = field(factory=dict)

    def to_reply(self) -> dict[str, Any]:
        """
        Return the reply envelope, plain for JSON and msgpack alike.

        Raises :class:`InvalidTaskError` with the path of a value that one of
        them cannot carry (an open file, NaN, an integer beyond 64 bits), and
        of artifacts or results that are no objects.
        """
        from ._converter import plain_object, plain_objects

        return {
            "status": "success",
            "artifacts": plain_objects(self.artifacts, path="artifacts"),
            "results": plain_object(self.results, path="results"),
        }

    def to_legacy_tuple(self) -> LegacyTaskResult:
        """Return ``(artifacts, results)``."""
        return self.artifacts, self.results


@define
class OperatorDescription:
    """What an operator says of itself: a text and two JSON Schemas."""

    doc: Any = None
    options_schema: Any = None
    results_schema: Any = None

    def to_reply(self) -> dict[str, Any]:
        """Return the reply envelope of a description task."""
        from ._converter import to_plain

        return {"status": "success", **{k: to_plain(v, path=k) for k, v in self.to_dict().items()}}

    def to_dict(self) -> dict[str, Any]:
        """Return ``doc``, ``options_schema`` and ``results_schema``."""
        return {
            "doc": self.doc,
            "options_schema": self.options_schema,
            "results_schema": self.results_schema,
        }


@frozen
class BatchTaskResult:
    """
    One task of a batch, in the batch's order.

    ``submitted`` is false where the task was not, or not certainly, queued;
    ``error`` says why it has no result.
    """

    index: int
    task_id: str | None
    submitted: bool
    artifacts: list[dict[str, Any]] = field(factory=list)
    results: dict[str, Any] = field(factory=dict)
    error: Exception | None = None

    @property
    def success(self) -> bool:
        """Whether the task was submitted and succeeded."""
        return self.submitted and self.error is None

    def to_legacy_tuple(self) -> LegacyTaskResult:
        """Return ``(artifacts, results)``; ``([], {})`` for a failure."""
        return (self.artifacts, self.results) if self.success else ([], {})


@frozen
class HealthCheckResult:
    """
    What a probe found, step by step: submitted, answered, understood.

    ``error`` is a sentence about the first step that failed, or the error that
    the operator itself reported.
    """

    submit_ok: bool
    retrieval_ok: bool
    response_ok: bool
    task_id: str | None = None
    error: str | None = None


def error_reply(error: BaseException) -> dict[str, Any]:
    """
    Return the error envelope for an exception that an operator caught.

    ``error_type`` is the exception's class name, ``error_details`` holds the
    fields of one of this package's errors (``deadline``, ``cancel_key``,
    ``path``, …); of a foreign exception class and message alone are told.
    Passwords of URLs are masked. Never raises.
    """
    from ._converter import error_details

    return {
        "status": "error",
        "error": {
            "error_type": type(error).__name__,
            "error_message": redact(text(error)) or type(error).__name__,
            "error_details": error_details(error) if isinstance(error, OperatorError) else {},
        },
    }
