// Products of int8 weights with activations that are rounded to int8, compiled
// once for every instruction set, as products.cc is.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "masked.h"
#include "vectors.h"

namespace sparsejax {
namespace {

void round(const float* x, const Masked& w, int64_t example,
           const Rounded& to) {
  int8_t* const integers = to.integers + example * to.stride;
  // As integers, NaN is above infinity and that above all else.
  int32_t most = 0;
  for (int64_t i = 0; i < w.width; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    most = std::max(most, bits & 0x7fffffff);
  }
  float scale;
  std::memcpy(&scale, &most, sizeof scale);
  scale *= 1.0f / 127;
  if (scale == 0) scale = 1;
  to.scales[example] = scale;
  std::fill(integers, integers + to.stride, 0);
  // What is not finite makes all products NaN, since no sum but 0 is left.
  for (int64_t i = 0; std::isfinite(scale) && i < w.width; ++i) {
    const float nearest = std::rint(x[i] / scale);
    integers[i] = static_cast<int8_t>(
        static_cast<int32_t>(std::min(127.0f, std::max(-127.0f, nearest))));
  }
  const int64_t size = w.width / w.groups;
  for (int64_t g = 0; g < w.groups; ++g) {
    int32_t sum = 0;
    for (int64_t i = g * size; i < (g + 1) * size; ++i) sum += integers[i];
    to.sums[example * w.groups + g] = sum;
  }
}

#if defined(__AVX512VBMI2__) && defined(__AVX512VNNI__)

// The instruction multiplies unsigned bytes by signed ones. So weights are made
// 128 more than they are, those that are zero too, and sums begin with what that
// makes too much.
constexpr int32_t kMore = 128;

// Bytes of weights that are fetched ahead, as in masked.cc.
constexpr int64_t kAhead = 4096;

inline __m512i more(__m512i weights) {
  return _mm512_xor_si512(weights, _mm512_set1_epi8(static_cast<char>(kMore)));
}

// Puts the values of 64 places where their bits are.
template <bool kDense>
inline __m512i placed(uint64_t word, __m512i values) {
  if (kDense) return values;
  // Zen 5 waits for what was in the register that this is written to, unless it
  // is a new one. And expanding from memory, as compilers would, is slow.
  __m512i zeros = _mm512_setzero_si512();
  asm("" : "+v"(zeros), "+v"(values));
  return _mm512_mask_expand_epi8(zeros, word, values);
}

// The weights of 64 places, 128 more than they are, and how many values they are.
template <bool kDense>
inline __m512i weights(const uint8_t* bits, const int8_t* values, int64_t* n) {
  uint64_t word = ~uint64_t{0};
  if (!kDense) {
    std::memcpy(&word, bits, sizeof word);
    __builtin_prefetch(bits + kAhead / 4);
  }
  __builtin_prefetch(values + kAhead);
  *n = __builtin_popcountll(word);
  return more(placed<kDense>(word, _mm512_loadu_si512(values)));
}

// The same of the last places of a group, from i on, or where the array ends: 0
// where there are no more.
template <bool kDense>
__attribute__((noinline)) __m512i last_weights(const Masked& w, int64_t r,
                                               int64_t i, int64_t stop,
                                               int64_t at, int64_t* n) {
  const int64_t places = std::min(kWord, stop - i);
  const uint64_t word = word_of(w, r, i, places);
  *n = __builtin_popcountll(word);
  const int64_t left = std::clamp<int64_t>(w.count - at, 0, *n);
  const __m512i values = _mm512_maskz_loadu_epi8(
      lowest(left), static_cast<const int8_t*>(w.values) + at);
  return _mm512_maskz_mov_epi8(lowest(places),
                               more(placed<kDense>(word, values)));
}

// Calls each(i, weights) for the words of places from i to `stop` of row r; returns
// where the values of what follows begin.
template <bool kDense, class Each>
inline int64_t for_words(const Masked& w, int64_t r, int64_t i, int64_t stop,
                         int64_t at, const Each& each) {
  const uint8_t* const bits = bits_of(w, r);
  const int8_t* const values = static_cast<const int8_t*>(w.values);
  const int64_t safe = w.count - kWord;  // Up to here 64 can be read.
  int64_t n;
  for (; i + kWord <= stop && at <= safe; i += kWord, at += n) {
    each(i, weights<kDense>(bits + (i >> 3), values + at, &n));
  }
  for (; i < stop; i += kWord, at += n) {
    each(i, last_weights<kDense>(w, r, i, stop, at, &n));
  }
  return at;
}

// Rows' products with N examples from the first on, some of which may be padding.
template <int N, bool kDense>
bool few(const Rounded& x, int64_t first, const Masked& w, float* y,
         int64_t begin, int64_t end) {
  const int64_t groups = w.groups, size = w.width / groups;
  const int64_t examples = std::min<int64_t>(N, x.batch - first);
  const int8_t* const integers = x.integers + first * x.stride;
  const int32_t* const offsets = x.sums + first * groups;
  for (int64_t r = begin; r < end; ++r) {
    int64_t at = start_of(w, r);
    float totals[N] = {};
    for (int64_t g = 0; g < groups; ++g) {
      __m512i sums[N];
      for (int e = 0; e < N; ++e) {
        sums[e] = _mm512_zextsi128_si512(
            _mm_cvtsi32_si128(-kMore * offsets[e * groups + g]));
      }
      const auto add = [&](int64_t i, __m512i some) {
        for (int e = 0; e < N; ++e) {
          sums[e] = _mm512_dpbusd_epi32(
              sums[e], some, _mm512_loadu_si512(integers + e * x.stride + i));
        }
      };
      at = for_words<kDense>(w, r, g * size, (g + 1) * size, at, add);
      const float scale = w.scales[r * groups + g];
      for (int e = 0; e < N; ++e) {
        totals[e] += scale * static_cast<float>(
                                 _mm512_reduce_add_epi32(sums[e]));
      }
    }
    if (!kDense && at != start_of(w, r + 1)) return false;
    for (int e = 0; e < examples; ++e) {
      y[(first + e) * w.rows + r] = totals[e] * x.scales[first + e];
    }
  }
  return true;
}

// The weights of up to 16 rows, 128 more than they are: those of four inputs lie
// together, [width / 4, 16 rows, 4 inputs].
template <bool kDense>
bool unpack(const Masked& w, int64_t begin, int64_t end, uint8_t* to) {
  const int64_t words = (w.width + kWord - 1) / kWord;
  // Row by row within a word, to be turned over there.
  for (int64_t r = begin; r < end; ++r) {
    uint8_t* const row = to + (r - begin) * kWord;
    const auto store = [=](int64_t i, __m512i some) {
      _mm512_store_si512(row + i * kLanes, some);
    };
    const int64_t at =
        for_words<kDense>(w, r, 0, w.width, start_of(w, r), store);
    if (!kDense && at != start_of(w, r + 1)) return false;
  }
  for (int64_t i = 0; i < words; ++i) {
    float* const word = reinterpret_cast<float*>(to + i * kWord * kLanes);
    tile<true>(word, kLanes, kLanes, word, kLanes, kLanes);
  }
  return true;
}

// The same from rows that are unpacked, for kTogether examples. What a group adds
// to is kept in `totals`, since sums take half of the registers.
void panel(const Rounded& x, int64_t first, const Masked& w,
           const uint8_t* unpacked, const float* scales, float* y,
           int64_t begin, int64_t end) {
  const int64_t groups = w.groups, size = w.width / groups;
  const int8_t* const integers = x.integers + first * x.stride;
  const auto rows = static_cast<__mmask16>(lowest(end - begin));
  __m512 totals[kTogether] = {};
  for (int64_t g = 0; g < groups; ++g) {
    __m512i sums[kTogether];
    for (int e = 0; e < kTogether; ++e) {
      sums[e] = _mm512_set1_epi32(-kMore * x.sums[(first + e) * groups + g]);
    }
    for (int64_t i = g * size; i < (g + 1) * size; i += 4) {
      const __m512i some = _mm512_load_si512(unpacked + i * kLanes);
      for (int e = 0; e < kTogether; ++e) {
        int32_t four;
        std::memcpy(&four, integers + e * x.stride + i, sizeof four);
        sums[e] = _mm512_dpbusd_epi32(sums[e], some, _mm512_set1_epi32(four));
      }
    }
    const __m512 scale = _mm512_load_ps(scales + g * kLanes);
    for (int e = 0; e < kTogether; ++e) {
      totals[e] += scale * _mm512_cvtepi32_ps(sums[e]);
    }
  }
  for (int e = 0; e < kTogether && first + e < x.batch; ++e) {
    _mm512_mask_storeu_ps(y + (first + e) * w.rows + begin, rows,
                          totals[e] * _mm512_set1_ps(x.scales[first + e]));
  }
}

template <bool kDense>
bool many(const Rounded& x, const Masked& w, float* y, int64_t begin,
          int64_t end) {
  thread_local Room of_weights, of_scales;
  auto* const unpacked = of_weights.of<uint8_t>(x.stride * kLanes);
  auto* const scales = of_scales.of<float>(w.groups * kLanes);
  for (int64_t r = begin; r < end; r += kLanes) {
    const int64_t stop = std::min(end, r + kLanes);
    if (!unpack<kDense>(w, r, stop, unpacked)) return false;
    for (int64_t g = 0; g < w.groups; ++g) {
      for (int64_t i = 0; i < kLanes; ++i) {
        scales[g * kLanes + i] = w.scales[std::min(r + i, stop - 1) * w.groups + g];
      }
    }
    for (int64_t first = 0; first < x.batch; first += kTogether) {
      panel(x, first, w, unpacked, scales, y, r, stop);
    }
  }
  return true;
}

template <bool kDense>
bool rows(const Rounded& x, const Masked& w, float* y, int64_t begin,
          int64_t end) {
  if (x.batch == 1) return few<1, kDense>(x, 0, w, y, begin, end);
  if (x.batch <= 4) return few<4, kDense>(x, 0, w, y, begin, end);
  return many<kDense>(x, w, y, begin, end);
}

#else

// Compilers know how to add up products of bytes, and do not round.
inline int32_t dot(const int8_t* a, const int8_t* b, int64_t n) {
  int32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// The weights of a row, zeros in place; null if bits and values do not go.
template <bool kDense>
const int8_t* unpack(const Masked& w, int64_t r, std::vector<int8_t>* room) {
  const int8_t* next = static_cast<const int8_t*>(w.values) + start_of(w, r);
  if (kDense) return next;
  const int8_t* const end =
      static_cast<const int8_t*>(w.values) + start_of(w, r + 1);
  room->assign(w.width, 0);
  for (int64_t i = 0; i < w.width; i += kWord) {
    uint64_t word = word_of(w, r, i, std::min(kWord, w.width - i));
    if (__builtin_popcountll(word) > end - next) return nullptr;
    for (; word; word &= word - 1) {
      (*room)[i + __builtin_ctzll(word)] = *next++;
    }
  }
  return next == end ? room->data() : nullptr;
}

template <bool kDense>
bool rows(const Rounded& x, const Masked& w, float* y, int64_t begin,
          int64_t end) {
  thread_local std::vector<int8_t> room;
  const int64_t groups = w.groups, size = w.width / groups;
  for (int64_t r = begin; r < end; ++r) {
    const int8_t* const weights = unpack<kDense>(w, r, &room);
    if (!weights) return false;
    for (int64_t e = 0; e < x.batch; ++e) {
      float total = 0;
      for (int64_t g = 0; g < groups; ++g) {
        const int32_t sum = dot(weights + g * size,
                                x.integers + e * x.stride + g * size, size);
        total += w.scales[r * groups + g] * static_cast<float>(sum);
      }
      y[e * w.rows + r] = total * x.scales[e];
    }
  }
  return true;
}

#endif

bool multiply(const Rounded& x, const Masked& w, float* y, int64_t begin,
              int64_t end) {
  return (w.bits ? rows<false> : rows<true>)(x, w, y, begin, end);
}

}  // namespace

#define SPARSEJAX_NAME(isa) SPARSEJAX_JOIN(isa)
#define SPARSEJAX_JOIN(isa) integers_##isa
extern const IntegerProducts SPARSEJAX_NAME(SPARSEJAX_ISA);
const IntegerProducts SPARSEJAX_NAME(SPARSEJAX_ISA) = {round, multiply};

}  // namespace sparsejax
