"""What is wrong with a script, and where."""

from __future__ import annotations


class ScriptError(Exception):
    """A script is refused before anything was touched.

    ``trace`` is its id or file, ``operation`` the number of the operation from 0, ``field`` the member of it;
    each is None where the fault lies further out.
    """

    def __init__(
        self,
        detail: str,
        *,
        trace: str | None = None,
        operation: int | None = None,
        op: str | None = None,
        field: str | None = None,
    ) -> None:
        self.detail = detail
        self.trace = trace
        self.operation = operation
        self.op = op
        self.field = field
        super().__init__(detail)

    def __str__(self) -> str:
        number = None if self.operation is None else f"operation {self.operation}"
        if number and self.op:
            number += f" ({self.op})"
        return ": ".join(part for part in (self.trace, number, self.field, self.detail) if part)

    def at(self, trace: str) -> ScriptError:
        """The same fault with the trace named."""
        return ScriptError(
            self.detail, trace=self.trace or trace, operation=self.operation, op=self.op, field=self.field
        )
