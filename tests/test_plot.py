"""`optdsl plot`, and the gallery that is made with it: what is drawn, how, and into which file."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from optdsl import cli, interpret
from optdsl.ir import Schedule
from optdsl.pipeline import load, shipped_library
from optdsl.plot import COLOURS, INK, STEPS, Curve, PlotError, curves, draw, parse_name, plot, save

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = shipped_library()
SHIPPED = [unit for unit in LIBRARY.units if isinstance(unit, Schedule)]

# A schedule that ends, one that a metric drives without an example of it, and an optimizer.
SPECS = """\
schedule Ending {
    hyper total: int  require total > 0
                      require t <= total else "There are {total} epochs, this is {t}."
    closed = base_lr * (1 - t / (total + 1))
    example total = 20
}
schedule Waiting {
    hyper patience: int = 3
    state worst = -inf
    update(metric) {
        if metric > worst { lr = lr / (patience + 1) }
        worst = max(worst, metric)
    }
}
optimizer Descent {
    hyper lr = 0.1
    update { descend lr * grad }
}
"""


@pytest.fixture
def specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's specs, in the current folder."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.opt"
    file.write_text(SPECS)
    return file


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli.app, ["plot", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def lines(svg: Path) -> dict[str, NDArray[np.float64]]:
    """The lines of a picture by name: the places of their corners, in points."""
    found = {}
    for group in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}g"):
        name = group.get("id", "")
        if re.fullmatch(r"\w+\.\d+\.\w+", name):
            (path,) = group.findall("{http://www.w3.org/2000/svg}path")
            corners = re.findall(r"[ML] (\S+) (\S+)", path.get("d", ""))
            found[name] = np.array(corners, np.float64)
    return found


def texts(svg: Path) -> list[str]:
    tree = ElementTree.parse(svg)
    return [e.text or "" for e in tree.iter("{http://www.w3.org/2000/svg}text")]


# What is drawn


def test_curve_has_the_rates_of_the_schedule() -> None:
    (curve,) = curves(LIBRARY, ["StepLR(step_size=4, gamma=0.5)"], steps=10)
    assert curve.values == {"lr": [1.0] * 4 + [0.5] * 4 + [0.25] * 2}
    assert curve.label == ("step_size=4", "gamma=0.5")
    assert not curve.end


def test_arguments_may_be_positional_as_in_python() -> None:
    named, positional = curves(LIBRARY, ["StepLR(step_size=4, gamma=0.5)", "StepLR(4, gamma=0.5)"])
    assert named == positional


def test_name_alone_takes_the_examples_of_the_spec() -> None:
    schedule = next(s for s in SHIPPED if s.name == "StepLR")
    (example,) = schedule.examples
    alone, called = curves(LIBRARY, ["StepLR", f"StepLR({example.name}=30)"])
    assert interpret.examples(schedule) == {"step_size": 30}
    assert alone == called


def test_call_without_arguments_takes_the_defaults() -> None:
    (curve,) = curves(LIBRARY, ["LinearLR()"], steps=7)
    schedule = next(s for s in SHIPPED if s.name == "LinearLR")
    hypers = interpret.arguments(schedule, {})
    assert hypers["total_iters"] == 5
    assert curve.values["lr"] == interpret.rates(schedule, hypers, 7)
    assert curve.label == ()


def test_python_gives_functions_and_a_base_rate() -> None:
    names = [("LambdaLR", {"lr_lambda": lambda t: 1 / (t + 1)})]
    (curve,) = curves(LIBRARY, names, steps=3, base_lr=0.6)
    assert curve.values["lr"] == [0.6 * 1.0, 0.6 * 0.5, 0.6 * (1 / 3)]


def test_momentum_that_a_schedule_drives_is_drawn_below_the_rate() -> None:
    (curve,) = curves(LIBRARY, ["OneCycleLR(max_lr=1.0, total_steps=50)"], steps=50)
    rates, momenta = curve.values["lr"], curve.values["momentum"]
    assert rates.index(max(rates)) == momenta.index(min(momenta)) == 14
    upper, lower = draw([curve]).axes
    assert upper.get_position().y0 > lower.get_position().y1
    assert upper.get_xlim() == lower.get_xlim() == (0, 50)
    assert lower.get_ylabel() == "momentum"
    (still,) = curves(LIBRARY, ["OneCycleLR(1.0, 50, cycle_momentum=False)"], steps=50)
    assert list(still.values) == ["lr"]


def test_metric_that_drives_a_schedule_is_drawn_below_the_rate() -> None:
    (curve,) = curves(LIBRARY, ["ReduceLROnPlateau"], steps=40)
    assert list(curve.values) == ["lr", "metric"]
    assert min(curve.values["lr"]) < max(curve.values["lr"]) == 1.0
    assert [axes.get_ylabel() for axes in draw([curve]).axes] == ["learning rate / base", "metric"]


def test_schedule_that_ends_is_drawn_until_then(specs: Path) -> None:
    (curve,) = curves(load([specs]), ["Ending"], steps=100)
    assert len(curve.values["lr"]) == 21
    assert curve.end == "There are 20 epochs, this is 21."
    (whole,) = curves(load([specs]), ["Ending(total=99)"], steps=100)
    assert len(whole.values["lr"]) == 100
    assert not whole.end


def test_variants_of_a_schedule_share_a_panel_and_differ_in_colour_and_dashes() -> None:
    figure = draw(curves(LIBRARY, ["StepLR(10)", "LinearLR()", "StepLR(20)"]))
    first, second = figure.axes
    assert [first.get_label(), second.get_label()] == ["StepLR lr", "LinearLR lr"]
    one, other = first.get_lines()
    assert one.get_color() != other.get_color()
    assert one.get_linestyle() != other.get_linestyle()
    # Each variant's arguments have the colour of its line; on top stands the name.
    written = {text.get_text(): text.get_color() for text in first.texts}
    assert written == {
        "StepLR": INK, "step_size=10": one.get_color(), "step_size=20": other.get_color(),
    }  # fmt: skip
    assert [text.get_color() for text in second.texts] == [INK]


def test_line_jumps_between_levels_and_goes_straight_elsewhere() -> None:
    names = ["StepLR(2, gamma=0.5)", "LinearLR(0.5, total_iters=4)"]
    steps, linear = (axes.get_lines()[0] for axes in draw(curves(LIBRARY, names, steps=6)).axes)
    assert [*steps.get_xdata()] == [0, 1, 2, 2, 3, 4, 4, 5]
    assert [*steps.get_ydata()] == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert [*linear.get_xdata()] == [0, 1, 2, 3, 4, 5]
    assert [*linear.get_ydata()] == [0.5, 0.625, 0.75, 0.875, 1.0, 1.0]


@pytest.mark.parametrize("count", range(1, 8))
def test_panels_of_a_page_lie_apart_and_within_it(count: int) -> None:
    names = [schedule.name for schedule in SHIPPED[:count]]
    boxes = [axes.get_position() for axes in draw(curves(LIBRARY, names)).axes]
    assert len(boxes) >= count
    for box in boxes:
        assert 0 < box.x0 < box.x1 < 1
        assert 0 < box.y0 < box.y1 < 1
    for one, other in itertools.combinations(boxes, 2):
        beside = one.x1 < other.x0 or other.x1 < one.x0
        assert beside or one.y1 < other.y0 or other.y1 < one.y0


def test_axes_are_named() -> None:
    for axes in draw(curves(LIBRARY, ["StepLR", "CyclicLR"])).axes:
        assert axes.get_ylabel()
    figure = draw(curves(LIBRARY, ["StepLR"]))
    assert [axes.get_xlabel() for axes in figure.axes] == ["epoch"]
    # A schedule with rates of its own has no multiples of a base rate.
    labels = {
        name: draw(curves(LIBRARY, [name])).axes[0].get_ylabel()
        for name in ("StepLR", "CyclicLR", "OneCycleLR")
    }
    own = "learning rate"
    assert labels == {"StepLR": "learning rate / base", "CyclicLR": own, "OneCycleLR": own}


# Names and arguments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("StepLR", ("StepLR", (), None)),
        (" StepLR ", ("StepLR", (), None)),
        ("StepLR()", ("StepLR", (), {})),
        ("StepLR(30)", ("StepLR", (30,), {})),
        ("StepLR(30, gamma=-1e-2)", ("StepLR", (30,), {"gamma": -0.01})),
        ("M(a=[1, 2], b='x', c=None)", ("M", (), {"a": [1, 2], "b": "x", "c": None})),
    ],
)  # fmt: skip
def test_name_is_read_as_python(text: str, expected: Any) -> None:
    assert parse_name(text) == expected


NO_NAME = "'{}' is neither the name of a schedule nor a call such as StepLR(step_size=30)."
NO_LITERAL = (
    "'{}' in 'StepLR({})' is no literal: write numbers, texts, True, False, None or lists of them."
)
ONE_GROUP = "A picture shows one parameter group: give {} one value."
MISTAKES = {
    "StpLR": "Unknown schedule 'StpLR'. Did you mean 'StepLR'?",
    "Adam": "'Adam' is no schedule: it has no rates to draw.",
    **{
        text: NO_NAME.format(text) for text in ("Step LR", "", "StepLR(", "StepLR\0", "a.StepLR(3)")
    },
    **{f"StepLR({e})": NO_LITERAL.format(e, e) for e in ("*[3]", "x", "2 ** 3", "f(3)", "[x]")},
    "StepLR()": "StepLR needs step_size, an integer: StepLR(step_size=...).",
    "StepLR(stepsize=3)": "StepLR has no argument 'stepsize'. Did you mean 'step_size'?",
    "StepLR(3, step_size=3)": "StepLR is given step_size twice.",
    "StepLR(gamma=3, gamma=3)": "'StepLR(gamma=3, gamma=3)' gives gamma twice.",
    "StepLR(1, 2, 3)": "StepLR takes 2 arguments, not 3: step_size, gamma.",
    "StepLR(**{})": "In 'StepLR(**{})' '**' has no meaning.",
    "StepLR(2.5)": "StepLR: step_size is an integer, not 2.5.",
    "StepLR(True)": "StepLR: step_size is an integer, not True.",
    "StepLR(None)": "StepLR: step_size is an integer, not None.",
    "StepLR([3])": "StepLR: step_size is an integer, not [3].",
    "StepLR(3, 'half')": "StepLR: gamma is a number, not 'half'.",
    "StepLR(3, 1j)": "StepLR: gamma is a number, not 1j.",
    "StepLR(0)": "StepLR: step_size = 0 breaks the condition step_size > 0",
    "ReduceLROnPlateau(mode='mid')": 'ReduceLROnPlateau: mode is "min" or "max", not \'mid\'.',
    "ReduceLROnPlateau(min_lr=[0.1, 0.2])": ONE_GROUP.format("min_lr"),
    "ReduceLROnPlateau(factor=2)": "ReduceLROnPlateau: Factor should be < 1.0.",
    "LambdaLR()": "LambdaLR needs lr_lambda, a function, "
    "which only Python or an 'example' in the spec can give.",
    "CyclicLR(0.1, 1.0, cycle_momentum=0)": "CyclicLR: cycle_momentum is true or false, not 0.",
}


@pytest.mark.parametrize("text", MISTAKES, ids=ascii)
def test_mistake_is_told_and_nothing_is_written(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(text)
    assert result.exit_code == 1
    assert result.stderr == f"optdsl: {MISTAKES[text]}\n"
    assert not list(tmp_path.iterdir())


def test_mistake_in_a_call_raises_in_python() -> None:
    with pytest.raises(PlotError, match="LambdaLR: lr_lambda is a function, not 3"):
        plot([("LambdaLR", {"lr_lambda": 3})])
    with pytest.raises(PlotError, match=r"LambdaLR: .*nan"):
        plot([("LambdaLR", {"lr_lambda": lambda t: float("nan")})])
    with pytest.raises(PlotError, match="The base rate is a positive number, not nan"):
        plot(["StepLR"], base_lr=float("nan"))


def test_deeply_nested_argument_is_refused() -> None:
    with pytest.raises(PlotError):
        parse_name(f"StepLR({'(' * 10_000}3{')' * 10_000})")
    with pytest.raises(PlotError):
        parse_name(f"StepLR({'-' * 10_000}3)")


# Specs


def test_own_specs_are_drawn(specs: Path) -> None:
    result = run("Ending", "--specs", "mine.opt", "-o", "rates.svg")
    assert result.exit_code == 0, result.output
    assert result.stdout == "rates.svg: Ending.\n"
    assert result.stderr == "note: Ending ends early. There are 20 epochs, this is 21.\n"
    assert len(lines(Path("rates.svg"))["Ending.0.lr"]) == 21


def test_schedule_that_needs_a_metric_asks_for_an_example(specs: Path) -> None:
    result = run("Waiting", "--specs", ".")
    assert result.exit_code == 1
    assert "Waiting follows a metric, and its spec has none to show." in result.stderr
    with specs.open("a") as file:
        file.write(
            SPECS.replace("Waiting", "Shown").replace("-inf", "0.0\n    example metric(t) = t")
        )


def test_optimizer_has_no_rates_to_draw(specs: Path) -> None:
    assert "'Descent' is no schedule" in run("Descent", "--specs", "mine.opt").stderr


def test_errors_in_specs_are_reported_as_by_build(specs: Path) -> None:
    specs.write_text("schedule Broken { closed = base_lr * gama }")
    result = run("Broken", "--specs", "mine.opt")
    assert result.exit_code == 1
    assert "error[unknown-name]" in result.stderr
    assert result.stderr.endswith("optdsl: 1 problem found.\n")
    assert "missing-file" in run("Broken", "--specs", "nowhere").stderr


# Files


def test_suffix_chooses_the_kind_of_picture(tmp_path: Path) -> None:
    for name in ("a.svg", "b.png", "c.SVG"):
        plot(["StepLR"], tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "c.SVG").read_bytes()
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.png", "c.SVG"]


def test_steps_are_epochs_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("ExponentialLR(0.9)").stdout == "schedules.svg: ExponentialLR.\n"
    assert len(lines(Path("schedules.svg"))["ExponentialLR.0.lr"]) == STEPS
    assert run("ExponentialLR(0.9)", "--steps", "7").exit_code == 0
    assert len(lines(Path("schedules.svg"))["ExponentialLR.0.lr"]) == 7
    for few in ("1", "0", "-3"):
        assert "A picture needs two epochs at least" in run("StepLR", "--steps", few).stderr


def test_picture_is_the_same_whatever_the_process_and_its_settings(tmp_path: Path) -> None:
    code = (
        "from optdsl.plot import plot\nfor n in ('a.svg', 'a.png'): plot(['StepLR', 'CyclicLR'], n)"
    )
    written = []
    for seed, settings in (("1", ""), ("2", "lines.linewidth: 9\nsvg.fonttype: path\n")):
        folder = tmp_path / seed
        folder.mkdir()
        (folder / "matplotlibrc").write_text(settings)
        environment = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed, "MPLCONFIGDIR": str(folder)}
        subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=os.environ | environment, check=True
        )
        written.append([(folder / name).read_bytes() for name in ("a.svg", "a.png")])
    assert written[0] == written[1]
    assert not re.search(rb"20\d\d-\d\d-\d\d", written[0][0])


def test_drawing_leaves_matplotlibs_settings_alone(tmp_path: Path) -> None:
    with matplotlib.rc_context({"lines.linewidth": 7}):
        before = dict(matplotlib.rcParams)
        figure = plot(["StepLR"], tmp_path / "a.svg")
        assert dict(matplotlib.rcParams) == before
    assert isinstance(figure, Figure)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("rates.pdf", "'rates.pdf' does not say which picture: name it .svg or .png."),
        ("rates", "'rates' does not say which picture: name it .svg or .png."),
        ("there/rates.svg", "There is no folder 'there'."),
        ("mine.opt/rates.svg", "There is no folder 'mine.opt'."),
        ("folder.svg", "'folder.svg' is a folder."),
    ],
)
def test_file_that_cannot_be_a_picture_is_refused(specs: Path, file: str, message: str) -> None:
    Path("folder.svg").mkdir()
    result = run("StepLR", "-o", file)
    assert result.exit_code == 1
    assert result.stderr == f"optdsl: {message}\n"
    assert sorted(path.name for path in Path().iterdir()) == ["folder.svg", "mine.opt"]
    assert not list(Path("folder.svg").iterdir())


def test_picture_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rates.svg"
    file.write_text("old")

    def full(self: Figure, where: Path, **_: Any) -> None:
        Path(where).write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(
        PlotError, match=r"rates\.svg' cannot be written: No space left on device\."
    ):
        plot(["StepLR"], file)
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["rates.svg"]


def test_missing_matplotlib_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.chdir(tmp_path)
    result = run("StepLR")
    assert result.exit_code == 1
    assert result.stderr == (
        "optdsl: Pictures need matplotlib. To install it: pip install 'optdsl[plot]'\n"
    )
    assert not list(tmp_path.iterdir())


# Light and dark


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("ground", ["#ffffff", "#0d1117", "#000000"])
def test_colours_stand_out_from_light_and_dark_grounds(ground: str) -> None:
    """WCAG 2.2 asks of graphics, and of large text, a contrast of 3."""
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    for colour in (*COLOURS, INK):
        assert contrast(colour, ground) >= 3, colour
    assert contrast(INK, ground) >= 4


def test_picture_has_no_ground_of_its_own(tmp_path: Path) -> None:
    figure = plot(["StepLR", "OneCycleLR"], tmp_path / "a.png")
    assert to_rgba(figure.get_facecolor())[3] == 0
    assert all(to_rgba(axes.get_facecolor())[3] == 0 for axes in figure.axes)
    pixels = matplotlib.image.imread(tmp_path / "a.png")
    assert pixels.shape[2] == 4
    assert pixels[0, 0, 3] == 0
    assert (pixels[:, :, 3] == 0).mean() > 0.8
    assert pixels[:, :, 3].max() == 1


def test_everything_written_is_text_in_ink_or_in_a_lines_colour(tmp_path: Path) -> None:
    plot(["StepLR(30)", "StepLR(10, gamma=0.7)", "OneCycleLR"], tmp_path / "a.svg")
    written = texts(tmp_path / "a.svg")
    for text in ("StepLR", "step_size=10, gamma=0.7", "epoch", "learning rate / base", "momentum"):
        assert text in written
    svg = (tmp_path / "a.svg").read_text()
    colours = set(re.findall(r"#[0-9a-f]{6}\b", svg))
    assert colours <= {INK, *COLOURS}


# The gallery


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "docs" / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gallery_page_is_what_the_specs_say(gallery: ModuleType) -> None:
    repair = "To repair it: python docs/gallery.py"
    assert gallery.PAGE.read_text(encoding="utf-8") == gallery.page(LIBRARY), repair
    headings = re.findall(r"^## (\w+)$", gallery.page(LIBRARY), re.MULTILINE)
    assert sorted(headings) == sorted(schedule.name for schedule in SHIPPED)


def test_gallery_has_a_picture_of_every_schedule_and_no_other(gallery: ModuleType) -> None:
    expected = {f"{schedule.name.lower()}.svg" for schedule in SHIPPED}
    assert {path.name for path in gallery.FOLDER.iterdir()} == expected
    assert len(expected) >= 20


@pytest.mark.parametrize("schedule", SHIPPED, ids=lambda s: s.name)
def test_gallerys_picture_shows_what_the_spec_says(
    schedule: Schedule, gallery: ModuleType, tmp_path: Path
) -> None:
    """Lines and texts are compared: matplotlib's other bytes may change with its version."""
    save(draw(curves(LIBRARY, [schedule.name])), tmp_path / "now.svg")
    kept, now = lines(gallery.picture(schedule)), lines(tmp_path / "now.svg")
    assert kept.keys() == now.keys()
    for name, points in now.items():
        assert len(points) >= STEPS
        assert kept[name].shape == points.shape, "To repair it: python docs/gallery.py"
        assert np.allclose(kept[name], points, rtol=0, atol=1e-3)
    assert texts(gallery.picture(schedule)) == texts(tmp_path / "now.svg")


@pytest.mark.parametrize("schedule", SHIPPED, ids=lambda s: s.name)
def test_example_shows_a_schedule_that_does_something(schedule: Schedule) -> None:
    (curve,) = curves(LIBRARY, [schedule.name])
    assert len(curve.values["lr"]) == STEPS
    assert not curve.end
    rates = curve.values["lr"]
    assert max(rates) - min(rates) >= 0.3 * max(rates)
    assert schedule.doc


def distance(one: Curve, other: Curve) -> float:
    """The greatest difference of two schedules, as a part of their greatest rates."""
    scaled = [[rate / max(c.values["lr"]) for rate in c.values["lr"]] for c in (one, other)]
    return max(abs(a - b) for a, b in zip(*scaled, strict=True))


def test_examples_can_be_told_apart() -> None:
    shown: Sequence[Curve] = curves(LIBRARY, [schedule.name for schedule in SHIPPED])
    for one, other in itertools.combinations(shown, 2):
        names = (one.schedule.name, other.schedule.name)
        assert distance(one, other) > 0.05, f"{names} look the same"
