"""How the CPU backend is called: threads, forks, mapped and strided arrays, and arguments that do not fit."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_backends import CPUS, assert_same, backend, everywhere, moduli, parameters, residues, some_key

from ckks.backends import make_backend
from ckks.backends.cpu import CpuBackend
from ckks.errors import EvaluationError, ParameterError
from ckks.packed import pack
from ckks.types import KeySwitchKey, Residues


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads: int) -> None:
    name = "40_bits_triples_short_end"
    one, many = backend(name, "cpu"), backend(name, "cpu", threads)
    p = one.parameters
    level = p.max_level
    x = residues(p, p.data_rows(level))
    digits = many.decompose(x, level)
    assert_same(digits, one.decompose(x, level))
    key = some_key(p, level)
    product = many.key_product(digits, key, level)
    assert_same(product, one.key_product(digits, key, level))
    assert_same(many.key_switch(x, key, level), product)
    for cpu in (one, many):
        assert_same(cpu.key_switch(x, key, level, divided=True), one.mod_down(product, level))
    assert_same(many.mod_down(product, level), one.mod_down(product, level))


def test_calls_may_run_at_the_same_time() -> None:
    cpu = backend("30_bits_quadruples", "cpu")
    p = cpu.parameters
    x = residues(p, p.data_rows(p.max_level))
    expected, results = cpu.decompose(x, p.max_level), list[Residues]()
    workers = [
        threading.Thread(target=lambda: results.append(cpu.decompose(x, p.max_level))) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    for result in results:
        assert_same(result, expected)


def test_a_memory_mapped_key_is_read_in_place(tmp_path: Path) -> None:
    cpu = backend("30_bits_pairs", "cpu")
    p = cpu.parameters
    level = p.max_level
    key = some_key(p, level)
    np.save(tmp_path / "key.npy", key.digits.data)
    mapped = np.load(tmp_path / "key.npy", mmap_mode="r")
    digits = cpu.decompose(residues(p, p.data_rows(level)), level)
    expected = cpu.key_product(digits, key, level)
    again = KeySwitchKey(dataclasses.replace(key.digits, data=mapped), level)
    assert_same(cpu.key_product(digits, again, level), expected)


def test_read_only_and_strided_inputs() -> None:
    p = parameters("40_bits")
    x = residues(p, p.data_rows(3), 2)
    x.flags.writeable = False
    everywhere("40_bits", "forward", x, (0, 1, 2, 3))
    everywhere("40_bits", "add", x[:, :2], x[:, 2:], (0, 1))


def test_transforms_take_every_kind_of_array_of_whole_polynomials(tmp_path: Path) -> None:
    cpu = backend("40_bits", "cpu")
    rows = (0, 1)
    x = residues(cpu.parameters, rows, 3)
    np.save(tmp_path / "x.npy", x)
    kinds: list[Residues] = [
        x.astype("Q"),
        x.astype("L"),
        x[None],
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        x[::-1][::-1],
    ]
    unaligned = np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].view(np.uint64).reshape(x.shape)
    for function in (cpu.forward, cpu.inverse):
        expected = function(x, rows)
        for kind in (*kinds, np.asfortranarray(x), unaligned):
            assert_same(function(kind, rows).reshape(x.shape), expected)
        assert_same(function(x, [0, np.int64(1)]), expected)  # type: ignore[arg-type]
        with pytest.raises(EvaluationError):
            function(x.ravel(), rows)
        with pytest.raises(EvaluationError):
            function(x.reshape(1, 6, -1), rows)


def test_results_own_their_memory() -> None:
    cpu = backend("40_bits", "cpu")
    x = residues(cpu.parameters, (0,))
    first = cpu.forward(x, (0,))
    kept = first.copy()
    others = [cpu.forward(x, (0,)) for _ in range(3)]
    assert len({a.ctypes.data for a in (first, *others)}) == 4 and first.flags.writeable
    view = first[:, 1:]
    del first, others
    for _ in range(3):
        cpu.inverse(x, (0,))
    assert_same(view, kept[:, 1:])


def test_a_forked_process_starts_threads_of_its_own() -> None:
    cpu = backend("30_bits_quadruples", "cpu", 2)
    p = cpu.parameters
    x = residues(p, p.data_rows(p.max_level))
    expected = cpu.decompose(x, p.max_level)
    child = os.fork()
    if child == 0:  # not a test runner any more: leaves at once, whatever happens
        same = False
        try:
            same = bool((cpu.decompose(x, p.max_level) == expected).all())
        finally:
            os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_wrong_arrays_raise() -> None:
    cpu = backend("30_bits_pairs", "cpu")
    p = cpu.parameters
    n, level = p.degree, p.max_level
    good, rows = residues(p, p.data_rows(level)), p.data_rows(level)
    wide, pair = residues(p, p.extended_rows(level), 2), residues(p, rows, 2)
    plains, wide_plains = pack(pair, moduli(p, rows)), pack(wide, moduli(p, p.extended_rows(level)))
    digits = cpu.decompose(good, level)
    key = some_key(p, level)
    calls: list[Callable[[], Residues]] = [
        lambda: cpu.forward(good.astype(np.int64), rows),  # type: ignore[arg-type]
        lambda: cpu.forward(good.astype(">u8"), rows),
        lambda: cpu.forward(good.tolist(), rows),  # type: ignore[arg-type]
        lambda: cpu.forward(good[:, : n // 2], rows),
        lambda: cpu.forward(good[0], rows),
        lambda: cpu.forward(good[:0], ()),
        lambda: cpu.forward(good, (*rows[:-1], 99)),
        lambda: cpu.inverse(good, (*rows[:-1], -1)),
        lambda: cpu.inverse(good, rows[:-1]),
        lambda: cpu.add(good, wide, rows),
        lambda: cpu.multiply(good, good[:2], rows),
        lambda: cpu.subtract(wide[:, : level + 1], residues(p, rows, 3), rows),
        lambda: cpu.multiply_scalars(good, np.ones(2, np.uint64), rows),
        lambda: cpu.multiply_scalars(good, np.full(len(rows), 2**64 - 1, np.uint64), rows),
        lambda: cpu.multiply_sums([], plains, [], rows),
        lambda: cpu.multiply_sums([pair], plains, [[]], rows),
        lambda: cpu.multiply_sums([pair], plains, [[(1, 0)]], rows),
        lambda: cpu.multiply_sums([pair], plains, [[(-1, 0)]], rows),
        lambda: cpu.multiply_sums([pair], plains, [[(0, 2)]], rows),
        lambda: cpu.multiply_sums([pair], plains, [[(0, -1)]], rows),
        lambda: cpu.multiply_sums([good], plains, [[(0, 0)]], rows),
        lambda: cpu.multiply_sums([pair[:, :2]], plains, [[(0, 0)]], rows[:2]),
        lambda: cpu.multiply_sums([pair], pack(pair[..., :3], plains.moduli), [[(0, 0)]], rows),
        lambda: cpu.multiply_sums([pair], pack(pair[..., :0], plains.moduli), [[(0, 0)]], rows),
        lambda: cpu.multiply_sums([pair], dataclasses.replace(plains, length=n // 2), [[(0, 0)]], rows),
        lambda: cpu.multiply_sums(
            [pair], dataclasses.replace(plains, data=plains.data.view(np.int8)), [[(0, 0)]], rows
        ),
        lambda: cpu.tensor(good, good, rows),
        lambda: cpu.automorphism(good, 2),
        lambda: cpu.automorphism(good[:, :-1], 3),
        lambda: cpu.decompose(good, level - 1),
        lambda: cpu.decompose(good, -1),
        lambda: cpu.decompose(good, level + 1),
        lambda: cpu.multiply_product_sums(digits, [], None, [], wide_plains, [[(0, 0)]], level),
        lambda: cpu.multiply_product_sums(digits[:-1], [(key, 3)], None, [], wide_plains, [[(0, 0)]], level),
        lambda: cpu.multiply_product_sums(digits, [(key, 2)], None, [], wide_plains, [[(0, 0)]], level),
        lambda: cpu.multiply_product_sums(digits, [(key, 3)], None, [pair], wide_plains, [[(0, 0)]], level),
        lambda: cpu.multiply_product_sums(
            digits, [(key, 3)], wide[:, 1:], [], wide_plains, [[(0, 0)]], level
        ),
        lambda: cpu.multiply_product_sums(digits, [(key, 3)], None, [], plains, [[(0, 0)]], level),
        lambda: cpu.key_product(digits[:-1], key, level),
        lambda: cpu.key_product(digits, KeySwitchKey(key.digits, level - 1), level),
        lambda: cpu.key_product(
            digits, KeySwitchKey(dataclasses.replace(key.digits, data=key.digits.data[:-1]), level), level
        ),
        lambda: cpu.key_product(
            digits, KeySwitchKey(dataclasses.replace(key.digits, length=n // 2), level), level
        ),
        lambda: cpu.key_product(digits, KeySwitchKey(key.digits, level + 1), level),
        lambda: cpu.key_product(digits, key, level, 2),
        lambda: cpu.key_product(digits, key, level, 3, good),
        lambda: cpu.key_product(digits, key, level, 3, residues(p, rows, 3)),
        lambda: cpu.key_product(digits, key, level, 3, wide[:, 1:]),
        lambda: cpu.key_switch(wide[0], key, level),
        lambda: cpu.key_switch(good, key, level, 2),
        lambda: cpu.key_switch(good, key, level, 1, good),
        lambda: cpu.mod_down(good, level),
        lambda: cpu.mod_down(wide, level - 1),
        lambda: cpu.mod_down(wide[:0], level),
        lambda: cpu.rescale(good, 0),
        lambda: cpu.rescale(good, level - 1),
    ]
    for call in calls:
        with pytest.raises(EvaluationError):
            call()


@pytest.mark.parametrize("kind", CPUS)
def test_residues_out_of_range_do_no_harm(kind: str) -> None:
    """The wire format refuses them; if one came through, the result is wrong, but no memory is touched out of bounds."""
    for name in ("30_bits_pairs", "40_bits"):
        cpu = backend(name, kind)
        p = cpu.parameters
        for value in (2**64 - 1, 2**63, 2**52 + 1, 0x7FF0000000000000):
            x = np.full((p.max_level + 1, p.degree), value, dtype=np.uint64)
            assert cpu.decompose(x, p.max_level).shape[1] == len(p.extended_rows(p.max_level))
            assert cpu.rescale(x, p.max_level).shape == (p.max_level, p.degree)


def test_unknown_backends_and_thread_counts_raise() -> None:
    for name, threads in (("tpu", 1), ("cpu", 0), ("cpu", 10**6)):
        with pytest.raises(ParameterError):
            make_backend(parameters("30_bits"), name, threads)
    with pytest.raises(ParameterError, match="portable"):
        CpuBackend(parameters("30_bits"), 1, "abacus")
