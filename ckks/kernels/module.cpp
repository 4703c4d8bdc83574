// Python bindings. ckks/backends/cpu.py checks shapes and speaks to users; here every size is checked once more, because a wrong
// one would read or write outside an array.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <bit>
#include <stdexcept>

#include "arrays.h"
#include "engine.h"

namespace nb = nanobind;
using namespace nb::literals;
using kernels::Engine;
using kernels::Rows;
using kernels::u64;

namespace {

using In = nb::ndarray<const u64, nb::c_contig, nb::device::cpu>;  // read-only arrays included
using InPacked = nb::ndarray<const kernels::Byte, nb::c_contig, nb::device::cpu>;  // keys and plaintexts, often memory-mapped
using Out = nb::ndarray<u64, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

// How many polynomials over `rows` rows an array holds.
template <class Array>
std::size_t polys_of(const Engine& engine, const Array& x, std::size_t rows) {
    const std::size_t size = rows * engine.degree();
    require(size > 0 && x.size() > 0 && x.size() % size == 0, "an array does not hold whole polynomials");
    return x.size() / size;
}

template <class Array>
void require_polys(const Engine& engine, const Array& x, std::size_t polys, std::size_t rows) {
    require(polys_of(engine, x, rows) == polys, "arrays of different sizes");
}

// How many polynomials an array of packed rows holds.
std::size_t packed_of(const Engine& engine, const InPacked& x, const Rows& rows, std::size_t length) {
    const std::size_t size = engine.packed_bytes(rows, length);
    require(size > 0 && x.size() > 0 && x.size() % size == 0, "an array does not hold whole packed polynomials");
    require(reinterpret_cast<std::uintptr_t>(x.data()) % sizeof(u64) == 0, "packed rows must be aligned");
    return x.size() / size;
}

void require_rows(const Engine& engine, const Rows& rows) {
    for (std::size_t row : rows) require(row < engine.row_count(), "no such row");
}

void require_level(const Engine& engine, std::size_t level) { require(level < engine.data_count(), "no such level"); }

using Transform = void (Engine::*)(const u64*, u64*, std::size_t, const Rows&);

// Looks at everything itself and makes its result, unlike the others: it is the shortest call, and both show in its time.
template <Transform function>
nb::object transform(Engine& engine, nb::handle x, const Rows& rows) {
    require_rows(engine, rows);
    const kernels::Polynomials from = kernels::polynomials(x, rows.size(), engine.degree());
    kernels::NewArray result = kernels::empty_like(x);
    {
        const nb::gil_scoped_release unlocked;
        (engine.*function)(from.data, result.data, from.count, rows);
    }
    return std::move(result.array);
}

using Binary = void (Engine::*)(const u64*, const u64*, u64*, std::size_t, std::size_t, const Rows&);

template <Binary function>
void binary(Engine& engine, const In& a, const In& b, const Out& out, const Rows& rows) {
    require_rows(engine, rows);
    const std::size_t polys = polys_of(engine, a, rows.size()), b_polys = polys_of(engine, b, rows.size());
    require_polys(engine, out, polys, rows.size());
    require(polys % b_polys == 0, "operands do not fit");
    (engine.*function)(a.data(), b.data(), out.data(), polys, b_polys, rows);
}

void multiply_scalars(Engine& engine, const In& a, const In& scalars, const Out& out, const Rows& rows) {
    require_rows(engine, rows);
    const std::size_t polys = polys_of(engine, a, rows.size());
    require_polys(engine, out, polys, rows.size());
    require(scalars.size() == rows.size(), "one scalar per row");
    engine.multiply_scalars(a.data(), scalars.data(), out.data(), polys, rows);
}

void matrix(Engine& engine, const std::vector<In>& stacks, const In& terms, const In& factors, const Out& out, std::size_t polys,
            const Rows& rows) {
    require_rows(engine, rows);
    const std::size_t member = polys * rows.size() * engine.degree(), count = terms.size() / 2;
    require(member > 0 && out.size() > 0 && out.size() % member == 0, "a stack does not hold whole ciphertexts");
    require(terms.ndim() == 2 && terms.shape(0) == 2 && factors.size() == count * rows.size(), "one output, input and factor a term");
    std::vector<const u64*> inputs;
    for (const In& stack : stacks) {
        require(stack.size() > 0 && stack.size() % member == 0, "a stack does not hold whole ciphertexts");
        for (std::size_t at = 0; at < stack.size(); at += member) inputs.push_back(stack.data() + at);
    }
    require(!inputs.empty(), "a matrix needs a stack");
    const std::size_t outputs = out.size() / member;
    kernels::Matrix m = {outputs, std::vector<std::size_t>(outputs + 1, 0), {}};
    m.columns.reserve(count);
    for (std::size_t t = 0; t < count; ++t) {
        const u64 output = terms.data()[t], input = terms.data()[count + t];
        require(output < outputs && input < inputs.size() && (t == 0 || terms.data()[t - 1] <= output), "terms must exist and lie in order");
        ++m.starts[output + 1];
        m.columns.push_back(static_cast<std::uint32_t>(input));
    }
    for (std::size_t o = 0; o < outputs; ++o) m.starts[o + 1] += m.starts[o];
    engine.matrix(inputs, polys, m, factors.data(), out.data(), rows);
}

void tensor(Engine& engine, const In& a, const In& b, const Out& out, const Rows& rows) {
    require_rows(engine, rows);
    require_polys(engine, a, 2, rows.size());
    require_polys(engine, b, 2, rows.size());
    require_polys(engine, out, 3, rows.size());
    engine.tensor(a.data(), b.data(), out.data(), rows);
}

void automorphism(Engine& engine, const In& x, const Out& out, u64 element) {
    const std::size_t rows = polys_of(engine, x, 1);
    require_polys(engine, out, rows, 1);
    require(element % 2 == 1, "a Galois element is odd");
    engine.automorphism(x.data(), out.data(), rows, element);
}

void decompose(Engine& engine, const In& x, const Out& out, std::size_t level) {
    require_level(engine, level);
    require_polys(engine, x, 1, level + 1);
    require_polys(engine, out, engine.digit_count(level), level + 1 + engine.special_count());
    engine.decompose(x.data(), out.data(), level);
}

Engine::KeyUse key_use(const Engine& engine, const InPacked& key, const std::optional<In>& moved, std::size_t level, std::size_t key_level,
                       u64 element, bool divided) {
    require_level(engine, key_level);
    require(level <= key_level, "the key is for a lower level");
    require(element % 2 == 1, "a Galois element is odd");
    require(packed_of(engine, key, engine.extended_rows(key_level), engine.degree()) == 2 * engine.digit_count(key_level),
            "not a key of this level");
    Engine::KeyUse use = {key.data(), level, key_level, element, nullptr, 0, false, divided};
    if (moved) {
        require(moved->ndim() == 3 && moved->shape(0) <= 2, "one or two polynomials can move");
        use.moved = moved->data(), use.moved_polys = moved->shape(0), use.moved_times_p = moved->shape(1) == level + 1;
        require_polys(engine, *moved, use.moved_polys, level + 1 + (use.moved_times_p ? 0 : engine.special_count()));
    }
    return use;
}

void require_product(const Engine& engine, const Engine::KeyUse& use, const Out& out) {
    require_polys(engine, out, 2, use.level + 1 + (use.divided ? 0 : engine.special_count()));
}

void key_product(Engine& engine, const In& digits, const InPacked& key, const std::optional<In>& moved, const Out& out, std::size_t level,
                 std::size_t key_level, u64 element, bool divided) {
    const Engine::KeyUse use = key_use(engine, key, moved, level, key_level, element, divided);
    require_polys(engine, digits, engine.digit_count(level), level + 1 + engine.special_count());
    require_product(engine, use, out);
    engine.key_product(digits.data(), use, out.data());
}

void key_switch(Engine& engine, const In& x, const InPacked& key, const std::optional<In>& moved, const Out& out, std::size_t level,
                std::size_t key_level, u64 element, bool divided) {
    const Engine::KeyUse use = key_use(engine, key, moved, level, key_level, element, divided);
    require_polys(engine, x, 1, level + 1);
    require_product(engine, use, out);
    engine.key_switch(x.data(), use, out.data());
}

// Whether the sums name terms and plaintexts that exist; the base-two logarithm of how many positions a value of a plaintext stands for.
unsigned check_sums(const Engine& engine, const std::vector<kernels::Products>& sums, std::size_t terms, const InPacked& plains,
                    std::size_t length, const Out& out, const Rows& rows) {
    require(!sums.empty(), "no sums");
    require_polys(engine, out, 2 * sums.size(), rows.size());
    require(length > 0 && engine.degree() % length == 0 && std::has_single_bit(engine.degree() / length), "not a period");
    const std::size_t count = packed_of(engine, plains, rows, length);
    for (const kernels::Products& sum : sums) {
        require(!sum.empty(), "a sum of nothing");
        for (const auto& [term, plain] : sum) require(term < terms && plain < count, "no such term or plaintext");
    }
    return std::bit_width(engine.degree() / length) - 1;
}

std::vector<const u64*> pairs_of(const Engine& engine, const std::vector<In>& terms, std::size_t rows) {
    std::vector<const u64*> x;
    for (const In& term : terms) require_polys(engine, term, 2, rows), x.push_back(term.data());
    return x;
}

void multiply_sums(Engine& engine, const std::vector<In>& terms, const InPacked& plains, const std::vector<kernels::Products>& sums,
                   std::size_t length, const Out& out, const Rows& rows) {
    require_rows(engine, rows);
    const unsigned log_repeat = check_sums(engine, sums, terms.size(), plains, length, out, rows);
    engine.multiply_sums(pairs_of(engine, terms, rows.size()), plains.data(), sums, log_repeat, out.data(), rows);
}

void multiply_product_sums(Engine& engine, const In& digits, const std::vector<std::tuple<InPacked, std::size_t, u64>>& keys,
                           const std::optional<In>& moved, const std::vector<In>& terms, const InPacked& plains,
                           const std::vector<kernels::Products>& sums, std::size_t length, const Out& out, std::size_t level) {
    require_level(engine, level);
    const Rows rows = engine.extended_rows(level);
    require_polys(engine, digits, engine.digit_count(level), rows.size());
    std::vector<Engine::KeyUse> products;
    for (const auto& [key, key_level, element] : keys) products.push_back(key_use(engine, key, moved, level, key_level, element, false));
    const unsigned log_repeat = check_sums(engine, sums, products.size() + terms.size(), plains, length, out, rows);
    engine.multiply_product_sums(digits.data(), products, pairs_of(engine, terms, rows.size()), plains.data(), sums, log_repeat, out.data(), level);
}

void mod_down(Engine& engine, const In& x, const Out& out, std::size_t level) {
    require_level(engine, level);
    const std::size_t polys = polys_of(engine, x, level + 1 + engine.special_count());
    require_polys(engine, out, polys, level + 1);
    engine.mod_down(x.data(), out.data(), polys, level);
}

void rescale(Engine& engine, const In& x, const Out& out, std::size_t level) {
    require_level(engine, level);
    require(level > 0, "nothing to divide by at level 0");
    const std::size_t polys = polys_of(engine, x, level + 1);
    require_polys(engine, out, polys, level);
    engine.rescale(x.data(), out.data(), polys, level);
}

}  // namespace

NB_MODULE(_cpu, m) {
    kernels::import_numpy();
    using Unlocked = nb::call_guard<nb::gil_scoped_release>;
    const auto a = "a"_a.noconvert(), b = "b"_a.noconvert(), x = "x"_a.noconvert(), out = "out"_a.noconvert();
    const auto terms = "terms"_a.noconvert(), scalars = "scalars"_a.noconvert();
    m.def("instruction_sets", &kernels::instruction_sets);
    m.def("empty", &kernels::empty, "shape"_a);
    nb::class_<Engine>(m, "Engine")
        .def(nb::init<std::size_t, const std::vector<u64>&, const std::vector<u64>&, std::size_t, std::size_t, std::size_t,
                      const std::string&>(),
             "degree"_a, "moduli"_a, "roots"_a, "data_count"_a, "digit_limbs"_a, "threads"_a, "instructions"_a)
        .def("forward", transform<&Engine::forward>, "x"_a, "rows"_a)
        .def("inverse", transform<&Engine::inverse>, "x"_a, "rows"_a)
        .def("add", binary<&Engine::add>, a, b, out, "rows"_a, Unlocked())
        .def("subtract", binary<&Engine::subtract>, a, b, out, "rows"_a, Unlocked())
        .def("multiply", binary<&Engine::multiply>, a, b, out, "rows"_a, Unlocked())
        .def("multiply_scalars", multiply_scalars, a, scalars, out, "rows"_a, Unlocked())
        .def("multiply_sums", multiply_sums, terms, "plains"_a.noconvert(), "sums"_a, "length"_a, out, "rows"_a, Unlocked())
        .def("multiply_product_sums", multiply_product_sums, "digits"_a.noconvert(), "keys"_a, "moved"_a.noconvert().none(), terms,
             "plains"_a.noconvert(), "sums"_a, "length"_a, out, "level"_a, Unlocked())
        .def("matrix", matrix, "stacks"_a.noconvert(), terms, "factors"_a.noconvert(), out, "polys"_a, "rows"_a, Unlocked())
        .def("tensor", tensor, a, b, out, "rows"_a, Unlocked())
        .def("automorphism", automorphism, x, out, "element"_a, Unlocked())
        .def("decompose", decompose, x, out, "level"_a, Unlocked())
        .def("key_product", key_product, "digits"_a.noconvert(), "key"_a.noconvert(), "moved"_a.noconvert().none(), out, "level"_a,
             "key_level"_a, "element"_a, "divided"_a, Unlocked())
        .def("key_switch", key_switch, x, "key"_a.noconvert(), "moved"_a.noconvert().none(), out, "level"_a, "key_level"_a,
             "element"_a, "divided"_a, Unlocked())
        .def("mod_down", mod_down, x, out, "level"_a, Unlocked())
        .def("rescale", rescale, x, out, "level"_a, Unlocked());
}
