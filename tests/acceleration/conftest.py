"""What tests of acceleration share."""

import pytest

from zturbo.acceleration import native
from zturbo.acceleration.native import Unavailable


@pytest.fixture(scope="session")
def native_kernels() -> None:
    """Built; where they cannot be, the test is skipped with the reason."""
    try:
        native.build()
    except Unavailable as reason:
        pytest.skip(f"no native kernels here: {reason}")
