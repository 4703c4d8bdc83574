// Calls each function of the engine once, for callgrind (bench/_instructions.py): counts of instructions do not depend on how busy a machine is.
// Usage: instructions <degree> <data limbs> <limbs per digit> <instruction set> <modulus> <root> ..., data primes first.
#include <cstdlib>

#include "../ckks/kernels/engine.h"

namespace {

using kernels::u64;

struct Case {
    kernels::Engine& engine;
    std::size_t level, rows;
    kernels::Rows data, extended;
    kernels::Buffer<u64> x, y, out;  // each has room for the largest array
    const kernels::Byte* packed;     // y, as keys and plaintexts are
};

// callgrind collects inside functions that start with measure_.
#define MEASURE(name, ...) \
    extern "C" __attribute__((noinline)) void measure_##name(Case& c) { __VA_ARGS__; }

}  // namespace

MEASURE(forward, c.engine.forward(c.x.get(), c.out.get(), 1, {0}))
MEASURE(inverse, c.engine.inverse(c.x.get(), c.out.get(), 1, {0}))
MEASURE(add, c.engine.add(c.x.get(), c.y.get(), c.out.get(), 2, 2, c.data))
MEASURE(multiply, c.engine.multiply(c.x.get(), c.y.get(), c.out.get(), 2, 1, c.data))
MEASURE(tensor, c.engine.tensor(c.x.get(), c.y.get(), c.out.get(), c.data))
MEASURE(automorphism, c.engine.automorphism(c.x.get(), c.out.get(), c.rows, 3))
MEASURE(multiply_sums, c.engine.multiply_sums({c.x.get(), c.y.get()}, c.packed, {{{0, 0}, {1, 1}}, {{1, 0}, {0, 1}}}, 2, c.out.get(), c.extended))
MEASURE(multiply_product_sums, c.engine.multiply_product_sums(c.x.get(), {{c.packed, c.level, c.level, 3, c.x.get(), 1, true, false}}, {c.y.get()}, c.packed,
                                                              {{{0, 0}, {1, 1}}}, 2, c.out.get(), c.level))
MEASURE(decompose, c.engine.decompose(c.x.get(), c.out.get(), c.level))
MEASURE(key_product, c.engine.key_product(c.x.get(), {c.packed, c.level, c.level, 3, c.x.get(), 1, true, false}, c.out.get()))
MEASURE(key_switch, c.engine.key_switch(c.x.get(), {c.packed, c.level, c.level, 3, c.x.get(), 1, true, false}, c.out.get()))
MEASURE(divided_key_switch, c.engine.key_switch(c.x.get(), {c.packed, c.level, c.level, 3, c.x.get(), 1, true, true}, c.out.get()))
MEASURE(mod_down, c.engine.mod_down(c.x.get(), c.out.get(), 2, c.level))
MEASURE(rescale, c.engine.rescale(c.x.get(), c.out.get(), 2, c.level))

int main(int argc, char** argv) {
    const std::size_t degree = std::strtoull(argv[1], nullptr, 10), data = std::strtoull(argv[2], nullptr, 10);
    std::vector<u64> moduli, roots;
    for (int i = 5; i + 1 < argc; i += 2) {
        moduli.push_back(std::strtoull(argv[i], nullptr, 10));
        roots.push_back(std::strtoull(argv[i + 1], nullptr, 10));
    }
    kernels::Engine engine(degree, moduli, roots, data, std::strtoull(argv[3], nullptr, 10), 1, argv[4]);
    const std::size_t rows = moduli.size(), level = data - 1, size = 2 * engine.digit_count(level) * rows * degree;
    Case c{engine, level, rows, {}, {}, kernels::make_buffer<u64>(size), kernels::make_buffer<u64>(size), kernels::make_buffer<u64>(size), nullptr};
    c.packed = reinterpret_cast<const kernels::Byte*>(c.y.get());
    for (std::size_t i = 0; i < rows; ++i) (i < data ? c.data : c.extended).push_back(i);
    c.extended.insert(c.extended.begin(), c.data.begin(), c.data.end());
    for (std::size_t k = 0; k < size; ++k) c.x[k] = k * k % 65521, c.y[k] = k * 40503 % 65521;  // below every prime
    engine.automorphism(c.x.get(), c.out.get(), 1, 3);  // its table is made once
    for (const auto measure : {measure_forward, measure_inverse, measure_add, measure_multiply, measure_tensor, measure_automorphism,
                               measure_multiply_sums, measure_multiply_product_sums, measure_decompose, measure_key_product, measure_key_switch,
                               measure_divided_key_switch, measure_mod_down, measure_rescale})
        measure(c);
}
