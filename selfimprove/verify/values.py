"""Decides when two numbers are equal: exactly if both are exact, else to about six significant digits.

math-verify rounds to six decimals: to it 1e-7 equals 2e-7, and (100! + 1)/101! equals 1/101!. `stand_in` replaces its
comparison of numbers, also within sets, intervals and matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import latex2sympy2
from math_verify import grader
from sympy import (
    Derivative,
    Expr,
    Float,
    Integer,
    Integral,
    Limit,
    MatrixBase,
    MatrixExpr,
    Mul,
    Product,
    Rational,
    Sum,
    UnevaluatedExpr,
    nan,
    oo,
    zoo,
)

TOLERANCE = 5e-7  # the error of rounding to six decimals
_CUT = 1.000001e-6  # so that 0.333333 is 1/3
_ROUNDING = 1e-14  # relative rounding error of computed decimals
_ENDLESS = (nan, oo, -oo, zoo)
_LONG = (
    Integral,
    Sum,
    Product,
    Limit,
    Derivative,
)  # computed as numbers, because a closed form may take for ever
_PERCENT = UnevaluatedExpr(Rational(1, 100))  # math-verify's form of "%"
_DIGITS = 60  # of a root, a logarithm or a multiple of pi


def stand_in() -> None:
    """Make math-verify compare numbers by `equal_numbers`, and use algebra only for everything else.

    It also reads plain digits directly. math-verify has sympy evaluate them as a program, a third of all its time.
    """
    by_algebra, by_sympy = grader.sympy_symbolic_eq, latex2sympy2._Latex2Sympy.parse_number
    grader.sympy_numeric_eq = equal_numbers
    grader.sympy_symbolic_eq = lambda a, b: not (_is_number(a) and _is_number(b)) and by_algebra(a, b)

    def parse_number(self: Any, text: str) -> Expr:
        plain = text.isascii() and text.isdigit() and len(text) < 1000
        return Integer(int(text)) if plain else by_sympy(self, text)

    latex2sympy2._Latex2Sympy.parse_number = parse_number


def _is_number(value: Any) -> bool:
    return isinstance(value, Expr) and bool(value.is_number)


def equal_numbers(a: Any, b: Any, float_rounding: int = 6, numeric_precision: int = 15) -> bool:
    """Whether two sympy values are the same number, or matrices of the same numbers. The last two options are ignored.

    50% equals both 50 and 0.5. Decimals are equal if they differ by less than half a millionth of the larger one or of
    1. A decimal also equals any number that gives it when cut or rounded after at least six significant digits.
    """
    if isinstance(a, MatrixBase | MatrixExpr) and isinstance(b, MatrixBase | MatrixExpr):
        a, b = a.doit(), b.doit()
        if not isinstance(a, MatrixBase) or not isinstance(b, MatrixBase) or a.shape != b.shape:
            return False
        return all(equal_numbers(one, other) for one, other in zip(a.flat(), b.flat(), strict=True))
    if not isinstance(a, Expr) or not isinstance(b, Expr):
        return False
    (a, of_hundred), (b, other_of_hundred) = _percent(a), _percent(b)
    if of_hundred != other_of_hundred:
        percent, plain = (a, b) if of_hundred else (b, a)
        return _equal(percent, plain) or _equal(percent / 100, plain)
    return _equal(a, b)


def _percent(value: Expr) -> tuple[Expr, bool]:
    if isinstance(value, Mul) and len(value.args) == 2 and value.args[1] == _PERCENT:
        return value.args[0], True
    return value, False


def _equal(a: Expr, b: Expr) -> bool:
    if not a.is_number or not b.is_number:
        return False  # math-verify does the algebra
    x, y = a.evalf(20), b.evalf(20)
    if _plainly_apart(x, y):
        return False
    if x.has(*_ENDLESS) or y.has(*_ENDLESS):
        return bool(a == b)
    scale, difference = max(abs(x), abs(y)), abs(x - y)
    if not a.has(Float) and not b.has(Float):
        return _exactly(evaluated(a), evaluated(b))
    if difference <= max(TOLERANCE * min(1, scale), _ROUNDING * scale):
        return True
    decimals = [value for value in map(evaluated, (a, b)) if isinstance(value, Float)]
    exact = not isinstance(a, Integer) and not isinstance(b, Integer)
    return bool(exact and decimals and cut(decimals, difference, scale))


def _plainly_apart(x: Expr, y: Expr) -> bool:
    """Whether two values differ by more than a hundred thousandth. This settles most wrong answers without algebra."""
    if not isinstance(x, Float) or not isinstance(y, Float):
        return False
    a, b = float(x), float(y)
    scale = max(abs(a), abs(b))
    return 1e-300 < scale < 1e300 and abs(a - b) > 1e-5 * scale


def _exactly(a: Expr, b: Expr) -> bool:
    if isinstance(a, Rational) and isinstance(b, Rational):
        return bool(a == b)
    return bool(abs((a - b).evalf(_DIGITS)) <= Rational(1, 10 ** (_DIGITS - 10)) * abs(a.evalf(20)))


@lru_cache(maxsize=256, typed=True)
def evaluated(value: Expr) -> Expr:
    """A sympy value with roots, powers and factorials computed, but not integrals, sums and the like."""
    return value if value.has(*_LONG) else value.doit()


def cut(decimals: Sequence[object], difference: Any, scale: Any) -> bool:
    """Whether cutting or rounding after the last written digit of `decimals` can explain `difference`.

    False if one has fewer than six significant digits.
    """
    written = [Decimal(str(decimal)).normalize().as_tuple() for decimal in decimals]
    if any(len(number.digits) < 6 for number in written):
        return False
    step = max(Decimal(10) ** int(number.exponent) for number in written)
    return bool(difference < float(step) * (1 - 1e-9) and difference <= _CUT * scale)
