"""Fused kernels in C, a text per optimizer and average: `_fused` compiles them when a step first
needs them."""
