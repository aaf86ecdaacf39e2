"""lmlab.retry"""

__all__: list[str] = []
