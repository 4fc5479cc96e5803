"""Published numbers whose conditions are all known. A number without them cannot be compared, and is left out."""

from dataclasses import dataclass

__all__ = ["PublishedNumber"]


@dataclass(frozen=True)
class PublishedNumber:
    """One published number.

    Attributes:
        model: Name of a model card.
        metric: Name of a metric of this package.
        value: The number.
        split: Test images, as the paper names them.
        gallery: Number of items among which the right one is found; 0 for a metric without a gallery.
        repeats: What was done with repeated presentations.
        budget: Data of the person that were used.
        source: Where the number was read.
        warning: What makes it hard to compare.
    """

    model: str
    metric: str
    value: float
    split: str = ""
    gallery: int | None = None
    repeats: str = ""
    budget: str = ""
    source: str = ""
    warning: str = ""

    @property
    def missing(self) -> list[str]:
        """Names of the conditions that are not recorded."""
        words = [name for name in ("split", "repeats", "budget", "source") if not getattr(self, name)]
        return words + ["gallery"] * (self.gallery is None)
