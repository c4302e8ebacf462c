"""--device, as it is typed."""

import pytest

from base.devices import refuse_unknown_device
from base.errors import UsageError
from extract.prepare import devices
from train.algorithm.peers import choose_device


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_what_a_device_may_be(device: str) -> None:
    refuse_unknown_device(device)


@pytest.mark.parametrize(
    ("device", "meant"), [("cdua", "cuda"), ("gpu", "cpu"), ("cuda:", "cuda"), ("CPU", "cpu")]
)
def test_a_device_that_is_mistyped_is_not_another_one(device: str, meant: str) -> None:
    """Neither extraction nor training takes what is near for what was meant."""
    for ask in (
        refuse_unknown_device,
        lambda one: devices(one, 1),
        lambda one: choose_device(one, 1),
    ):
        with pytest.raises(UsageError, match=f"DEVICE={device}: it is one of auto") as caught:
            ask(device)
        assert caught.value.instead == {"DEVICE": meant}
