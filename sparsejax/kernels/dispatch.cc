// Which tables of products this processor runs.

#include <cstdlib>
#include <cstring>

#include "attention.h"
#include "kernels.h"
#include "masked.h"

namespace sparsejax {

#define SPARSEJAX_TABLES(isa)                \
  extern const Products isa;                 \
  extern const Attend attend_##isa;          \
  extern const MaskedProducts masked_##isa;  \
  extern const IntegerProducts integers_##isa

SPARSEJAX_TABLES(plain);
#if defined(__x86_64__)
SPARSEJAX_TABLES(avx2);
SPARSEJAX_TABLES(avx512);
SPARSEJAX_TABLES(avx512_vbmi2);
#endif

namespace {

struct Tables {
  const Products& products;
  const MaskedProducts& masked;
  const IntegerProducts& integers;
  Attend attend;
};

Tables choose() {
  // For tests: a lower instruction set than the best.
  const char* most = std::getenv("SPARSEJAX_ISA");
  const auto allowed = [most](const char* name) {
    return !most || !std::strcmp(most, name);
  };
#if defined(__x86_64__)
  const bool has_avx512 = __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512dq");
  if (allowed("avx512_vbmi2") && has_avx512 &&
      __builtin_cpu_supports("avx512vbmi") &&
      __builtin_cpu_supports("avx512vbmi2") &&
      __builtin_cpu_supports("avx512vnni")) {
    return {avx512, masked_avx512_vbmi2, integers_avx512_vbmi2, attend_avx512};
  }
  if (allowed("avx512") && has_avx512) {
    return {avx512, masked_avx512, integers_avx512, attend_avx512};
  }
  if (allowed("avx2") && __builtin_cpu_supports("avx2") &&
      __builtin_cpu_supports("fma")) {
    return {avx2, masked_avx2, integers_avx2, attend_avx2};
  }
#endif
  return {plain, masked_plain, integers_plain, attend_plain};
}

const Tables& tables() {
  static const Tables best = choose();
  return best;
}

}  // namespace

const Products& products() { return tables().products; }

const MaskedProducts& masked_products() { return tables().masked; }

const IntegerProducts& integer_products() { return tables().integers; }

Attend attend() { return tables().attend; }

}  // namespace sparsejax
