"""lmlab.evaluate"""
