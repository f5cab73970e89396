"""What pictures cost: by the started megapixel of 1024 x 1024, and by the picture."""

import pytest

from zturbo.pricing import credits_of


@pytest.mark.parametrize(
    ("width", "height", "images", "credits"),
    [
        (512, 512, 1, 10_500), (1024, 1024, 1, 10_500), (1056, 1024, 1, 21_000), (1024, 1024, 4, 42_000),
        (1440, 1440, 1, 21_000), (1536, 1536, 2, 63_000), (2048, 2048, 1, 42_000), (2048, 2048, 4, 168_000),
    ],
)  # fmt: skip
def test_each_started_megapixel_of_each_picture_is_paid_for(width: int, height: int, images: int, credits: int) -> None:
    assert credits_of(width, height, images) == credits
    assert credits_of(width, height, images, rate=7) == 7 * credits // 10_500
