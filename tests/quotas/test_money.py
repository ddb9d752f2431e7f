"""Money is exact: parsing, printing and the one rounding."""

import ast
from collections.abc import Collection, Iterable, Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotas.errors import MoneyError
from quotas.money import cost_nano, divide_up, format_amount, parse_amount, parse_price


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("0.10", 100_000_000),
        ("0.0125", 12_500_000),
        ("0", 0),
        ("-0.00", 0),
        ("12.50", 12_500_000_000),
        ("0.000000001", 1),
        ("1.50000000000", 1_500_000_000),
        ("-3", -3_000_000_000),
    ],
)
def test_decimal_text_becomes_nano_units(text, nano):
    assert parse_amount(text) == nano


@pytest.mark.parametrize(
    "text",
    ["", ".", ".5", "5.", "1e3", "+1", "1,5", " 1", "1\n", "0x1", "NaN", "inf", "٣", "1_0", "--1"],
)
def test_anything_but_plain_digits_is_refused(text):
    with pytest.raises(MoneyError):
        parse_amount(text)


@pytest.mark.parametrize("text", ["0.0000000001", "9223372037", "9" * 400])
def test_what_a_column_cannot_hold_exactly_is_refused(text):
    with pytest.raises(MoneyError):
        parse_amount(text)


def test_price_is_never_negative():
    with pytest.raises(MoneyError):
        parse_price("-0.01")


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_printed_amount_reads_back_as_itself(nano):
    assert parse_amount(format_amount(nano)) == nano


@given(st.integers(0, 10**10), st.integers(0, 10**14))
def test_cost_is_the_exact_product_rounded_half_to_even(units, price):
    exact = Decimal(units) * Decimal(price) / Decimal(1_000_000)

    assert cost_nano(units, price) == int(exact.quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


def test_halves_go_to_the_even_neighbour():
    assert [cost_nano(units, 500_000) for units in (1, 3, 5, 7)] == [0, 2, 2, 4]


@given(st.integers(-(10**18), 10**18), st.integers(1, 10**9))
def test_what_is_held_is_never_less_than_what_may_be_owed(numerator, denominator):
    held = divide_up(numerator, denominator)

    assert (held - 1) * denominator < numerator <= held * denominator


QUOTAS = Path(__file__).parents[2] / "quotas"
#: Functions, and a module's constants, whose floats are neither money nor counts: the ratios (tokens
#: per byte) that an estimator learns, when an answer was sent, and the jitter of a wait.
NOT_COUNTED = {
    "estimate.py": {
        "FIRST_RATIO", "BELOW_RARELY", "_Ratios.__init__", "_Ratios.add", "PromptEstimator.learn",
    },
    "store/pipeline.py": {"_Connection.__init__", "Pipeline.__init__", "Pipeline._keep"},
}  # fmt: skip
#: Names of seconds, and of functions that give seconds.
SECONDS = ("_s", "_S", "_second", "seconds", "ping")


class Floats(ast.NodeVisitor):
    """Lines with a float: a literal, the name, or an operation that makes one; seconds apart, which
    are told by their names. ``allowed``: qualified names that are not looked into.
    """

    def __init__(self, allowed: Collection[str] = ()) -> None:
        self.lines: list[int] = []
        self._allowed = allowed
        self._where: list[str] = []

    def visit(self, node: ast.AST) -> None:
        if self._makes_one(node):
            self.lines.append(node.lineno)
        super().visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._within(node.name, node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        arguments = node.args
        self._within(node.name, [*node.decorator_list])
        given = [*arguments.posonlyargs, *arguments.args][-len(arguments.defaults) or None :]
        defaults = [*zip(given, arguments.defaults, strict=False)]
        defaults += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        looked_at = [each.annotation for each in named if not each.arg.endswith(SECONDS)]
        looked_at += [value for each, value in defaults if not each.arg.endswith(SECONDS)]
        body: list[ast.AST | None] = [*looked_at, *node.body]
        if node.name.endswith(SECONDS):
            body = [each for each in body if not isinstance(each, ast.Return)]
        else:
            body.append(node.returns)
        self._within(node.name, [each for each in body if each is not None])

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 -- the visitor's name

    def visit_Assign(self, node: ast.Assign) -> None:
        self._assigned(node.targets, node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._assigned([node.target], node)

    def _assigned(self, targets: Sequence[ast.AST], node: ast.AST) -> None:
        names = [getattr(each, "attr", getattr(each, "id", "")) for each in targets]
        known = len(self._where) == 0 and names[0] in self._allowed
        if not known and not all(name.endswith(SECONDS) for name in names):
            self.generic_visit(node)

    def _within(self, name: str, nodes: Iterable[ast.AST]) -> None:
        self._where.append(name)
        if ".".join(self._where) not in self._allowed:
            for each in nodes:
                self.visit(each)
        self._where.pop()

    @staticmethod
    def _makes_one(node: ast.AST) -> bool:
        return (
            (isinstance(node, ast.Constant) and isinstance(node.value, float))
            or (isinstance(node, ast.Name) and node.id == "float")
            or (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div))
            or (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "round")
            or (isinstance(node, ast.Attribute) and node.attr == "timestamp")
        )


def floats_in(source: str, allowed: Collection[str] = ()) -> list[int]:
    found = Floats(allowed)
    found.visit(ast.parse(source))
    return found.lines


def test_no_float_comes_near_money_or_counts():
    for path in QUOTAS.rglob("*.py"):
        allowed = NOT_COUNTED.get(str(path.relative_to(QUOTAS)), ())
        assert floats_in(path.read_text(), allowed) == [], path


@pytest.mark.parametrize("path", NOT_COUNTED)
def test_what_is_let_through_is_there_and_needed(path):
    source = (QUOTAS / path).read_text()
    for name in NOT_COUNTED[path]:
        assert floats_in(source, NOT_COUNTED[path] - {name}), name


@pytest.mark.parametrize(
    "seeded",
    [
        "1.5", "a / b", "a /= b", "float(a)", "round(a)", "m.timestamp()", "left = 0.5",
        "def f(a: float): pass", "def f(a=0.5): pass", "def f(*, a=0.5): pass",
        "def f() -> float: pass", "def f(wait_s): return wait_s * 0.5",
        "def wait_s(): left = 1.5", "class C: tokens: float",
    ],
)  # fmt: skip
def test_the_search_for_floats_finds_each_kind(seeded):
    assert floats_in(seeded) == [1]


@pytest.mark.parametrize(
    "seconds",
    ["WAIT_S = 0.5", "self.wait_s = 0.0", "def f(now_s: float): pass", "def f(*, a_s=0.5): pass",
     "def wait_s() -> float: return 0.5", "async def ping(self) -> float: return 0.0"],
)  # fmt: skip
def test_seconds_may_be_floats(seconds):
    assert floats_in(seconds) == []
