"""Numbers and names as people read them. Every function takes what JSON or Arrow holds, including nothing at all."""

from __future__ import annotations

import math
import re
from typing import Any, TypeGuard

ABSENT = "–"
SIGNIFICANT_DIGITS = 4
LONGEST_NAME = 120
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+!|~&-])")
_STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def is_finite(value: Any) -> TypeGuard[float]:
    """Is this a number that can be printed and drawn?"""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, decimals: int | None = None) -> str:
    """A number with thousands separators; ``decimals`` places, or four significant digits, or a power of ten.

    >>> number(1234567), number(0.123456), number(-12.3456, 2), number(3.2e-9), number(float("nan"))
    ('1,234,567', '0.1235', '−12.35', '3.2 × 10⁻⁹', '–')
    """
    if not is_finite(value):
        return ABSENT
    if isinstance(value, int):
        return _with_minus(f"{value:,}")
    if decimals is not None:
        return _with_minus(f"{value:,.{decimals}f}")
    if value == 0.0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if not -4 <= exponent < 9:
        return _scientific(value)
    return _with_minus(f"{value:,.{max(0, SIGNIFICANT_DIGITS - 1 - exponent)}f}")


def setting(value: Any) -> str:
    """A parameter as it was given, without padding.

    >>> setting(0.05), setting(67108864), setting("edge"), setting(True)
    ('0.05', '67,108,864', 'edge', 'yes')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and is_finite(value):
        return _with_minus(f"{value:.6g}")
    return number(value) if value is None or isinstance(value, int | float) else visible(value)


def percent(value: Any, decimals: int = 1) -> str:
    """A proportion in percent.

    >>> percent(0.0384), percent(1), percent(None)
    ('3.8%', '100.0%', '–')
    """
    return _with_minus(f"{100.0 * value:.{decimals}f}%") if is_finite(value) else ABSENT


def p_value(value: Any) -> str:
    """A p-value: three decimals, or its power of ten when it is smaller than that can say.

    >>> p_value(0.0421), p_value(3.1e-12), p_value(0.0), p_value(None)
    ('0.042', '3.1 × 10⁻¹²', '< 10⁻³⁰⁰', '–')
    """
    if not is_finite(value):
        return ABSENT
    if value == 0.0:
        return "< 10⁻³⁰⁰"
    return f"{value:.3f}" if value >= 0.001 else _scientific(value)


def visible(text: Any, longest: int = LONGEST_NAME) -> str:
    """A name from outside, safe to look at: one line, controls and direction marks as escapes, the middle cut if long.

    Escaping for HTML is the template's work; this keeps a name from looking like something it is not.

    >>> visible("a\\nb"), visible("x" * 10, longest=5)
    ('a\\\\nb', 'xx…xx')
    """
    shown = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in str(text))
    if len(shown) <= longest:
        return shown
    half = (longest - 1) // 2
    return f"{shown[:half]}…{shown[-half:]}"


def visible_lines(text: Any, longest: int) -> str:
    """The same for what has lines, such as DuckDB's words on a query with the place in it."""
    return "\n".join(visible(line, longest) for line in str(text).split("\n"))


def harmless(text: str) -> str:
    """Text for a terminal, lines and all: what would steer the terminal or turn the direction of writing as escapes.

    >>> harmless("a\\x1b[2J\\nb\\x9b")
    'a\\\\x1b[2J\\nb\\\\x9b'
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def markdown_text(text: Any) -> str:
    """Text from outside as text in Markdown: no markup, no link, no row of its own, and nobody is mentioned.

    A mention is looked for after the markup is rendered, where an escape is gone: the zero-width space is not.

    >>> markdown_text("<img>|*a*")
    '\\\\<img\\\\>\\\\|\\\\*a\\\\*'
    """
    return _MARKDOWN.sub(r"\\\1", visible(text, longest=1000)).replace("@", "@\u200b")


def code_span(text: Any) -> str:
    """Text from outside as code in Markdown, outside of tables."""
    return f"`{visible(text).replace('`', '')}`"


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return _with_minus(f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}")


def _with_minus(digits: str) -> str:
    return digits.replace("-", "−")
