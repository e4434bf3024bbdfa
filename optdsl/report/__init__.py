"""What compiled kernels of a generated package need, without running any.

`gpu` compiles those in Triton for GPUs that need not be here, `cpu` those in C; `__main__` is the
command.
"""
