"""lmlab.losses"""
