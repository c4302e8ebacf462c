"""A process that dies at a chosen point, played inside this one."""

from base import durable


class Killed(BaseException):
    """What nothing in the code under test catches."""


class killing:  # noqa: N801  used as a verb
    """Raise Killed at the n-th fault point."""

    def __init__(self, place: int | None) -> None:
        self.place, self.passed, self.real = place, 0, durable.fault

    def __enter__(self) -> None:
        durable.fault = self.fault

    def fault(self, point: str) -> None:
        self.passed += not point.startswith(
            "verified"
        )  # what is remembered of a check depends on the clock
        if self.passed == self.place:
            raise Killed(point)

    def __exit__(self, *_: object) -> None:
        durable.fault = self.real
