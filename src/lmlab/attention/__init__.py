"""lmlab.attention"""
