"""lmlab.autophagy"""

__all__: list[str] = []
