"""lmlab.hf"""

__all__: list[str] = []
