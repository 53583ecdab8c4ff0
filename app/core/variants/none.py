"""The control: no protection at all."""

from kickstand.core.variants.base import Variant


class Unprotected(Variant):
    """KICK and RESUME do nothing: what happens without the proposal."""
