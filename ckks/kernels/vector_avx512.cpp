#include "vector.h"

#if defined(__AVX512F__)
#include "lanes_avx512.h"
#include "vector_kernels.h"

namespace kernels {
const VectorKernels* avx512_kernels() { return &kTable; }
}  // namespace kernels
#else
namespace kernels {
const VectorKernels* avx512_kernels() { return nullptr; }
}  // namespace kernels
#endif
