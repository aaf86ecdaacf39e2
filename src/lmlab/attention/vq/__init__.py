"""Attention over quantised keys, in linear time (Transformer-VQ, 2309.16354; kexue.fm/archives/9844)."""
