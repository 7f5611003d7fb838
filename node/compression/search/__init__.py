"""Which steps make a model as small, as quick and as good as somebody asks: tried, measured, and the best one taken."""

from .compressing import Found, TargetMissed, compress

__all__ = ["Found", "TargetMissed", "compress"]
