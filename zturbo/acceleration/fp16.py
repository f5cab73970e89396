"""Half precision without overflow.

The real weights drive the feed-forward's hidden values to 3.4e5, past fp16's 65504, and pictures turn black. The
norm behind each feed-forward cancels any scale, so a power of two before the last product changes nothing but the
range: exact in principle, with the norm's eps scaled alike (`Block.forward`).
"""

from zturbo.models.transformer import Block, ZImageTransformer

HIDDEN_SCALE = 2.0**-7


def fit_half_precision(transformer: ZImageTransformer) -> None:
    """Scale the hidden values of every block's feed-forward by 2**-7."""
    for module in transformer.modules():
        if isinstance(module, Block):
            module.feed_forward.hidden_scale = HIDDEN_SCALE
