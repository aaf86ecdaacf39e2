"""lmlab.tokenize"""

__all__: list[str] = []
