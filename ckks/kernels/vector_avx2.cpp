#include "vector.h"

#if defined(__AVX2__) && defined(__FMA__)
#include "lanes_avx2.h"
#include "vector_kernels.h"

namespace kernels {
const VectorKernels* avx2_kernels() { return &kTable; }
}  // namespace kernels
#else
namespace kernels {
const VectorKernels* avx2_kernels() { return nullptr; }
}  // namespace kernels
#endif
