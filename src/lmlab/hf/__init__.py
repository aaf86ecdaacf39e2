"""lmlab.hf"""
