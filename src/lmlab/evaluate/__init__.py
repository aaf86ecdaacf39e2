"""lmlab.evaluate"""

__all__: list[str] = []
