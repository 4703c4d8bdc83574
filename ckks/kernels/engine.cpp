#include "engine.h"

#include <stdexcept>

namespace kernels {

namespace {

constexpr std::size_t kTile = 2048;  // positions a task: enough work to be worth handing over, at least two of them in the smallest degree

Rows range(std::size_t start, std::size_t stop) {
    Rows rows;
    for (std::size_t i = start; i < stop; ++i) rows.push_back(i);
    return rows;
}

bool runs(const VectorKernels* kernels, bool supported) { return kernels != nullptr && supported; }

const VectorKernels* find_kernels(const std::string& name) {
    for (const VectorKernels* kernels : {avx512ifma_kernels(), avx512_kernels(), avx2_kernels()})
        if (kernels && kernels->name == name) return kernels;
    return nullptr;
}

}  // namespace

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
#if defined(__x86_64__)
    if (runs(avx512ifma_kernels(), __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512ifma") && __builtin_cpu_supports("avx512vbmi")))
        names.push_back("avx512ifma");
    if (runs(avx512_kernels(), __builtin_cpu_supports("avx512f"))) names.push_back("avx512");
    if (runs(avx2_kernels(), __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) names.push_back("avx2");
#endif
    names.push_back("portable");
    return names;
}

Engine::Engine(std::size_t degree, const std::vector<u64>& moduli, const std::vector<u64>& roots, std::size_t data_count,
               std::size_t digit_limbs, std::size_t threads, const std::string& instructions)
    : degree_(degree), data_count_(data_count), digit_limbs_(digit_limbs), kernels_(nullptr), pool_(threads) {
    const std::vector<std::string> known = instruction_sets();
    if (std::find(known.begin(), known.end(), instructions) == known.end())
        throw std::invalid_argument("this machine has no such instructions");
    kernels_ = find_kernels(instructions);
    rows_.reserve(moduli.size());
    for (std::size_t i = 0; i < moduli.size(); ++i) {
        rows_.emplace_back(degree, moduli[i], roots[i], kernels_);
        const Modulus& m = rows_[i].modulus();
        u64 product = 1;
        for (std::size_t k = data_count; k < moduli.size(); ++k) product = m.multiply(product, moduli[k] % m.q);
        special_product_.push_back(product);
    }
    for (std::size_t i = 0; i < data_count; ++i) {
        digit_bases_.emplace_back(rows_, range(i / digit_limbs * digit_limbs, i + 1), degree, kernels_);
        single_bases_.emplace_back(rows_, Rows{i}, degree, kernels_);
    }
    special_basis_.emplace_back(rows_, range(data_count, moduli.size()), degree, kernels_);
}

std::size_t Engine::packed_bytes(const Rows& rows, std::size_t length) const {
    std::size_t size = 0;
    for (std::size_t row : rows) size += packed_size(rows_[row].modulus().q, length);
    return size;
}

Rows Engine::extended_rows(std::size_t level) const {
    Rows rows = range(0, level + 1);
    for (std::size_t row = data_count_; row < rows_.size(); ++row) rows.push_back(row);
    return rows;
}

void Engine::forward(const u64* x, u64* out, std::size_t polys, const Rows& rows) {
    pool_.run(polys * rows.size(), [&](std::size_t i) { rows_[rows[i % rows.size()]].forward(x + i * degree_, out + i * degree_); });
}

void Engine::inverse(const u64* x, u64* out, std::size_t polys, const Rows& rows) {
    pool_.run(polys * rows.size(), [&](std::size_t i) { rows_[rows[i % rows.size()]].inverse(x + i * degree_, out + i * degree_); });
}

void Engine::element_wise(Binary operation, const u64* a, const u64* b, u64* out, std::size_t polys, std::size_t b_polys,
                          const Rows& rows) {
    pool_.run(polys * rows.size(), [&](std::size_t i) {
        const u64* const y = b + i % (b_polys * rows.size()) * degree_;
        (rows_[rows[i % rows.size()]].*operation)(a + i * degree_, y, out + i * degree_, degree_);
    });
}

void Engine::add(const u64* a, const u64* b, u64* out, std::size_t polys, std::size_t b_polys, const Rows& rows) {
    element_wise(&Row::add, a, b, out, polys, b_polys, rows);
}

void Engine::subtract(const u64* a, const u64* b, u64* out, std::size_t polys, std::size_t b_polys, const Rows& rows) {
    element_wise(&Row::subtract, a, b, out, polys, b_polys, rows);
}

void Engine::multiply(const u64* a, const u64* b, u64* out, std::size_t polys, std::size_t b_polys, const Rows& rows) {
    element_wise(&Row::multiply, a, b, out, polys, b_polys, rows);
}

void Engine::multiply_scalars(const u64* a, const u64* scalars, u64* out, std::size_t polys, const Rows& rows) {
    pool_.run(polys * rows.size(), [&](std::size_t i) {
        rows_[rows[i % rows.size()]].scale(scalars[i % rows.size()], a + i * degree_, out + i * degree_, degree_);
    });
}

void Engine::multiply_sums(const std::vector<const u64*>& terms, const Byte* plains, const std::vector<Products>& sums, unsigned log_repeat,
                           u64* out, const Rows& rows) {
    this->sums(nullptr, {}, terms, plains, sums, log_repeat, out, rows);
}

void Engine::multiply_product_sums(const u64* digits, const std::vector<KeyUse>& products, const std::vector<const u64*>& terms,
                                   const Byte* plains, const std::vector<Products>& sums, unsigned log_repeat, u64* out, std::size_t level) {
    this->sums(digits, products, terms, plains, sums, log_repeat, out, extended_rows(level));
}

void Engine::sums(const u64* digits, const std::vector<KeyUse>& products, const std::vector<const u64*>& terms, const Byte* plains,
                  const std::vector<Products>& sums, unsigned log_repeat, u64* out, const Rows& rows) {
    const std::size_t tiles = degree_ / kTile, size = rows.size() * degree_, plain_size = packed_bytes(rows, degree_ >> log_repeat);
    std::vector<std::shared_ptr<const Permutation>> moves;
    for (const KeyUse& use : products) moves.push_back(permutation(use.element));
    pool_.run(rows.size() * tiles, [&](std::size_t task) {
        const std::size_t row = task / tiles, at = row * degree_;
        const Byte* const first = plains + packed_bytes({rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(row)}, degree_ >> log_repeat);
        std::vector<KeyOperands> made;
        for (std::size_t i = 0; i < products.size(); ++i)
            made.push_back(key_operands(digit_rows(digits, products[i].level, row), products[i], moves[i].get(), row));
        for (std::size_t i = 0; i < made.size(); ++i) {  // after the last, the first of the next stretch
            made[i].next = &made[(i + 1) % made.size()];
            made[i].ahead_by = i + 1 < made.size() ? 0 : sum_stretch(products.size() + terms.size());
        }
        std::vector<SumTerm> pairs;
        for (const KeyOperands& product : made) pairs.push_back({.product = &product});
        for (const u64* term : terms) pairs.push_back({term + at, term + size + at});
        std::vector<PlainOperands> operands;
        for (std::size_t s = 0; s < sums.size(); ++s) {
            u64* const to = out + 2 * s * size + at;
            operands.push_back({sums[s], first, plain_size, to, to + size});
        }
        rows_[rows[row]].plain_sums(pairs, operands, log_repeat, task % tiles * kTile, kTile);
    });
}

void Engine::tensor(const u64* a, const u64* b, u64* out, const Rows& rows) {
    const std::size_t size = rows.size() * degree_;
    pool_.run(rows.size(), [&](std::size_t i) {
        const std::size_t at = i * degree_;
        const u64 *const x[2] = {a + at, a + size + at}, *const y[2] = {b + at, b + size + at};
        u64* const z[3] = {out + at, out + size + at, out + 2 * size + at};
        rows_[rows[i]].tensor(x, y, z, degree_);
    });
}

std::shared_ptr<const Permutation> Engine::permutation(u64 element) {
    if (element == 1) return nullptr;
    const std::lock_guard lock(mutex_);
    std::shared_ptr<const Permutation>& kept = permutations_[element];
    if (!kept) kept = std::make_shared<const Permutation>(degree_, element, kernels_ ? kernels_->lanes : 1);
    return kept;
}

void Engine::automorphism(const u64* x, u64* out, std::size_t row_total, u64 element) {
    const auto moves = permutation(element);
    if (!moves) {
        std::copy_n(x, row_total * degree_, out);
        return;
    }
    pool_.run(row_total, [&](std::size_t row) {
        const u64* const from = x + row * degree_;
        u64* const to = out + row * degree_;
        if (kernels_) return kernels_->permute(moves->view(), from, to, degree_);
        for (std::size_t k = 0; k < degree_; ++k) to[k] = from[moves->source(k)];
    });
}

const Basis& Engine::digit_basis(std::size_t digit, std::size_t level) const {
    return digit_bases_[std::min((digit + 1) * digit_limbs_, level + 1) - 1];
}

// One scratch of Basis for each digit of x, ready to be converted.
Buffer<u64> Engine::load_digits(const u64* x, std::size_t level) {
    const std::size_t digits = digit_count(level), tiles = degree_ / kTile, stride = Basis::scratch_size(digit_limbs_, degree_);
    Buffer<u64> scratch = make_buffer<u64>(digits * stride);
    pool_.run(level + 1, [&](std::size_t i) {
        const std::size_t j = i / digit_limbs_;
        digit_basis(j, level).load(i % digit_limbs_, x + i * degree_, scratch.get() + j * stride);
    });
    pool_.run(digits * tiles, [&](std::size_t task) {
        const std::size_t j = task / tiles;
        digit_basis(j, level).settle(scratch.get() + j * stride, task % tiles * kTile, kTile);
    });
    return scratch;
}

void Engine::decompose(const u64* x, u64* out, std::size_t level) {
    const std::size_t extended = level + 1 + special_count(), stride = Basis::scratch_size(digit_limbs_, degree_);
    const std::size_t digits = digit_count(level);
    const Buffer<u64> scratch = load_digits(x, level);
    pool_.run(extended * digits, [&](std::size_t i) {  // row by row: the digits of one share the tables of its transform
        const std::size_t j = i % digits, row = extended_row(i / digits, level);
        u64* const to = out + (j * extended + i / digits) * degree_;
        if (row <= level && row / digit_limbs_ == j)
            std::copy_n(x + row * degree_, degree_, to);
        else
            digit_basis(j, level).convert(scratch.get() + j * stride, to, row);
    });
}

std::vector<const u64*> Engine::digit_rows(const u64* digits, std::size_t level, std::size_t i) const {
    std::vector<const u64*> rows;
    for (std::size_t j = 0; j < digit_count(level); ++j) rows.push_back(digits + (j * (level + 1 + special_count()) + i) * degree_);
    return rows;
}

std::vector<const u64*> Engine::convert_digits(const u64* scratch, const u64* x, std::size_t level, std::size_t i, u64* room) const {
    const std::size_t row = extended_row(i, level), stride = Basis::scratch_size(digit_limbs_, degree_);
    std::vector<const u64*> rows;
    for (std::size_t j = 0; j < digit_count(level); ++j, room += degree_ + kPadding) {
        const bool own = row <= level && row / digit_limbs_ == j;
        if (!own) digit_basis(j, level).convert_lazily(scratch + j * stride, room, row);
        rows.push_back(own ? x + row * degree_ : room);
    }
    return rows;
}

void Engine::key_product(const u64* digits, const KeyUse& use, u64* out) {
    const std::size_t tiles = degree_ / kTile, rows = use.level + 1 + special_count();
    const auto moves = permutation(use.element);
    const auto row = [&](std::size_t i, u64*) { return digit_rows(digits, use.level, i); };
    if (use.divided) return divided_product(row, use, moves.get(), out);
    pool_.run(rows * tiles, [&](std::size_t task) {
        const std::size_t i = task / tiles, start = task % tiles * kTile, at = i * degree_ + start;
        const KeyOperands operands = key_operands(row(i, nullptr), use, moves.get(), i);
        rows_[extended_row(i, use.level)].key_sum(operands, out + at, out + rows * degree_ + at, start, kTile);
    });
}

// Row by row, so that the digits of a row need not leave the second-level cache between their transforms and the product.
void Engine::key_switch(const u64* x, const KeyUse& use, u64* out) {
    const std::size_t rows = use.level + 1 + special_count();
    const auto moves = permutation(use.element);
    const Buffer<u64> scratch = load_digits(x, use.level);
    const auto row = [&](std::size_t i, u64* room) { return convert_digits(scratch.get(), x, use.level, i, room); };
    if (use.divided) return divided_product(row, use, moves.get(), out);
    pool_.run(rows, [&](std::size_t i) {
        const Buffer<u64> room = make_buffer<u64>(digit_count(use.level) * (degree_ + kPadding));
        const KeyOperands operands = key_operands(row(i, room.get()), use, moves.get(), i);
        rows_[extended_row(i, use.level)].key_sum(operands, out + i * degree_, out + (rows + i) * degree_, 0, degree_);
    });
}

// The special rows first; then each data row is divided as soon as it is there, in the second-level cache: no product passes through memory, but of as
// many of the last rows as make the special rows up to tasks for all threads.
template <class Digits>
void Engine::divided_product(const Digits& digits, const KeyUse& use, const Permutation* moves, u64* out) {
    const Basis& basis = special_basis_[0];
    const std::size_t kept = use.level + 1, padded = degree_ + kPadding, tiles = degree_ / kTile, digit_room = digit_count(use.level) * padded;
    const std::size_t stride = Basis::scratch_size(special_count(), degree_), threads = pool_.threads();
    const std::size_t early = std::min((threads - special_count() % threads) % threads, kept), late = kept - early;
    const Buffer<u64> scratch = make_buffer<u64>(2 * stride), waiting = make_buffer<u64>(2 * early * padded);
    const auto multiply = [&](std::size_t i, u64* room, u64* product) {  // row i of the product, its second polynomial `padded` after the first
        const KeyOperands operands = key_operands(digits(i, room), use, moves, i);
        rows_[extended_row(i, use.level)].key_sum(operands, product, product + padded, 0, degree_);
    };
    pool_.run(special_count() + early, [&](std::size_t i) {
        const Buffer<u64> room = make_buffer<u64>(digit_room + 2 * padded);
        u64* const product = room.get() + digit_room;
        if (i >= special_count()) return multiply(late + i - special_count(), room.get(), waiting.get() + 2 * (i - special_count()) * padded);
        multiply(kept + i, room.get(), product);
        for (std::size_t p = 0; p < 2; ++p) basis.load(i, product + p * padded, scratch.get() + p * stride);
    });
    pool_.run(2 * tiles, [&](std::size_t task) { basis.settle(scratch.get() + task / tiles * stride, task % tiles * kTile, kTile); });
    pool_.run(kept, [&](std::size_t i) {
        const Buffer<u64> room = make_buffer<u64>(digit_room + 2 * padded);
        if (i < late) multiply(i, room.get(), room.get() + digit_room);
        const u64* const product = i < late ? room.get() + digit_room : waiting.get() + 2 * (i - late) * padded;
        for (std::size_t p = 0; p < 2; ++p) basis.divide(scratch.get() + p * stride, product + p * padded, out + (p * kept + i) * degree_, i);
    });
}

KeyOperands Engine::key_operands(const std::vector<const u64*>& digits, const KeyUse& use, const Permutation* moves, std::size_t i) const {
    const std::size_t rows = use.level + 1 + special_count();
    const std::size_t row = extended_row(i, use.level), moved_rows = use.moved_times_p ? use.level + 1 : rows;
    Rows before = extended_rows(use.key_level);  // what lies before this row in each polynomial of the key
    const std::size_t size = packed_bytes(before, degree_);
    before.resize(i <= use.level ? i : i + use.key_level - use.level);
    const Byte* first = use.key + packed_bytes(before, degree_);
    KeyOperands operands;
    operands.permutation = moves;
    for (const u64* digit : digits) {
        operands.terms.push_back({digit, first, first + size});
        first += 2 * size;
    }
    if (i < moved_rows) {  // P times anything is 0 modulo the special primes
        operands.factor = use.moved_times_p ? special_product_[row] : 1;
        if (use.moved_polys > 0) operands.moved_first = use.moved + i * degree_;
        if (use.moved_polys > 1) operands.moved_second = use.moved + (moved_rows + i) * degree_;
    }
    return operands;
}

void Engine::mod_down(const u64* x, u64* out, std::size_t polys, std::size_t level) {
    divide(x, out, polys, level + 1, special_basis_[0]);
}

void Engine::rescale(const u64* x, u64* out, std::size_t polys, std::size_t level) {
    divide(x, out, polys, level, single_bases_[level]);
}

void Engine::divide(const u64* x, u64* out, std::size_t polys, std::size_t kept, const Basis& basis) {
    const std::size_t dropped = basis.source().size(), rows = kept + dropped, tiles = degree_ / kTile;
    const std::size_t stride = Basis::scratch_size(dropped, degree_);
    const Buffer<u64> scratch = make_buffer<u64>(polys * stride);
    pool_.run(dropped * polys, [&](std::size_t i) {  // row by row, here and below: the polynomials share the tables of a row's transform
        const std::size_t p = i % polys, source = i / polys;
        basis.load(source, x + (p * rows + kept + source) * degree_, scratch.get() + p * stride);
    });
    pool_.run(polys * tiles, [&](std::size_t task) {
        basis.settle(scratch.get() + task / tiles * stride, task % tiles * kTile, kTile);
    });
    pool_.run(kept * polys, [&](std::size_t i) {
        const std::size_t p = i % polys, row = i / polys;
        basis.divide(scratch.get() + p * stride, x + (p * rows + row) * degree_, out + (p * kept + row) * degree_, row);
    });
}

}  // namespace kernels
