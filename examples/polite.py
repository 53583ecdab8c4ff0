"""A variant of one's own: kickstand explore --variant-module examples/polite.py --variant polite."""

from kickstand.core.variants.sticky import Sticky


class Polite(Sticky):
    """Sticky that looks at the exit before it looks at the kick."""

    exit_test_site = "after_r"
