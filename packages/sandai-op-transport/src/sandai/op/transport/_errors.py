"""What goes wrong between us and a server, before it is told to a caller."""

from attrs import define, field

from sandai.op.models import OperatorConnectionError, OperatorError, redact


@define(slots=False)
class TransportError(OperatorError, ConnectionError):
    """
    A server is unreachable, refuses or broke off.

    ``maybe_done`` tells that bytes went out, so that the server may have acted;
    ``refused`` that the server answers, and does not want what we want.
    """

    reason: str = field(converter=redact)
    maybe_done: bool = False
    refused: bool = False

    def _sentence(self) -> str:
        return self.reason

    def for_unsent(self) -> "TransportError":
        """Return the error of what was not even sent because of this one."""
        if not self.maybe_done:
            return self
        error = TransportError(self.reason)
        error.__cause__ = self.__cause__
        return error

    def for_operator(
        self, operator_name: str, operator_version: str, task_id: str | None = None
    ) -> OperatorConnectionError:
        """Return the caller's error; *task_id* is told only where its fate is unknown."""
        known = task_id if self.maybe_done else None
        error = OperatorConnectionError(operator_name, operator_version, self.reason, known)
        error.__cause__ = self.__cause__ or self
        return error
