"""The series before the kick: an atomic list of slot changes."""

from typing import ClassVar

from kickstand.core.variants.base import Variant


class RegionList(Variant):
    """The batch ioctl: an atomic list of slot changes instead of a kick; KICK and RESUME do nothing."""

    protects_by: ClassVar[str] = "list"
