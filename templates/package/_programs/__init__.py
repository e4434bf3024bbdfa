"""The scalar work of fused kernels, a module per optimizer and average. It needs no backend."""
