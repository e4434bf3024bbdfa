"""Random updates over the whole language -> texts of specs, which are valid but for a few.

What `random_specs` draws has the shapes of the selection rules, and one parameter. These have what
several parameters can differ in: scalar slots, branches on them and on properties, slots that exist
for some, loops, rows and columns, matrices, views of them.
"""

from __future__ import annotations

from random import Random

HEAD = """\
optimizer Random {
    hyper c                     = 0.3
    hyper d                     = 0.7
    hyper rounds: int           = 2
    hyper mode: "one" | "other" = "one"
    hyper low: optional real    = LOW
    hyper ends: (e, optional f) = (0.4, HIGH)
    option flag                 = false
CLAUSES
    state step       = 0
    state s          = 0
    state p          = c
    state COUNT    = 0
    state a          = zeros_like(param)
    state b          = full_like(param, c)
UNSET
    state w          = zeros_like(param) when param.ndim > 1
    state row_slot   = zeros_like(param, dim=-1) when param.ndim > 1
    state col_slot   = zeros_like(param, dim=-2) when param.ndim > 1
    output state out = zeros_like(param)
    update {
"""
# fmt: off
LITERALS = ("0.5", "2", "0.137", "1", "0", "-0.25")
# Patterns: T is a tensor like the parameter, N a number, R a number of its elements, B a condition;
# where the parameter is a matrix M is one, V rows, Q a square. Nothing grows without bound.
TENSORS = (
    "T + N * T", "T - N * T", "T + N * T * T / (T * T + 1)", "T - T * T / (1 + abs(T))",
    "T + N * T / (abs(T) + 1)", "T - T / (abs(T) + 2)", "lerp(T, T, N / (1 + abs(N)))",
    "lerp(T, T, c)", "max(T, T)", "min(T, N)", "max(N, T) + N * T", "sqrt(abs(T)) + N", "-T",
    "N / (abs(T) + 1)", "N - T", "N * T + N * T", "T / 2 - T", "T * N", "T / (1 + abs(N))",
    "sin(T * T)", "exp(-abs(T)) * N", "abs(T) ** 0.5", "T * rsqrt(T * T + 1)", "T / (R + 1)",
    "T * R / (1 + abs(R))", "T + N * T * R / (R * R + 30)", "where(T > 0.137, T, N * T)",
    "where(T > N or T < -1.03, T, T)", "where(N > 0.41, T, N)", "(T > 0.211) * T", "(T + T) * N",
    "T + T", "0.5 * T", "T - T", "T * where(T > 0.3, 1, N)", "cast(T, float64)",
    "T + cast(T, float32)", "cast(T, bfloat16) * N",
)
NUMBERS = (
    "N", "N + N", "N * N / (1 + abs(N))", "N - 0.5 * N", "N / (abs(N) + 1)", "max(N, N)",
    "min(N, 3)", "sqrt(abs(N))", "exp(-abs(N))", "sin(N)", "-N", "0.5 * N", "N if B else N",
    "where(B, N, N)", "0.5 ** abs(N)", "1 - c ** (step + 1)", "step % 3", "(n + step) // 2",
    "host(R) / (1 + host(R))",
)
REDUCED = (
    "norm(T)", "mean(T)", "dot(T, T) / 40", "sum(T) / 20", "max_abs(T)", "norm(T) + mean(T)",
    "R / (1 + abs(R))", "max(R, N)", "R * N", "where(R > N, R, N)", "norm(T + N * T)",
)
CONDITIONS = (
    "flag", "c > 0.4", "not flag", "s > 1.2", "step > 1", "step == 2", "n > 1", "p < 0.35",
    "param.ndim == 1", "param.numel > 5", "param.ndim > 1", 'mode == "one"', "unset(low)", "N > N",
    "step % 2 == 0", "(param.ndim > 0 and param.shape[-1] > 2)", "B and B", "B or B", "not B",
)
ROWS = (
    "mean(M, dim=-1)", "norm(M, dim=-1)", "V * N", "V + N * V", "sqrt(abs(V)) + 1",
    "sum(M, dim=-1) / 4", "V / (1 + R)", "max(V, N)", "V * V / (1 + abs(V))",
    "where(V > 0.2, V, N)",
)
COLUMNS = (
    "lerp(col_slot, norm(grad, dim=-2), c)", "0.5 * col_slot + mean(a, dim=-2)", "col_slot * N",
    "col_slot + norm(b, dim=0) * 0.5",
)
SQUARES = (
    "transpose(M) @ M / 10", "addmm(Q, Q, Q, 0.5, N / (10 + abs(N)))", "Q @ Q / (norm(Q) + 1)",
    "Q + N * Q", "transpose(Q)", "Q * 0.5", "Q / (norm(Q) + 1)", "transpose(Q) + Q",
)
BUILT_IN = (
    "param", "grad", "a", "b", "w", "u", "row_slot", "col_slot", "top",
    "c", "d", "e", "s", "p", "step", "n", "rounds", "param.ndim",
)
# fmt: on


class Program:
    """One program, statement by statement."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.lines: list[str] = []
        self.indent = "        "
        self.made = 0
        self.ended: list[str] = []
        # Names by what they stand for: tensors, numbers, reduced, rows, columns, wide matrices
        # transposed, squares.
        self.names: dict[str, list[str]] = {
            "T": ["param", "grad", "a", "b", "a", "grad"],
            "N": ["c", "d", "s", "p", "step", "n", "e", "rounds", "param.ndim"],
            "R": [], "V": [], "H": [], "W": [], "Q": [],
        }  # fmt: skip
        self.depth = 0
        self.in_matrix = False
        # One in three is what a kernel can compute: element by element.
        self.plain = self.chance(3)

    def pick(self, options: tuple[str, ...] | list[str]) -> str:
        return self.random.choice(options)

    def chance(self, of: int) -> bool:
        return self.random.randrange(of) == 0

    def line(self, text: str) -> None:
        self.lines.append(self.indent + text)

    # Expressions

    def fill(self, pattern: str, depth: int = 0) -> str:
        if self.plain and any(mark in pattern for mark in ("R", "cast", "//", "%")):
            simple = "N > N" if pattern in CONDITIONS else "N - 0.5 * N"
            pattern = "T * N" if "T" in pattern else simple
        text = ""
        for place, mark in enumerate(pattern):
            around = pattern[max(0, place - 1) : place] + pattern[place + 1 : place + 2]
            if mark in "TNRBVMQ" and not any(x.isalnum() or x == "_" for x in around):
                text += self.operand(mark, depth)
            else:
                text += mark
        return text

    def operand(self, mark: str, depth: int) -> str:
        nest = depth < 2 and self.chance(6)
        match mark:
            case "T":
                if self.in_matrix and self.chance(5):
                    return f"({self.matrix_as_tensor(depth + 1)})"
                return f"({self.tensor(depth + 1)})" if nest else self.pick(self.names["T"])
            case "N":
                if nest:
                    return f"({self.number(depth + 1)})"
                return self.pick(self.names["N"]) if self.chance(2) else self.pick(LITERALS)
            case "R" if self.plain:
                return self.operand("N", depth)
            case "R":
                if self.names["R"] and self.chance(2):
                    return self.pick(self.names["R"])
                if depth > 2:
                    return f"norm({self.pick(self.names['T'])})"
                return f"({self.fill(self.pick(REDUCED), depth + 1)})"
            case "B":
                if depth > 2:
                    return self.pick(CONDITIONS[:8])
                return f"({self.fill(self.pick(CONDITIONS), depth + 1)})"
            case "M":
                return self.pick([*self.names["T"], f"({self.tensor(depth + 1)})"])
            case "V":
                pool = self.names["V"]
                return self.pick(pool) if pool else f"mean({self.pick(self.names['T'])}, dim=-1)"
            case "Q":
                pool = self.names["Q"]
                if pool and not nest:
                    return self.pick(pool)
                tensor = self.pick(self.names["T"])
                return f"(transpose({tensor}) @ {tensor} / 10)"
            case _:
                raise AssertionError(mark)

    def matrix_as_tensor(self, depth: int) -> str:
        """An expression of rows, columns or matrices that has the parameter's shape."""
        choices = ["outer", "square", "turned"]
        match self.pick(choices):
            case "outer":
                column = self.pick(self.names["H"]) if self.names["H"] else "norm(grad, dim=-2)"
                return f"{self.operand('V', depth)} * {column}"
            case "square":
                return f"{self.pick(self.names['T'])} @ {self.operand('Q', depth)}"
            case _:
                turned = self.names["W"]
                inner = self.pick(turned) if turned else f"transpose({self.pick(self.names['T'])})"
                return f"transpose({inner})"

    def tensor(self, depth: int = 0) -> str:
        return self.fill(self.pick(TENSORS), depth)

    def number(self, depth: int = 0) -> str:
        return self.fill(self.pick(NUMBERS), depth)

    # Statements

    def fresh(self, mark: str) -> str:
        """A new name, which may be one of a block that has ended."""
        known = {name for names in self.names.values() for name in names}
        ended = [n for n in self.ended if n not in known]
        if ended and self.chance(3):
            return self.pick(ended)
        self.made += 1
        return f"{mark.lower()}{self.made}"

    def block(self, count: int) -> None:
        before = {mark: list(names) for mark, names in self.names.items()}
        self.indent += "    "
        self.depth += 1
        for _ in range(count):
            self.statement()
        self.depth -= 1
        self.indent = self.indent[4:]
        self.ended += [n for names in self.names.values() for n in names if n not in BUILT_IN]
        self.names = before

    def statement(self) -> None:
        choices = [self.let, self.let, self.assign, self.assign, self.assign, self.assign]
        choices += [self.scalar, self.scalar, self.let_number, self.assign_number]
        if self.depth < 3:
            choices += [self.branch] if self.plain else [self.branch, self.repeat]
        if self.in_matrix:
            choices += [self.matrix] * 5
        elif self.depth < 3 and not self.plain:
            choices += [self.guard]
        choices += [self.descend]
        self.random.choice(choices)()

    def let(self) -> None:
        if self.chance(4) and not self.plain:
            name = self.fresh("R")
            self.line(f"let {name} = {self.fill(self.pick(REDUCED))}")
            self.names["R"].append(name)
            return
        name = self.fresh("T")
        value = self.pick(self.names["T"]) if self.chance(2) else self.tensor()
        self.line(f"let {name} = {value}")
        self.names["T"] += [name, name]

    def assign(self) -> None:
        target = self.pick([*self.names["T"], "out"])
        match self.random.randrange(12):
            case 0:
                value = self.operand("N", 0)
            case 1:
                value = self.operand("R", 0)
            case 2 | 3 | 4:
                value = self.pick(self.names["T"])
            case _:
                value = self.tensor()
        operator = self.pick(["=", "=", "=", "+=", "-=", "*="])
        if operator == "*=" and target != "out":
            value = f"({value}) / (1 + abs({value}))" if self.chance(2) else "0.5"
        self.line(f"{target} {operator} {value}")

    def let_number(self) -> None:
        name = self.fresh("N")
        self.line(f"let {name} = {self.number()}")
        self.names["N"] += [name, name]

    def assign_number(self) -> None:
        local = [n for n in self.names["N"] if n[0] == "n" and n != "n"]
        if local:
            operator = self.pick(["=", "+=", "-="])
            self.line(f"{self.pick(local)} {operator} {self.number()}")
        elif self.names["R"] and not self.plain:
            self.line(f"{self.pick(self.names['R'])} = {self.fill(self.pick(REDUCED))}")

    def scalar(self) -> None:
        match self.random.randrange(6):
            case 0:
                self.line(f"n {self.pick(['+=', '-=', '*='])} {self.pick(['1', '2', '0'])}")
            case 1:
                self.line(f"step {self.pick(['+=', '-='])} 1")
            case 2:
                self.line(f"{self.pick(['s', 'p'])} = {self.number()}")
            case 3:
                self.line(f"{self.pick(['s', 'p'])} *= {self.pick(['0.5', 'c', '1 - c', 'd'])}")
            case _:
                operand = self.operand("N", 1)
                self.line(f"{self.pick(['s', 'p'])} {self.pick(['+=', '-='])} {operand}")

    def branch(self) -> None:
        condition = self.fill(self.pick(CONDITIONS))
        condition = condition if condition.count(" if ") == 0 else f"({condition})"
        self.line(f"if {condition} {{")
        self.block(self.random.randint(1, 3))
        if self.chance(2):
            if self.chance(3):
                self.line(f"}} else if {self.fill(self.pick(CONDITIONS[:9]))} {{")
                self.block(self.random.randint(0, 2))
            self.line("} else {")
            self.block(self.random.randint(0, 2))
        self.line("}")

    def repeat(self) -> None:
        self.line(f"repeat {self.pick(['2', '3', 'rounds', '1', '0'])} {{")
        self.block(self.random.randint(1, 4))
        self.line("}")

    def guard(self) -> None:
        """Rows, columns and matrices, where the parameter is one."""
        self.line("if param.ndim > 1 {")
        before = {mark: list(names) for mark, names in self.names.items()}
        self.names["T"] += ["w", "w"]
        self.names["V"] += ["row_slot"]
        self.names["H"] += ["col_slot"]
        self.in_matrix = True
        self.block(self.random.randint(2, 6))
        self.in_matrix = False
        self.names = before
        self.line("}")

    def matrix(self) -> None:
        match self.random.randrange(9):
            case 0:
                name = self.fresh("V")
                self.line(f"let {name} = {self.fill(self.pick(ROWS))}")
                self.names["V"].append(name)
            case 1:
                name = self.fresh("H")
                reduced = f"{self.pick(['mean', 'norm', 'sum'])}({self.operand('M', 1)}, dim=-2)"
                self.line(f"let {name} = {reduced}")
                self.names["H"].append(name)
            case 2:
                name = self.fresh("Q")
                self.line(f"let {name} = {self.fill(self.pick(SQUARES))}")
                self.names["Q"].append(name)
            case 3:
                name = self.fresh("W")
                self.line(f"let {name} = transpose({self.pick(self.names['T'])})")
                self.names["W"].append(name)
            case 4 if self.names["W"]:
                name = self.pick(self.names["W"])
                turned = f"transpose({self.pick(self.names['T'])})"
                value = self.pick([*self.names["W"], turned])
                end = self.pick(["", " * 0.5", " + c", f" / (1 + abs({value}))"])
                self.line(f"{name} {self.pick(['=', '+=', '-='])} {value}{end}")
            case 5 if self.names["Q"]:
                self.line(f"{self.pick(self.names['Q'])} = {self.fill(self.pick(SQUARES))}")
            case 6:
                name = self.pick([*self.names["V"], "row_slot"])
                self.line(f"{name} = {self.fill(self.pick(ROWS))}")
            case 7:
                self.line(f"col_slot = {self.fill(self.pick(COLUMNS))}")
            case _:
                target = self.pick(self.names["T"])
                self.line(f"{target} = {self.matrix_as_tensor(0)}")

    def descend(self) -> None:
        value = self.pick([*self.names["T"], f"({self.tensor()})", self.operand("N", 0)])
        self.line(f"descend {self.pick(['d *', '0.1 *', '', 'c * s *', 'p *', '-'])} {value}")

    def text(self) -> str:
        if self.chance(2):
            self.line("step += 1")
        uses = self.chance(3)
        if uses:
            value = self.pick(["grad", "param", "grad", self.tensor()])
            other = self.pick(["0.5 * u", "u + grad", "grad", self.tensor()])
            self.line(f"if unset(u) {{ u = {value} }} else {{ u = {other} }}")
            self.names["T"] += ["u", "u"]
        if self.chance(3):
            self.line("if not unset(low) { grad = max(grad, low) }")
        if self.chance(4):
            self.line("let top = f if not unset(f) else 0.9")
            self.names["N"] += ["top"]
        for _ in range(self.random.randint(2, 9)):
            self.statement()
        self.descend()
        parts = {
            "LOW": self.pick(["unset", "-0.6"]),
            "HIGH": self.pick(["unset", "0.8"]),
            "CLAUSES\n": self.pick(["", "", "    complex none\n", "    complex decay, descend\n"]),
            # A slot that is an integer has no kernel.
            "COUNT ": "n      " if self.plain else "n: int ",
            "UNSET\n": "    state u          = unset\n" if uses else "",
        }
        head = HEAD
        for mark, part in parts.items():
            head = head.replace(mark, part)
        return "\n".join([head + self.lines[0], *self.lines[1:], "    }", "}", ""])


def program(random: Random) -> str:
    """The text of a spec. A few are refused: a name may be widened to a tensor behind a place that
    reads it as a number."""
    return Program(random).text()
