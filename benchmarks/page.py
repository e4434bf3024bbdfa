"""docs/benchmarks.md and its pictures, from the results in benchmarks/results/.

python -m benchmarks.page           # write them
python -m benchmarks.page --check   # exit 1 if the page would change
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import goals
from benchmarks.contenders import FOREACH, LOOP, NULL, OURS, TORCH_COMPILE, TORCH_FUSED
from benchmarks.goals import Cell, is_idle, spent
from benchmarks.gpu import GRAPHS
from benchmarks.machine import SLOW, STREAMED, slowed
from optdsl.plot import COLOURS, INK, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results")
PAGE = ROOT / "docs" / "benchmarks.md"
FOLDER = ROOT / "docs" / "benchmarks"

# Quartiles further apart than this part of the median: the table says so.
NOISY = 0.1
SHOWN_SET = "resnet50"

INTRODUCTION = f"""\
# Benchmarks

How long a whole `step()` takes with this package's kernels (`fused=True`), against what torch
offers and against what the machine can do. Everything on this page is made from the files in
[benchmarks/results](../benchmarks/results) by `python -m benchmarks.page`.

```console
$ python -m benchmarks.cpu -o benchmarks/results/cpu.json
$ python -m benchmarks.gpu -o benchmarks/results/gpu.json
$ python -m benchmarks.page
```

`--quick`, `--sets`, `--optimizers` and `--dtypes` choose less; `--minutes` ends a run, on the CPU
forty for all cells if nothing is said, and `--resume` goes on with one. Both commands are for an
idle machine: they say when it was not.

## How it is measured

* The contenders of a cell, an optimizer on a set in a dtype, update the same parameters with the
  same gradients and hyperparameters in one process, each with state of its own. They take turns, in
  another order in each round: what else the machine does reaches all of them. The numbers are
  medians; `~` marks those whose quartiles are further apart than {NOISY:.0%} of the median.
  Trust ratios before times.
* On the CPU each cell has a process of its own, forked from one that has imported modules and done
  nothing else. Its heap is as fresh as that of a training: where cells before have scattered it, a
  step of a thousand small parameters takes up to twice as long. On a GPU all cells share a process.
* The memory of a virtual machine has hours, or minutes, in which its neighbours leave half of the
  bandwidth. A few times in a cell on the CPU, between rounds, all threads update a tensor of
  {STREAMED >> 20} MB in place; the bytes in a second are the cell's `stream`. A cell below
  {SLOW:.0%} of the best stream is measured again while there is time, and the row with the better
  stream stays. `‡` marks those that are below even so.
* The first two steps of each, which make state and compile, are not timed.
* A last step shows whether a contender updates the parameters. `†` marks those that do not.
* Hyperparameters are the defaults, with momentum 0.9 for SGD.
* The sets: {{sets}}
* Gradients are *kept* at their addresses, or *new* in each step, as after `zero_grad()` and a
  backward pass; small sets are measured both ways.
* The *limit* is a null kernel: an optimizer that this compiler makes from a spec with as many slots
  and next to no arithmetic (`s += lr * grad` for each). It reads and writes the same bytes by the
  same code. A copy is the wrong limit on a CPU: updates in place write to lines that they have just
  read. In lists of goals that are not reached, brackets have what the null kernel reaches in the
  same cell: where it misses a goal, too, no kernel that is called in this way and moves these bytes
  reaches it.
* GB/s count the bytes that a step cannot but move: parameters and slots once in each direction,
  gradients once.
* *for-loop* and *foreach* are torch's paths; where torch lacks the algorithm, this package's own,
  which do the same operations. *torch compile* is `torch.compile` of torch's step, in few cells, as
  each takes a minute to make.
* Extra memory is what a step needs beside parameters, gradients and state: on the CPU the growth of
  the pages in memory during a step, new gradients before it; on a GPU the most that torch's
  allocator has given out.
"""


def results(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    file = folder / f"{name}.json"
    if not file.exists():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def page(cpu: dict[str, Any] | None, gpu: dict[str, Any] | None) -> str:
    """The page. What has not been measured is said to be missing."""
    known = {**(gpu or {}).get("sets", {}), **(cpu or {}).get("sets", {})}
    sets = "; ".join(f"`{name}`, {chosen['title']}" for name, chosen in known.items())
    lines = [INTRODUCTION.format(sets=f"{sets}.")]
    for title, name, data, section in (
        ("CPU", "cpu", cpu, cpu_section),
        ("GPU", "gpu", gpu, gpu_section),
    ):
        lines.append(f"## {title}\n")
        if data is None:
            lines.append(f"Not measured yet: `python -m benchmarks.{name}` does it.\n")
        else:
            lines += section(data)
    return "\n".join(lines)


# Sections


def cpu_section(data: dict[str, Any]) -> Iterator[str]:
    yield from setting(data)
    yield from picture_lines(data)
    yield from copy_lines(data)
    yield from goal_lines(data)
    for dtype in dtypes(data):
        yield f"### CPU, {dtype}: how much longer others take\n"
        yield ratios(data, dtype, "wall")
        yield from idle_lines(data, dtype)
    yield "### CPU: part of the limit's speed that is reached, and GB/s\n"
    yield limits(data, "wall", limit)
    yield "### CPU: microseconds for a parameter\n"
    yield per_parameter(data, "wall", (OURS, TORCH_FUSED, LOOP, FOREACH))
    yield from memory_lines(data)


def gpu_section(data: dict[str, Any]) -> Iterator[str]:
    yield from setting(data)
    copied = data.get("copy", {})
    yield from copy_lines(data)
    yield from picture_lines(data)
    yield from goal_lines(data)
    for dtype in dtypes(data):
        yield f"### GPU, {dtype}: how much longer others take, until the device is done\n"
        yield ratios(data, dtype, "wall")
        yield from idle_lines(data, dtype)
        yield f"### GPU, {dtype}: the same on the device alone, between events\n"
        yield ratios(data, dtype, "device")
    if "median" in copied:
        yield "### GPU: part of a copy's bandwidth that is reached on the device, and GB/s\n"
        yield limits(data, "device", lambda cell: copy_share(cell, data))
    yield "### GPU: microseconds of the host for a parameter\n"
    yield per_parameter(data, "host", (OURS, TORCH_FUSED, *GRAPHS.values(), LOOP, FOREACH))
    yield from launch_lines(data)
    yield from check_lines(data)


def setting(data: dict[str, Any]) -> Iterator[str]:
    machine, versions = data["machine"], data["versions"]
    words = [machine["gpu"]] if data["benchmark"] == "gpu" and "gpu" in machine else []
    words += [f"{machine['processor']}, {machine['cores']} cores ({machine['vectors']})"]
    words += [f"{data['settings']['threads']} threads", f"torch {versions['torch']}"]
    words += [f"triton {versions['triton']}"] if data["benchmark"] == "gpu" else []
    words += [versions["compiler"], f"Python {versions['python']}", machine["system"]]
    yield f"Measured {data['date']} on: {'; '.join(words)}.\n"
    busy, cells = sum(c.get("busy", False) for c in data["cells"]), len(data["cells"])
    if busy:
        yield (
            f"**The machine was busy** in {busy} of {cells} cells: others used its processors, or "
            "a host took them away. Take no time from there, and ratios with care.\n"
        )
    slow = slowed(data["cells"])
    if slow:
        yield (
            f"‡ Memory was slow in {len(slow)} of {cells} cells. Whatever it limits takes as long "
            "there, and ratios are near 1.\n"
        )
    if data["skipped"]:
        yield f"**Not all was measured**: {len(data['skipped'])} cells are missing.\n"
    without = dict.fromkeys(c["optimizer"] for c in data["cells"] if c.get("launches") == 0)
    if without:
        yield f"**No kernel ran** for {', '.join(without)}: ours is what runs without one.\n"
    for note in data["notes"]:
        yield f"Note: {note}\n"


def copy_lines(data: dict[str, Any]) -> Iterator[str]:
    copied = data.get("copy", {})
    if "median" in copied:
        yield f"torch's copy moves {copied['median'] / 1e9:,.0f} GB/s, both ways counted.\n"


def goal_lines(data: dict[str, Any]) -> Iterator[str]:
    """The goals, then what a person says of these results."""
    found = list(goals.judged(data))
    yield f"### {data['benchmark'].upper()}: goals\n"
    rows = ([f"{g.where}: {g.title}", g.bound, g.worst, f"{g.reached} of {g.cells}"] for g in found)
    yield table(["goal", "", "the worst cell", "cells that reach it"], rows)
    for goal in found:
        if goal.missed:
            cells, out, missed = "; ".join(goal.missed), goal.out_of_reach, len(goal.missed)
            also = f" In {out} of these {missed} the limit misses it, too." if out else ""
            yield f"**Not reached**, {goal.title}, {goal.bound}: {cells}.{also}\n"
    remarks = RESULTS / f"{data['benchmark']}.md"
    if remarks.exists():
        yield remarks.read_text(encoding="utf-8")


def idle_lines(data: dict[str, Any], dtype: str) -> Iterator[str]:
    cells = select(data, dtype=dtype)
    found = dict.fromkeys(
        f"{name} of {c['optimizer']}" for c in cells for name in c.get("contenders", ())
        if is_idle(c, name)
    )  # fmt: skip
    if found:
        yield f"† leaves the parameters as they are, but for a few elements: {', '.join(found)}.\n"


def dtypes(data: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(cell["dtype"] for cell in data["cells"]))


def select(data: dict[str, Any], **where: str) -> list[Cell]:
    return [c for c in data["cells"] if all(c[key] == value for key, value in where.items())]


def optimizers(data: dict[str, Any]) -> list[str]:
    """Those that torch has a kernel of come first."""
    found = dict.fromkeys(cell["optimizer"] for cell in data["cells"])
    torchs = {c["optimizer"] for c in data["cells"] if TORCH_FUSED in c.get("contenders", {})}
    return sorted(found, key=lambda name: (name not in torchs, name.lower()))


def columns(data: dict[str, Any], small: bool | None = None) -> list[tuple[str, str]]:
    """Sets and gradients that were measured, in their order."""
    found = dict.fromkeys((cell["set"], cell["gradients"]) for cell in data["cells"])
    return [k for k in found if small is None or data["sets"][k[0]]["small"] == small]


def heads(data: dict[str, Any], chosen: Iterable[tuple[str, str]]) -> list[str]:
    return [
        f"`{name}`, {gradients}" if data["sets"][name]["small"] else f"`{name}`"
        for name, gradients in chosen
    ]


# Numbers


def ratio(cell: Cell, name: str, measure: str, form: str = "{:.2f}") -> str:
    found = goals.ratio(cell, name, measure)
    if found is None:
        return "-"
    text = marked(form.format(found), spent(cell, OURS, measure), spent(cell, name, measure))
    return f"{text}†" if is_idle(cell, name) else text


def marked(text: str, *times: Mapping[str, float] | None) -> str:
    noisy = any(t["high"] - t["low"] > NOISY * t["median"] for t in times if t is not None)
    return f"~{text}" if noisy else text


def in_slow(data: dict[str, Any], cell: Cell) -> str:
    return "‡" * (cell in slowed(data["cells"]))


def limit(cell: Cell) -> str:
    return ratio(cell, NULL, "wall", "{:.0%}")


def copy_share(cell: Cell, data: dict[str, Any]) -> str:
    found = goals.of_copy(cell, data)
    return "-" if found is None else marked(f"{found:.0%}", spent(cell, OURS, "device"))


def bandwidth(cell: Cell, measure: str) -> str:
    ours = spent(cell, OURS, measure)
    return "-" if ours is None else f"{cell['bytes'] / ours['median'] / 1e9:,.3g}"


# Tables


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def ratios(data: dict[str, Any], dtype: str, measure: str) -> str:
    chosen = columns(data)

    def rows() -> Iterator[list[str]]:
        for name in optimizers(data):
            found = [
                next(iter(select(data, optimizer=name, dtype=dtype, set=s, gradients=g)), None)
                for s, g in chosen
            ]
            if not any(found):
                continue
            ours = [
                "-" if c is None or (t := spent(c, OURS, measure)) is None
                else milliseconds(t) + in_slow(data, c)
                for c in found
            ]  # fmt: skip
            yield [name, "ours, ms", *ours]
            for peer in (TORCH_FUSED, TORCH_COMPILE, LOOP, FOREACH):
                row = ["-" if c is None else ratio(c, peer, measure) for c in found]
                if set(row) != {"-"}:
                    yield ["", peer, *row]

    return table(["optimizer", "against", *heads(data, chosen)], rows())


def milliseconds(time: Mapping[str, float]) -> str:
    return marked(f"{1e3 * time['median']:.3g}", time)


def limits(data: dict[str, Any], measure: str, share: Callable[[Cell], str]) -> str:
    chosen = [(dtype, *c) for dtype in dtypes(data) for c in columns(data, small=False)]

    def rows() -> Iterator[list[str]]:
        for name in optimizers(data):
            row = [name]
            for dtype, tensors, gradients in chosen:
                cells = select(data, optimizer=name, dtype=dtype, set=tensors, gradients=gradients)
                row += [
                    f"{share(c)}, {bandwidth(c, measure)}{in_slow(data, c)}" for c in cells
                ] or ["-"]
            yield row

    words = [f"{dtype}, `{tensors}`" for dtype, tensors, _ in chosen]
    return table(["optimizer", *words], rows())


def per_parameter(data: dict[str, Any], measure: str, names: Sequence[str]) -> str:
    """How long the small sets take, whose time is the host's, in float32."""
    chosen = columns(data, small=True)

    def rows() -> Iterator[list[str]]:
        for optimizer in optimizers(data):
            for name in names:
                row = [optimizer if name == names[0] else "", name]
                for tensors, gradients in chosen:
                    cells = select(
                        data, optimizer=optimizer, dtype="float32", set=tensors, gradients=gradients
                    )
                    row += [microseconds(data, c, name, measure) for c in cells] or ["-"]
                if set(row[2:]) != {"-"}:
                    yield row

    return table(["optimizer", "", *heads(data, chosen)], rows())


def microseconds(data: dict[str, Any], cell: Cell, name: str, measure: str) -> str:
    found = goals.per_parameter(data, cell, name, measure)
    return "-" if found is None else marked(f"{found:.2f}", spent(cell, name, measure))


def memory_lines(data: dict[str, Any]) -> Iterator[str]:
    rows = [row for row in data.get("memory", ()) if "error" not in row]
    if not rows:
        return
    yield "### CPU: extra memory of a step, as a part of the parameters' bytes\n"
    chosen = list(dict.fromkeys((row["dtype"], row["set"]) for row in rows))

    def lines() -> Iterator[list[str]]:
        for optimizer in dict.fromkeys(row["optimizer"] for row in rows):
            for contender in dict.fromkeys(row["contender"] for row in rows):
                shares = [
                    next((f"{r['share']:.2%}" for r in rows if (r["optimizer"], r["contender"],
                          r["dtype"], r["set"]) == (optimizer, contender, *c)), "-")
                    for c in chosen
                ]  # fmt: skip
                if set(shares) != {"-"}:
                    yield [optimizer if contender == OURS else "", contender, *shares]

    yield table(["optimizer", "", *(f"{d}, `{s}`" for d, s in chosen)], lines())


def launch_lines(data: dict[str, Any]) -> Iterator[str]:
    yield "### GPU: launches of a step, and what the kernels need\n"
    kernels = [k for c in data["cells"] for k in c.get("kernels", ())]
    launches = sorted({c["launches"] for c in data["cells"] if "launches" in c})
    yield f"Launches in a step of ours: {', '.join(map(str, launches)) or 'not counted'}.\n"
    if kernels:
        most = max(k["registers"] for k in kernels)
        spilled = max(k["spilled"] for k in kernels)
        least = min(k["occupancy"] for k in kernels)
        yield (
            f"At most {most} registers a thread, {spilled} bytes spilled, and an occupancy of "
            f"{least:.0%} at least.\n"
        )


def check_lines(data: dict[str, Any]) -> Iterator[str]:
    checks = data.get("checks", ())
    if not checks:
        return
    yield "### GPU: results held against others\n"
    rows = []
    for against in dict.fromkeys(row["against"] for row in checks):
        for dtype in dict.fromkeys(row["dtype"] for row in checks):
            chosen = [
                row for row in checks
                if (row["against"], row["dtype"]) == (against, dtype) and row["holds"] is not None
            ]  # fmt: skip
            if chosen:
                held = [row for row in chosen if row["holds"]]
                failed = [row["optimizer"] for row in chosen if not row["holds"]]
                bound = next((f"{r['absolute']:g} + {r['relative']:g} * size" for r in held), "-")
                rows.append(
                    [against, dtype, bound, f"{len(held)} of {len(chosen)}", ", ".join(failed)]
                )
    yield table(["against", "dtype", "bound of differences", "kernels within it", "not"], rows)


# The picture

# A shape and a colour for each, which tell them apart one without the other.
MARKS = {NULL: ("|", 4), TORCH_FUSED: ("o", 0), TORCH_COMPILE: ("^", 1), FOREACH: ("s", 2),
         LOOP: ("D", 3)}  # fmt: skip
LABELS = {NULL: "limit"}
TICKS = (0.2, 0.5, 1, 2, 5, 10, 20, 50)
# In inches.
LEFT, WIDTH, GAP, ROW, TOP, BOTTOM = 1.55, 3.0, 0.15, 0.2, 0.3, 0.62


def picture_name(data: dict[str, Any]) -> str:
    return f"{data['benchmark']}.svg"


def picture_lines(data: dict[str, Any]) -> Iterator[str]:
    if select(data, set=SHOWN_SET):
        text = f"How much longer others take on {data['sets'][SHOWN_SET]['title']}"
        yield f"![{text}](benchmarks/{picture_name(data)})\n"


def draw(data: dict[str, Any]) -> Figure:
    """A panel for each dtype: optimizers below each other, and for each contender a mark where its
    time is, in times of ours."""
    from matplotlib.figure import Figure

    words, names = dtypes(data), optimizers(data)
    width = LEFT + (WIDTH + GAP) * len(words)
    rows = ROW * len(names)
    height = TOP + rows + BOTTOM
    with style():
        figure = Figure(figsize=(width, height))
        for index, dtype in enumerate(words):
            left = LEFT + (WIDTH + GAP) * index
            place = (left / width, BOTTOM / height, WIDTH / width, rows / height)
            axes = figure.add_axes(place)
            draw_panel(axes, data, dtype, names)
            if index:
                axes.tick_params(labelleft=False)
        limits = [axes.get_xlim() for axes in figure.axes]
        low, high = min(low for low, _ in limits), max(high for _, high in limits)
        shown: dict[str, Any] = {}
        for axes in figure.axes:
            axes.set_xlim(low, high)
            axes.set_xticks([tick for tick in TICKS if low <= tick <= high])
            axes.set_xticks([], minor=True)
            shown.update(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(shown.values(), shown, loc="lower center", ncols=len(MARKS), frameon=False)
    return figure


def draw_panel(axes: Axes, data: dict[str, Any], dtype: str, names: Sequence[str]) -> None:
    for contender, (mark, colour) in MARKS.items():
        points = []
        for row, name in enumerate(names):
            for cell in select(data, optimizer=name, dtype=dtype, set=SHOWN_SET):
                ours, theirs = spent(cell, OURS, "wall"), spent(cell, contender, "wall")
                if ours is not None and theirs is not None:
                    points.append((theirs["median"] / ours["median"], row))
        xs, ys = [x for x, _ in points], [y for _, y in points]
        if not points:
            continue
        label = LABELS.get(contender, contender)
        gid = f"{dtype}.{contender}".replace(" ", "-")
        axes.plot(xs, ys, mark, color=COLOURS[colour], label=label, markersize=5, gid=gid)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_title(f"{dtype}: time in times of ours", fontsize=8)


def main() -> None:
    found = {name: results(name) for name in ("cpu", "gpu")}
    text = page(found["cpu"], found["gpu"])
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            raise SystemExit(f"Out of date: {PAGE.name}. To repair: python -m benchmarks.page")
        return
    if sys.argv[1:]:
        raise SystemExit("usage: python -m benchmarks.page [--check]")
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.svg"):
        old.unlink()
    for data in found.values():
        if data is not None and select(data, set=SHOWN_SET):
            save(draw(data), FOLDER / picture_name(data))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
