#include "arrays.h"

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/arrayobject.h>

#include <algorithm>
#include <stdexcept>

#include "memory.h"

namespace kernels {

namespace nb = nanobind;

namespace {

constexpr std::size_t kMostAxes = 32;  // NumPy 1 has no more
constexpr std::size_t kMostBytes = std::size_t(1) << 62;

PyArrayObject* as_array(nb::handle x) { return reinterpret_cast<PyArrayObject*>(x.ptr()); }

NewArray make(std::size_t axes, const npy_intp* shape) {
    std::size_t bytes = sizeof(u64);
    for (std::size_t i = 0; i < axes; ++i)
        if (__builtin_mul_overflow(bytes, static_cast<std::size_t>(shape[i]), &bytes) || bytes > kMostBytes) throw std::bad_alloc();
    void* const block = take_block(bytes);
    const nb::object owner = nb::steal(PyCapsule_New(block, nullptr, [](PyObject* capsule) {
        give_block(PyCapsule_GetPointer(capsule, nullptr), reinterpret_cast<std::size_t>(PyCapsule_GetContext(capsule)));
    }));
    if (!owner.is_valid()) {
        give_block(block, bytes);
        throw nb::python_error();
    }
    PyCapsule_SetContext(owner.ptr(), reinterpret_cast<void*>(bytes));
    nb::object array = nb::steal(PyArray_SimpleNewFromData(static_cast<int>(axes), shape, NPY_UINT64, block));
    if (!array.is_valid() || PyArray_SetBaseObject(as_array(array), owner.inc_ref().ptr()) < 0) throw nb::python_error();
    return {std::move(array), static_cast<u64*>(block)};
}

}  // namespace

void import_numpy() {
    if (_import_array() < 0) throw nb::python_error();
}

nb::object empty(const std::vector<std::size_t>& shape) {
    if (shape.size() > kMostAxes) throw std::invalid_argument("too many axes");
    npy_intp lengths[kMostAxes];
    std::copy(shape.begin(), shape.end(), lengths);
    return make(shape.size(), lengths).array;
}

Polynomials polynomials(nb::handle x, std::size_t rows, std::size_t degree) {
    const auto require = [](bool condition) {
        if (!condition) throw std::invalid_argument("not a contiguous array of whole polynomials");
    };
    require(PyArray_Check(x.ptr()));
    PyArrayObject* const array = as_array(x);
    const int axes = PyArray_NDIM(array);
    const npy_intp* const shape = PyArray_DIMS(array);
    require(PyArray_ISUNSIGNED(array) && PyArray_ITEMSIZE(array) == sizeof(u64) && PyArray_IS_C_CONTIGUOUS(array) && PyArray_ISNOTSWAPPED(array));
    require(axes >= 2 && static_cast<std::size_t>(shape[axes - 1]) == degree && static_cast<std::size_t>(shape[axes - 2]) == rows);
    require(PyArray_SIZE(array) > 0);
    return {static_cast<const u64*>(PyArray_DATA(array)), static_cast<std::size_t>(PyArray_SIZE(array)) / (rows * degree)};
}

NewArray empty_like(nb::handle array) {
    return make(static_cast<std::size_t>(PyArray_NDIM(as_array(array))), PyArray_DIMS(as_array(array)));
}

}  // namespace kernels
