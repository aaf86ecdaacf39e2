"""lmlab.recurrent"""
