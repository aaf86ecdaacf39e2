"""lmlab.tokenize"""
