// Vectors of floats, and matrices turned over by tiles of sixteen by sixteen.
// For sources that are compiled once for every instruction set.

#ifndef SPARSEJAX_VECTORS_H_
#define SPARSEJAX_VECTORS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace sparsejax {
namespace {

// What a register holds, wherever it lies in memory. Wider ones GCC supports, but
// keeps in memory.
#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
typedef float Vector __attribute__((vector_size(4 * kWidth), aligned(4)));
typedef float Quarter __attribute__((vector_size(16), aligned(4)));

struct Bfloat16 {
  uint16_t bits;
};

inline float widen(float x) { return x; }

inline float widen(int8_t x) { return x; }

inline float widen(Bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline Vector load(const float* p) {
  return *reinterpret_cast<const Vector*>(p);
}

inline void store(Vector v, float* p) { *reinterpret_cast<Vector*>(p) = v; }

inline float sum(Vector v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v);
#elif defined(__AVX2__)
  const __m128 four = _mm256_castps256_ps128(v) + _mm256_extractf128_ps(v, 1);
  return (four[0] + four[2]) + (four[1] + four[3]);
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

// The sums of four vectors.
#if defined(__AVX512F__)

inline Quarter sums(Vector a, Vector b, Vector c, Vector d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b),
                                  _mm512_unpackhi_ps((__m512)a, (__m512)b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps((__m512)c, (__m512)d),
                                  _mm512_unpackhi_ps((__m512)c, (__m512)d));
  const __m512d low = _mm512_castps_pd(ab), high = _mm512_castps_pd(cd);
  const __m512 all =
      _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
                    _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all),
                                    _mm512_extractf32x8_ps(all, 1));
  return (Quarter)_mm_add_ps(_mm256_castps256_ps128(half),
                             _mm256_extractf128_ps(half, 1));
}

#else

inline Quarter sums(Vector a, Vector b, Vector c, Vector d) {
  return Quarter{sum(a), sum(b), sum(c), sum(d)};
}

#endif

// A tile: 16 rows of `from` become the columns of `to`. Rows from `rows` on are
// zeros, and no more than `columns` rows of `to` are written.

#if defined(__AVX512F__)

template <bool kWhole>
inline void tile(const float* from, int64_t from_stride, int64_t rows,
                 float* to, int64_t to_stride, int64_t columns) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; ++i) {
    a[i] = kWhole || i < rows ? _mm512_loadu_ps(from + i * from_stride)
                    : _mm512_setzero_ps();
  }
  for (int i = 0; i < 16; i += 2) {  // Pairs of rows, in quarters of vectors.
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // Fours of rows.
    for (int j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(b[i + j]);
      const __m512d high = _mm512_castps_pd(b[i + j + 2]);
      a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
  for (int i = 0; i < 4; ++i) {  // The quarters.
    b[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
    b[i + 4] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
    b[i + 8] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
    b[i + 12] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    a[i] = _mm512_shuffle_f32x4(b[i], b[i + 8], 0x88);
    a[i + 8] = _mm512_shuffle_f32x4(b[i], b[i + 8], 0xdd);
  }
  for (int i = 0; i < 16; ++i) {
    if (kWhole || i < columns) _mm512_storeu_ps(to + i * to_stride, a[i]);
  }
}

#else

template <bool kWhole>
inline void tile(const float* from, int64_t from_stride, int64_t rows,
                 float* to, int64_t to_stride, int64_t columns) {
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < columns; j += 4) {
      Quarter a[4] = {}, b[4];
      for (int k = 0; k < 4 && (kWhole || i + k < rows); ++k) {
        std::memcpy(&a[k], from + (i + k) * from_stride + j, sizeof a[k]);
      }
      b[0] = __builtin_shufflevector(a[0], a[1], 0, 4, 1, 5);
      b[1] = __builtin_shufflevector(a[0], a[1], 2, 6, 3, 7);
      b[2] = __builtin_shufflevector(a[2], a[3], 0, 4, 1, 5);
      b[3] = __builtin_shufflevector(a[2], a[3], 2, 6, 3, 7);
      a[0] = __builtin_shufflevector(b[0], b[2], 0, 1, 4, 5);
      a[1] = __builtin_shufflevector(b[0], b[2], 2, 3, 6, 7);
      a[2] = __builtin_shufflevector(b[1], b[3], 0, 1, 4, 5);
      a[3] = __builtin_shufflevector(b[1], b[3], 2, 3, 6, 7);
      for (int k = 0; k < 4 && (kWhole || j + k < columns); ++k) {
        std::memcpy(to + (j + k) * to_stride + i, &a[k], sizeof a[k]);
      }
    }
  }
}

#endif

// Turns examples over, [count, width] with a stride: [width, padded], where the
// batch is padded with zeros to a multiple of kLanes.
inline void to_features(const float* from, int64_t stride, int64_t count,
                        int64_t width, float* to, int64_t padded) {
  for (int64_t i = 0; i < width; i += kLanes) {
    const int64_t features = std::min(kLanes, width - i);
    for (int64_t b = 0; b < padded; b += kLanes) {
      const float* rows = from + b * stride + i;
      float* columns = to + i * padded + b;
      const int64_t there = std::min(kLanes, count - b);
      if (features < kLanes) {
        for (int64_t f = 0; f < features; ++f) {
          for (int64_t k = 0; k < kLanes; ++k) {
            columns[f * padded + k] = k < there ? rows[k * stride + f] : 0.0f;
          }
        }
      } else if (there < kLanes) {
        tile<false>(rows, stride, there, columns, padded, kLanes);
      } else {
        tile<true>(rows, stride, there, columns, padded, kLanes);
      }
    }
  }
}

// The other way: [width, padded] to [count, width] with a stride.
inline void to_examples(const float* from, int64_t padded, int64_t width,
                        int64_t count, float* to, int64_t stride) {
  for (int64_t b = 0; b < count; b += kLanes) {
    const int64_t there = std::min(kLanes, count - b);
    for (int64_t i = 0; i < width; i += kLanes) {
      const int64_t features = std::min(kLanes, width - i);
      const float* columns = from + i * padded + b;
      float* rows = to + b * stride + i;
      if (features < kLanes) {
        for (int64_t k = 0; k < there; ++k) {
          for (int64_t f = 0; f < features; ++f) {
            rows[k * stride + f] = columns[f * padded + k];
          }
        }
      } else if (there < kLanes) {
        tile<false>(columns, padded, kLanes, rows, stride, there);
      } else {
        tile<true>(columns, padded, kLanes, rows, stride, kLanes);
      }
    }
  }
}

}  // namespace
}  // namespace sparsejax

#endif  // SPARSEJAX_VECTORS_H_
