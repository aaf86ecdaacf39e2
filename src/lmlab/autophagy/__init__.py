"""lmlab.autophagy"""
