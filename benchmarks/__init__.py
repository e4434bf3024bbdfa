"""How fast the generated package is, against torch and against what the machine can do.

python -m benchmarks.cpu        every optimizer on the CPU
python -m benchmarks.gpu        every optimizer on a GPU, checked and timed
python -m benchmarks.averages   averaged models
python -m benchmarks.page       docs/benchmarks.md from the files in benchmarks/results/
"""
