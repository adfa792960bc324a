"""Tensors in, tensors out: the plain definition of every kernel (`reference`) and the fast forms tested against it."""
