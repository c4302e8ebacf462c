"""How numbers are told."""

import pytest

from base.console import about_text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "less than a second"),
        (0.999, "less than a second"),
        (1.0, "about 0:00:01"),
        (1.01, "about 0:00:02"),
        (3724.2, "about 1:02:05"),
    ],
)
def test_an_estimate_is_rounded_up_and_never_nothing(seconds: float, said: str) -> None:
    assert about_text(seconds) == said
