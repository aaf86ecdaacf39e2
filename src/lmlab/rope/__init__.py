"""lmlab.rope"""
