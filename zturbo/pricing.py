"""What pictures cost. All figures are integers; 2,000,000 credits are one US dollar."""

CREDITS_PER_USD = 2_000_000
CREDITS_PER_MEGAPIXEL = 10_500
MEGAPIXEL = 1024 * 1024


def credits_of(width: int, height: int, images: int, rate: int = CREDITS_PER_MEGAPIXEL) -> int:
    """Credits of a request: `rate` per picture and per started megapixel (of 1024 x 1024 pixels)."""
    return -(-width * height // MEGAPIXEL) * rate * images
