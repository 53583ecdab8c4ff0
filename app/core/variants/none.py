"""The control: no protection at all."""

from app.core.variants.base import Variant


class Unprotected(Variant):
    """KICK and RESUME do nothing: what happens without the proposal."""
