"""What a target raises."""


class Found(AssertionError):
    """Something that must not be."""
