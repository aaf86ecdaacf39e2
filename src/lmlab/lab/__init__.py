"""lmlab.lab"""
