"""Numbers and sums as people write them, read exactly: no float ever decides whether an answer is right."""

from __future__ import annotations

import ast
import operator
import re
from decimal import ROUND_DOWN, ROUND_HALF_UP, Context, Decimal
from fractions import Fraction

_PLAIN = re.compile(r"(\d{1,3}(?:,\d{3})+|\d+)?(?:\.(\d*))?")
_LATEX = re.compile(r"(-?)\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
_SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "÷": "/"})
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_LONGEST = 400  # characters: beyond, it is not a number that anybody meant


def plain_signs(text: str) -> str:
    """One character for each sign: −, –, × and ÷ become -, *, and /."""
    return text.translate(_SIGNS)


def read_number(text: str) -> Fraction | None:
    r"""The exact value of a number as it stands in an answer; None if it is no number.

    Currency signs, a percent sign and periods at the end are dropped (50% is 50); commas must group thousands. Also 3/4,
    \frac{3}{4} and \$18.
    """
    if len(text) > _LONGEST:
        return None
    text = plain_signs(text).strip().rstrip(".").strip()
    text = re.sub(r"\\?%$|\\[!,; ]|\\text\{\s*\}", "", text).strip()
    if found := _LATEX.fullmatch(text):
        return None if int(found[3]) == 0 else Fraction(int(found[1] + "1") * int(found[2]), int(found[3]))
    negative = text.startswith("-")
    text = re.sub(r"^\\?[$€£]\s?", "", text.removeprefix("-"))
    if text.startswith("-") and not negative:  # $-5
        negative, text = True, text[1:]
    above, slash, below = text.partition("/")
    value, divisor = _unsigned(above), _unsigned(below) if slash else Fraction(1)
    if value is None or not divisor:
        return None
    return (-value if negative else value) / divisor


def _unsigned(text: str) -> Fraction | None:
    found = _PLAIN.fullmatch(text.strip())
    if found is None or not (found[1] or found[2]):
        return None
    return Fraction(f"{(found[1] or '0').replace(',', '')}.{found[2] or '0'}")


def write_number(value: Fraction) -> str:
    """The one way in which a value is written: 18, -2.5 or 1/3, without commas or zeros at the end."""
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    if value.denominator == 1 or denominator != 1:
        return str(value)
    exact = Context(prec=2 * _LONGEST).divide(Decimal(value.numerator), Decimal(value.denominator))
    return f"{exact.normalize(Context(prec=2 * _LONGEST)):f}"


def calculate(expression: str) -> Fraction | None:
    """The exact value of a sum with + - * / and brackets; None if it is none (also where it divides by zero). // is /."""
    expression = plain_signs(expression).replace(",", "").replace("$", "").replace("//", "/").strip()
    if len(expression) > _LONGEST or not re.fullmatch(r"[\d+\-*/. ()%]+", expression) or "**" in expression:
        return None
    expression = re.sub(r"(?<![\d.])(\d+\.?\d*|\.\d+)%", r"(\1/100)", expression)
    expression = re.sub(r"(?<![\d.])0+(?=\d)", "", expression)  # 05 is no number of Python's
    try:
        return _value(ast.parse(expression, mode="eval").body, expression)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.AST, source: str) -> Fraction:
    if isinstance(node, ast.Constant):
        return Fraction(ast.get_source_segment(source, node) or "")  # the digits, not the float that Python makes of them
    if isinstance(node, ast.UnaryOp):
        value = _value(node.operand, source)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left, source), _value(node.right, source))
    raise ValueError("expected a sum")


def rounds_to(value: Fraction, shown: str) -> bool:
    """Is `shown` this value: exactly, or rounded or cut at the decimals that it shows?"""
    claimed = read_number(shown)
    if claimed is None or claimed == value:
        return claimed is not None
    decimals = len(shown.partition(".")[2].rstrip("%. "))
    grid = Decimal(1).scaleb(-decimals)
    context = Context(prec=2 * _LONGEST)
    exact = context.divide(Decimal(value.numerator), Decimal(value.denominator))
    return any(Fraction(exact.quantize(grid, how, context)) == claimed for how in (ROUND_HALF_UP, ROUND_DOWN))
