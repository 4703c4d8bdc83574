"""The roofline: its counts against the definitions of the operations, and its bound against made-up machines."""

from __future__ import annotations

import pytest
from samples import wide_parameters

from bench import roofline
from ckks.packed import packed_bytes

BUTTERFLY = 3


@pytest.fixture(scope="module")
def by_name() -> dict[str, roofline.Operation]:
    return {o.name.partition(",")[0]: o for o in roofline.operations(wide_parameters(), BUTTERFLY)}


def test_counts_are_those_of_the_definitions(by_name: dict[str, roofline.Operation]) -> None:
    p = wide_parameters()
    n, level = p.degree, p.max_level
    rows, digits = p.extended_rows(level), p.digits(level)
    transform = n // 2 * (n.bit_length() - 1) * BUTTERFLY
    assert by_name["forward NTT"].multiplications == by_name["inverse NTT"].multiplications == transform
    product = by_name["key product"]
    assert product.multiplications == len(digits) * len(rows) * 2 * n * roofline.PRODUCT
    key = packed_bytes(tuple(p.moduli[r] for r in rows), n) * 2 * len(digits)
    assert product.streamed_bytes == by_name["key switch"].streamed_bytes == key
    # Every row of every digit is transformed once, back if it is the digit's own, else forwards from a conversion.
    outside = [(stop - start, len(rows) - (stop - start)) for start, stop in digits]
    conversions = (
        sum(count * (sources + 1) * (sources > 1) for sources, count in outside) * n * roofline.PRODUCT
    )
    expected = len(digits) * len(rows) * transform + conversions + product.multiplications
    assert by_name["key switch"].multiplications == expected
    sums = by_name["linear transform"]
    assert sums.streamed_bytes == roofline.TERMS * roofline.SUMS * key // (2 * len(digits))
    for operation in by_name.values():
        assert operation.bytes > operation.streamed_bytes and operation.multiplications > 0
        operation.call()


def test_the_bound_is_the_longer_of_two_times(by_name: dict[str, roofline.Operation]) -> None:
    p, product = wide_parameters(), by_name["key product"]
    slow_memory = roofline.measure(product, roofline.Machine(1e30, BUTTERFLY, 1e3), p, 0.0)
    assert slow_memory.other == "memory" and slow_memory.other_s == product.streamed_bytes / 1e3
    slow_arithmetic = roofline.measure(product, roofline.Machine(1e3, BUTTERFLY, 1e30), p, 0.0)
    assert slow_arithmetic.other == "arithmetic" and slow_arithmetic.other_s == product.multiplications / 1e3
    assert slow_memory.ratio_min <= slow_memory.ratio <= slow_memory.ratio_max
    assert slow_memory.ratio == pytest.approx(slow_memory.more["part_of_bandwidth"])
