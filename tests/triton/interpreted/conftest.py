"""Triton interprets or compiles, one of both per process: `../test_interpreted.py` runs the tests
here in a process of their own."""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    import interpreter

    interpreter.install()
else:
    collect_ignore_glob = ["test_*.py"]
