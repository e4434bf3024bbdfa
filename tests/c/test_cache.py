"""Compiled kernels and the folder that keeps them: whatever happens there, training goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import generated
from generated._fused import _backends, _batch, _compile
from generated._programs import adam
from optdsl import resources
from optdsl.cli import app

KERNEL = _compile.Kernel(
    "sgd",
    (
        ("COMPUTE", "float"), ("PARAM_TYPE", "F32"), ("GRAD_TYPE", "F32"),
        ("MOMENTUM_BUFFER_TYPE", "F32"), ("HAS_MOMENTUM_BUFFER", "0"), ("NESTEROV", "0"),
    ),
)  # fmt: skip
# A step of SGD, whose result is known, and how many kernels it has called.
STEP = """
    import torch, generated
    from generated._fused import _batch
    param = torch.ones(5)
    param.grad = torch.ones(5)
    generated.SGD([param], lr=0.25, fused=True).step()
    assert param.tolist() == [0.75] * 5
    print(_batch.launches)
"""


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty folder for kernels, and a process that has none."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("OPTDSL_CACHE", str(folder))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    forget(monkeypatch)
    yield folder
    clear()


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process knows of kernels, and has said."""
    monkeypatch.setattr(_compile, "_known", {})
    clear()


def clear() -> None:
    _compile._key.cache_clear()
    _compile._warn.cache_clear()
    _backends._say_once.cache_clear()


def step() -> int:
    """One step, whose result is right either way; how many kernels it has called."""
    before = _batch.launches
    param = torch.ones(5)
    param.grad = torch.ones(5)
    generated.SGD([param], lr=0.25, fused=True).step()
    assert param.tolist() == [0.75] * 5
    return _batch.launches - before


def libraries(folder: Path) -> list[Path]:
    """Kernels of algorithms in a folder, all of them whole."""
    assert all(_compile._is_whole(path) for path in folder.glob("*.so"))
    return [_compile._library(KERNEL, folder)] if _compile._library(KERNEL, folder).exists() else []


def process(code: str, **environment: str) -> subprocess.Popen[str]:
    root = resources.checkout()
    assert root is not None
    return subprocess.Popen(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(started: subprocess.Popen[str]) -> tuple[str, str]:
    said, errors = started.communicate(timeout=120)
    assert started.returncode == 0, errors
    return said, errors


def script(folder: Path, text: str) -> str:
    """A compiler of our own."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{textwrap.dedent(text)}")
    path.chmod(0o755)
    return str(path)


# What is kept


def test_a_kernel_is_compiled_once_and_loaded_from_the_folder_ever_after(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert step() == 1
    (library,) = libraries(cache)
    made = library.stat().st_mtime_ns
    forget(monkeypatch)
    monkeypatch.setattr(_compile, "COMPILERS", ())  # and needs no compiler
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert step() == 1
    assert library.stat().st_mtime_ns == made
    assert not list(cache.glob(f"{_compile.STAGING}*"))


def test_nobody_else_can_write_to_what_is_kept(cache: Path) -> None:
    """Whatever the user's programs leave to others."""
    before = os.umask(0)
    try:
        step()
    finally:
        os.umask(before)
    for path in (cache, *cache.iterdir()):
        assert path.stat().st_uid == os.getuid()
        assert not path.stat().st_mode & 0o022, path


@pytest.mark.parametrize(
    "change", ["constants", "source", "header", "flags", "architecture", "CC", "processor"]
)
def test_a_library_is_named_after_everything_it_follows_from(
    change: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernel, before = KERNEL, _compile._key(KERNEL)
    match change:
        case "constants":
            kernel = _compile.Kernel("sgd", (("COMPUTE", "double"), *KERNEL.constants[1:]))
        case "source" | "header":
            for path in _compile.SOURCES.glob("*.[ch]"):
                text = path.read_text()
                is_changed = path.name == ("sgd.c" if change == "source" else "kernel.h")
                (tmp_path / path.name).write_text(f"{text}//\n" if is_changed else text)
            monkeypatch.setattr(_compile, "SOURCES", tmp_path)
        case "flags":
            monkeypatch.setattr(_compile, "FLAGS", (*_compile.FLAGS, "-g"))
        case "architecture":
            monkeypatch.setattr(_compile, "_machine", lambda: ("-march=another",))
        case "CC":
            monkeypatch.setenv("CC", "gcc -m64")
        case "processor":
            monkeypatch.setattr(_compile, "_processor", lambda: "another one")
    clear()
    assert _compile._key(kernel) != before


def test_systems_and_kinds_of_machines_have_libraries_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whose flags may be the same."""
    names = set()
    for system, machine in (("linux", "s390x"), ("linux", "riscv64"), ("freebsd14", "riscv64")):
        with monkeypatch.context() as patch:
            patch.setattr(_compile.sys, "platform", system)
            patch.setattr(_compile.platform, "machine", lambda machine=machine: machine)
            patch.setattr(_compile, "_processor", str)
            clear()
            assert _compile._machine() == ()
            names.add(_compile._key(KERNEL))
    assert len(names) == 3


def test_the_compilers_version_is_no_part_of_the_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = _compile._key(KERNEL)
    monkeypatch.setenv("PATH", str(tmp_path))
    clear()
    assert _compile._key(KERNEL) == before


def test_an_architecture_that_is_given_is_compiled_for_on_any_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    native = _compile._machine()
    monkeypatch.setenv("OPTDSL_MARCH", "generic")
    assert _compile._processor.__wrapped__() == ""
    assert [flag.replace("native", "generic") for flag in native] == [*_compile._machine()]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"OPTDSL_CACHE": "/a"}, "/a"),
        ({"OPTDSL_CACHE": "here"}, str(Path.cwd() / "here")),
        ({"OPTDSL_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/optdsl/kernels"),
        ({"OPTDSL_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/optdsl/kernels"),
        ({"OPTDSL_CACHE": "", "XDG_CACHE_HOME": "relative"}, None),
    ],
)
def test_the_folder_is_where_the_user_wants_it(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert _compile.folder() == (None if expected is None else Path(expected))


# What goes wrong


def test_who_is_killed_while_compiling_leaves_a_folder_that_works(
    cache: Path, tmp_path: Path
) -> None:
    began = tmp_path / "began"
    slow = script(tmp_path, f'touch {began}; sleep 60; exec gcc "$@"')
    victim = process(STEP, CC=slow)
    while not began.exists():
        assert victim.poll() is None
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert list(cache.glob(f"{_compile.STAGING}*"))  # it had no time to tidy up
    assert not libraries(cache)
    said, errors = finished(process(STEP))
    assert (said, errors) == ("1\n", "")
    assert libraries(cache)


def test_what_the_dead_have_left_is_removed_a_day_later(cache: Path) -> None:
    cache.mkdir(mode=0o700)
    old, new = (Path(tempfile.mkdtemp(prefix=_compile.STAGING, dir=cache)) for _ in range(2))
    (old / "kernels.so").touch()
    os.utime(old, (0, time.time() - 3600 * _compile.STAGING_HOURS - 60))
    step()
    assert not old.exists()
    assert new.exists()


def test_processes_that_compile_at_once_all_get_the_kernel(cache: Path, tmp_path: Path) -> None:
    """No compiler begins before all four processes have asked for theirs: none found a kernel."""
    asked = tmp_path / "asked"
    asked.mkdir()
    waiting = f"""
        touch {asked}/$PPID
        until [ $(ls {asked} | wc -l) -eq 4 ]; do sleep 0.05; done
        exec gcc "$@"
    """
    slow = script(tmp_path, waiting)
    started = [process(STEP, CC=slow) for _ in range(4)]
    assert [finished(each) for each in started] == [("1\n", "")] * 4
    assert not list(cache.glob(f"{_compile.STAGING}*"))
    assert all(_compile._is_whole(path) for path in cache.glob("*.so"))


def test_threads_that_need_a_kernel_at_once_compile_it_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    run = _compile._run
    monkeypatch.setattr(_compile, "_run", lambda *given: (runs.append(given), run(*given)))
    functions: list[Any] = []
    threads = [
        threading.Thread(target=lambda: functions.append(_compile.load(KERNEL))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 2  # the compiler and the linker
    assert len(functions) == 8
    assert len({id(function) for function in functions}) == 1


def test_a_full_disk_leaves_nothing_behind_and_the_folder_works_when_there_is_room_again(
    cache: Path,
) -> None:
    """No process may write more than 4096 bytes to a file: neither the compiler nor this one."""
    limit = """
        import resource, signal
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    """
    # Python itself would keep half of what it compiles of this package.
    no_bytecode = {"PYTHONDONTWRITEBYTECODE": "1"}
    said, errors = finished(process(textwrap.dedent(limit) + textwrap.dedent(STEP), **no_bytecode))
    assert said == "0\n"
    assert errors.count("UserWarning") == 1
    assert "Operations of torch take its place" in errors
    assert not libraries(cache)
    said, errors = finished(process(STEP))
    assert (said, errors) == ("1\n", "")
    assert libraries(cache)


@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
def test_a_disk_that_is_full_late_costs_the_cache_not_the_kernel(
    call: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(_compile.os, call, full)
        with pytest.warns(UserWarning, match="cannot be kept in .*: No space left on device") as w:
            assert step() == 1
    assert len({str(each.message) for each in w}) == 1
    assert not libraries(cache)
    forget(monkeypatch)
    assert step() == 1
    assert libraries(cache)


def test_a_folder_that_cannot_be_made_costs_the_cache_not_the_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OPTDSL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="Not a directory. Set OPTDSL_CACHE to a folder that you"):
        assert step() == 1


def test_a_folder_that_is_read_only_is_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one who may write everywhere cannot write to a disk that is mounted so."""
    assert step() == 1
    forget(monkeypatch)
    temporary = _compile.tempfile.TemporaryDirectory

    def read_only(prefix: str, dir: Path | None, ignore_cleanup_errors: bool) -> Any:
        if dir is not None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return temporary(prefix=prefix, ignore_cleanup_errors=ignore_cleanup_errors)

    monkeypatch.setattr(_compile.tempfile, "TemporaryDirectory", read_only)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert step() == 1
    # What it lacks is compiled for this process.
    param = torch.ones(5, dtype=torch.float64)
    param.grad = param.clone()
    before = _batch.launches
    with pytest.warns(UserWarning, match="Read-only file system.* every process compiles them"):
        generated.SGD([param], fused=True).step()
    assert _batch.launches == before + 1


def test_no_home_costs_the_cache_not_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compile, "folder", lambda: None)
    with pytest.warns(UserWarning, match="cannot be kept: there is no home folder"):
        assert step() == 1
    with pytest.raises(_compile.Unavailable, match="there is no home folder"):
        _compile.build([KERNEL])


# Whom it trusts


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
def test_nothing_is_loaded_from_a_folder_that_others_may_write_to(
    mode: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step()
    (library,) = libraries(cache)
    library.unlink()  # the process still has it
    library.write_bytes(b"somebody else's")
    forget(monkeypatch)
    cache.chmod(mode)
    with pytest.warns(UserWarning, match="others may write to it"):
        assert step() == 1
    assert library.read_bytes() == b"somebody else's"
    with pytest.raises(_compile.Unavailable, match="others may write to it"):
        _compile.build([KERNEL])


def test_nothing_is_loaded_from_another_users_folder(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir(mode=0o700)
    if os.getuid() == 0:
        os.chown(cache, 12345, -1)
    else:
        monkeypatch.setattr(_compile.os, "getuid", lambda: cache.stat().st_uid + 1)
    with pytest.warns(UserWarning, match="it belongs to another user"):
        assert step() == 1
    assert not list(cache.iterdir())


def test_a_folder_of_the_systems_own_user_is_trusted(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an image has it, whose kernels were compiled when it was made."""
    monkeypatch.setattr(_compile.os, "getuid", lambda: 12345)
    for owner, refusal in ((0, ""), (12345, ""), (54321, "it belongs to another user")):
        status = SimpleNamespace(st_uid=owner, st_mode=0o40755)
        monkeypatch.setattr(_compile.Path, "stat", lambda _, status=status: status)
        assert _compile._refusal(cache, create=False) == refusal


# Libraries that are no good


@pytest.mark.parametrize("what", ["half of it", "nothing", "text", "another system's"])
def test_a_library_that_is_damaged_is_compiled_anew(
    what: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To load half a library would kill the process."""
    step()
    (library,) = libraries(cache)
    whole = library.read_bytes()
    damaged = {
        "half of it": whole[: len(whole) // 2],
        "nothing": b"",
        "text": b"text",
        "another system's": b"MZ" + bytes(5000) + _compile.WHOLE,
    }
    library.unlink()
    library.write_bytes(damaged[what])
    said, errors = finished(process(STEP))
    assert (said, errors) == ("1\n", "")
    assert _compile._is_whole(library)
    forget(monkeypatch)
    assert step() == 1


# Compilers that are no good


def test_a_compiler_that_does_not_exist_is_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    with pytest.warns(UserWarning, match="without the C compiler 'no-such-compiler', which"):
        assert step() == 0
    assert not cache.exists()  # there is nothing to keep


def test_a_compiler_that_fails_is_quoted_once_and_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    # What it says of the usual options counts, not of those that are tried in their place.
    broken = script(
        tmp_path,
        f"""
        echo run >> {log}
        case " $* " in *" -fopenmp "*) echo 'fatal error: it is broken';; *) echo 'error';; esac >&2
        exit 1
        """,
    )
    monkeypatch.setenv("CC", broken)
    with pytest.warns(UserWarning, match="cannot compile a kernel: fatal error: it is bro") as said:
        assert step() == 0
    runs = log.read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert step() == 0
    assert len(said) == 1
    assert "Set CC to another compiler" in str(said[0].message)
    assert log.read_text() == runs


def test_a_compiler_speaks_english_and_is_told_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its errors are looked for by their word, and whoever types means another program."""
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv(
        "CC", script(tmp_path, 'read -r line; echo "error: $LC_ALL, $line." >&2; false')
    )
    typed, write = os.pipe()
    os.write(write, 9 * b"a line\n")
    os.close(write)
    before = os.dup(0)
    os.dup2(typed, 0)
    try:
        with pytest.warns(UserWarning, match="cannot compile a kernel: error: C, [.]"):
            assert step() == 0
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(typed)


def test_a_compiler_that_hangs_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", script(tmp_path, "exec sleep 60"))
    monkeypatch.setattr(_compile, "SECONDS", 0.1)
    with pytest.warns(UserWarning, match="has not compiled a kernel in 0.1 s"):
        assert step() == 0


@pytest.mark.parametrize("lacks", ["-fopenmp", "its threads"])
def test_without_torchs_kind_of_threads_a_kernel_runs_on_one(
    lacks: str, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if lacks == "-fopenmp":  # a compiler that does not know the option
        text = 'case " $* " in *" -fopenmp "*) exit 1;; esac\nexec gcc "$@"'
    else:  # one whose library is not in the process
        header = tmp_path / "missing.h"
        header.write_text(
            "void missing_library(void);\n"
            "__attribute__((constructor)) static void load(void) { missing_library(); }\n"
        )
        text = f"""
            case " $* " in *" -fopenmp "*) exec gcc -include {header} "$@";; esac
            exec gcc "$@"
        """
    monkeypatch.setenv("CC", script(tmp_path, text))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert step() == 1
    (library,) = libraries(cache)
    assert b"GOMP_parallel" not in library.read_bytes()
    # The result does not depend on how many threads it was asked for.
    param, copy = torch.ones(1 << 20), torch.ones(1 << 20)
    param.grad = copy.grad = torch.rand(1 << 20)
    generated.SGD([param], lr=0.25, fused=True).step()
    generated.SGD([copy], lr=0.25, foreach=False).step()
    assert torch.equal(param, copy)


def test_a_library_takes_torchs_threads_and_links_to_none(cache: Path) -> None:
    step()
    (library,) = libraries(cache)
    text = library.read_bytes()
    assert b"GOMP_parallel" in text
    assert b"libgomp" not in text


# Ahead of time


def test_a_build_ahead_compiles_what_is_missing_in_few_runs(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("lion", "adagrad", "swa")
    kernels = [
        _compile.Kernel(name, (("COMPUTE", compute), *types))
        for name, slot in zip(names, ("EXP_AVG", "SUM", "SLOT"), strict=True)
        for compute, kind in (("float", "F32"), ("float", "BF16"), ("double", "F64"))
        for types in [tuple((f"{n}_TYPE", kind) for n in ("PARAM", "GRAD", slot))]
    ]
    first = _compile.build(kernels[:4])
    assert (first.folder, first.compiled, first.present) == (cache, 4, 0)
    runs = []
    run = _compile._run
    monkeypatch.setattr(_compile, "_run", lambda *given: (runs.append(given), run(*given)))
    built = _compile.build([*kernels, kernels[0]])
    assert (built.compiled, built.present) == (5, 4)
    assert built.runs <= (os.cpu_count() or 1)
    assert len(runs) == 2 * built.runs  # the compiler and the linker
    monkeypatch.setattr(_compile, "COMPILERS", ())
    assert len({id(_compile.load(kernel)) for kernel in kernels}) == len(kernels)
    assert _compile.build(kernels).runs == 0


def test_a_build_ahead_says_why_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(_compile.Unavailable, match="'false' cannot compile a kernel"):
        _compile.build([KERNEL])


def test_the_command_compiles_ahead_what_a_step_then_needs_no_compiler_for(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs, package = tmp_path / "descent.opt", tmp_path / "ahead_package"
    specs.write_text(
        "optimizer Descent {\n"
        "    hyper lr = 0.5\n"
        "    option twice = false\n"
        "    state total = zeros_like(param)\n"
        "    update {\n"
        "        total += grad\n"
        "        if twice { total += grad }\n"
        "        descend lr * total\n"
        "    }\n"
        "}\n"
    )
    command = ["build", str(specs), "-o", str(package), "--compile"]
    for compiled, present in ((5, 0), (0, 5)):  # two options, two dtypes, and the addresses
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        said = done.output.splitlines()[-1]
        assert said.startswith(f"{cache}: kernels compiled: {compiled}, runs of the compiler: "), (
            said
        )
        assert f"kernels that were there: {present}, " in said
    code = """
        import torch, ahead_package
        from ahead_package._fused import _batch, _compile
        _compile.COMPILERS = ()
        param = torch.ones(3)
        param.grad = torch.ones(3)
        ahead_package.Descent([param], twice=True, fused=True).step()
        print(param.tolist(), _batch.launches)
    """
    said, errors = finished(process(code, PYTHONPATH=str(tmp_path)))
    assert (said, errors) == ("[0.0, 0.0, 0.0] 1\n", "")
    monkeypatch.setenv("CC", "false")
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "'false' cannot compile a kernel" in done.output
    done = CliRunner().invoke(app, [*command, "--check"])
    assert done.exit_code == 1
    assert "Give --check or --compile, not both." in done.output


def test_the_command_says_that_there_is_nothing_to_compile(tmp_path: Path) -> None:
    specs, package = tmp_path / "falling.opt", tmp_path / "only_schedules"
    specs.write_text((resources.specs() / "schedules" / "exponentiallr.opt").read_text())
    done = CliRunner().invoke(app, ["build", str(specs), "-o", str(package), "--compile"])
    assert done.exit_code == 1
    assert "has no optimizers or averages" in done.output


# Processes and threads


def test_a_forked_process_steps_alone() -> None:
    """A parallel region of a child would wait for threads that only the parent has, as torch's own
    operations do, of which the child here does none on the large tensor."""
    code = """
        import os, torch, generated
        from generated._fused import _batch
        torch.set_num_threads(2)
        params = [torch.ones(1 << 20), torch.ones(7)]
        optimizer = generated.SGD(params, lr=0.25, fused=True)
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        child = os.fork()
        if child == 0:
            optimizer.step()
            assert _batch.launches == 2
            assert params[0][::100_000].tolist() == [0.5] * 11
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        optimizer.step()
        assert torch.get_num_threads() == 2
        print(params[0].unique().tolist())
    """
    assert finished(process(code)) == ("[0.5]\n", "")


def test_a_forked_process_can_compile() -> None:
    code = """
        import os, torch, generated
        from generated._fused import _batch
        torch.set_num_threads(2)
        torch.ones(1 << 20).exp()  # torch has threads
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)  # as the workers of a DataLoader do
            param = torch.ones(1 << 20)
            param.grad = torch.ones(1 << 20)
            generated.AdamW([param], lr=0.25, fused=True).step()
            assert _batch.launches == 1
            os._exit(0)
        print(os.waitpid(child, 0)[1])
    """
    assert finished(process(code)) == ("0\n", "")


@pytest.mark.parametrize("holds", ["_compile._lock", "_fused._places[optimizer].lock"])
def test_a_process_forked_while_another_thread_steps_can_step(holds: str) -> None:
    """The thread that holds a lock, to compile or to update, is not in the child."""
    code = f"""
        import os, signal, threading, torch, generated
        from generated import _fused
        from generated._fused import _batch, _compile
        param = torch.ones(5)
        param.grad = torch.ones(5)
        optimizer = generated.SGD([param], lr=0.25, fused=True)
        optimizer.step()
        param.grad = None
        param.data = param.data.double()  # whose kernel is another one
        param.grad = torch.ones(5).double()
        lock = {holds}
        held, done = threading.Event(), threading.Event()

        def stepping():
            with lock:
                held.set()
                done.wait()

        thread = threading.Thread(target=stepping)
        thread.start()
        held.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # ends whoever waits for ever
            optimizer.step()
            assert _batch.launches == 2
            os._exit(0)
        print(os.waitpid(child, 0)[1])
        done.set()
        thread.join()
    """
    said, _ = finished(process(code))  # newer Pythons warn of forks beside threads
    assert said == "0\n"


def test_optimizers_in_several_threads_do_not_disturb_each_other() -> None:
    random = torch.Generator().manual_seed(0)
    starts = [[torch.randn(n, generator=random) for n in (5, 4000)] for _ in range(4)]
    grads = [[torch.randn_like(p) for p in params] for params in starts]

    def train(params: list[torch.Tensor], given: list[torch.Tensor]) -> None:
        optimizer = generated.AdamW(params, fused=True)
        for _ in range(50):
            for param, grad in zip(params, given, strict=True):
                param.grad = grad.clone()
            optimizer.step()

    alone = [[p.clone() for p in params] for params in starts]
    for params, given in zip(alone, grads, strict=True):
        train(params, given)
    threads = [
        threading.Thread(target=train, args=pair) for pair in zip(starts, grads, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for params, others in zip(starts, alone, strict=True):
        assert all(torch.equal(p, o) for p, o in zip(params, others, strict=True))


def test_one_optimizer_in_several_threads_takes_as_many_steps() -> None:
    """Steps wait for each other: they share tables."""
    param = torch.zeros(3)
    param.grad = torch.ones(3)
    optimizer = generated.SGD([param], lr=1.0, fused=True)

    def train() -> None:
        for _ in range(100):
            optimizer.step()

    threads = [threading.Thread(target=train) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert param.tolist() == [-400.0] * 3


def test_a_step_does_not_begin_before_the_one_before_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kernel does not hold Python's lock, and reads what the next step writes."""
    scalars, alone, seen = adam.scalars, threading.Lock(), []

    def slow(*given: float) -> tuple[float, ...]:
        with contextlib.ExitStack() as stack:
            seen.append(alone.acquire(blocking=False))
            if seen[-1]:
                stack.callback(alone.release)
            time.sleep(0.1)
            return scalars(*given)

    monkeypatch.setattr(adam, "scalars", slow)
    param = torch.zeros(3)
    param.grad = torch.ones(3)
    optimizer = generated.Adam([param], fused=True)
    optimizer.step()
    threads = [threading.Thread(target=optimizer.step) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 4
