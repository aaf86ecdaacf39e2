"""lmlab.retry"""
