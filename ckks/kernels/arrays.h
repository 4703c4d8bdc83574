// NumPy's arrays through its C interface. By way of buffer protocols an argument and a result cost as much as a twentieth of a transform.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <vector>

#include "vector.h"

namespace kernels {

// Before any of the others. Throws nanobind::python_error.
void import_numpy();

// An uninitialised array of u64 whose memory is kept for the next one. Throws std::bad_alloc, std::invalid_argument.
nanobind::object empty(const std::vector<std::size_t>& shape);

// x, if it is a C-contiguous array of u64 that ends with the axes [rows][degree] and is not empty; read-only ones included.
struct Polynomials {
    const u64* data;
    std::size_t count;
};
// Throws std::invalid_argument for anything else.
Polynomials polynomials(nanobind::handle x, std::size_t rows, std::size_t degree);

struct NewArray {
    nanobind::object array;
    u64* data;
};
NewArray empty_like(nanobind::handle array);

}  // namespace kernels
