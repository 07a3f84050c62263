// Which table of products this processor runs.

#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace sparsejax {

extern const Products plain;
#if defined(__x86_64__)
extern const Products avx2;
extern const Products avx512;
#endif

namespace {

const Products& choose() {
  // For tests: a lower instruction set than the best.
  const char* most = std::getenv("SPARSEJAX_ISA");
  const auto allowed = [most](const char* name) {
    return !most || !std::strcmp(most, name);
  };
#if defined(__x86_64__)
  if (allowed("avx512") && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    return avx512;
  }
  if (allowed("avx2") && __builtin_cpu_supports("avx2") &&
      __builtin_cpu_supports("fma")) {
    return avx2;
  }
#endif
  return plain;
}

}  // namespace

const Products& products() {
  static const Products& best = choose();
  return best;
}

}  // namespace sparsejax
