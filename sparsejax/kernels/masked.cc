// Products with masked matrices, compiled once for every instruction set, as
// products.cc is. Weights are expanded in registers, where their bits are.

#include "masked.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "vectors.h"

namespace sparsejax {
namespace {

constexpr int kVectors = kWord / kWidth;  // Of a word's weights.

// Vectors of examples that are summed at once: what the registers hold.
constexpr int kPanel = 8;
constexpr int64_t kExamples = kPanel * kWidth;
// Rows of `many` that share what the first-level cache holds of a panel; and of
// whole rows, which lie in the second-level one.
constexpr int64_t kBlock = 96;
constexpr int64_t kWholeBlock = 32;
// Whether rows of this density are multiplied with their zeros in place: 32
// registers hold sums of several rows, so that less is loaded for each weight, and
// for few examples to look for what is not zero costs as much as it saves.
#if defined(__AVX512F__)
constexpr int64_t kMostFew = 12;  // Below, `few` is the faster one.
inline bool is_for_whole(double density, int64_t batch) {
  return density > std::min(0.75, batch / 128.0);
}
#else
constexpr int64_t kMostFew = kWord;
inline bool is_for_whole(double, int64_t) { return false; }
#endif
// Rows of `few` whose weights stay in the cache for all examples.
constexpr int64_t kRows = 32;
// Examples for which weights are expanded once, and sums of each.
constexpr int kFew = 4;
#if defined(__AVX512F__)
constexpr int kSums = 4;
#else
constexpr int kSums = 2;
#endif

// Bytes of weights that are fetched ahead: processors do not look beyond the
// next page.
constexpr int64_t kAhead = 4096;

#if defined(__AVX512F__)

inline __m512 load16(const float* p) { return _mm512_loadu_ps(p); }

inline __m512 load16(const Bfloat16* p) {
  const __m256i half =
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline __m512 load16(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

// The values of 64 places, zeros in place.
template <bool kDense, class T>
inline void expand(uint64_t bits, const T* p, Vector* w) {
  for (int i = 0; i < 4; ++i) {
    if (kDense) {
      w[i] = load16(p + 16 * i);
    } else {
      const auto mask = static_cast<__mmask16>(bits >> 16 * i);
      __m512 next = load16(p);
      // Expanding from memory, as compilers would, takes twice as long.
      asm("" : "+v"(next));
      w[i] = _mm512_maskz_expand_ps(mask, next);
      p += __builtin_popcount(mask);
    }
  }
}

#if defined(__AVX512VBMI2__)

// A byte is put into the highest of four, which makes it 2^24 times as large.
template <bool kDense>
inline void expand(uint64_t bits, const int8_t* p, Vector* w) {
  const auto places = [](int i) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6,
                                           5, 4, 3, 2, 1, 0);
    return _mm512_slli_epi32(
        _mm512_add_epi32(lanes, _mm512_set1_epi32(16 * i)), 24);
  };
  __m512i packed = _mm512_loadu_si512(p), zeros = _mm512_setzero_si512();
  // From memory as above; and Zen 5 waits for what was in the register that this
  // is written to, unless it is a new one.
  asm("" : "+v"(packed), "+v"(zeros));
  const __m512i all =
      kDense ? packed : _mm512_mask_expand_epi8(zeros, bits, packed);
  for (int i = 0; i < 4; ++i) {
    w[i] = _mm512_cvtepi32_ps(_mm512_maskz_permutexvar_epi8(
        0x8888888888888888, places(i), all));
  }
}

#endif

#elif defined(__AVX2__)

// For a mask of 8 places the number of the value that belongs to each; negative
// where there is none.
struct Ranks {
  int8_t of[256][8];
  constexpr Ranks() : of() {
    for (int mask = 0; mask < 256; ++mask) {
      int8_t rank = 0;
      for (int i = 0; i < 8; ++i) {
        of[mask][i] = mask >> i & 1 ? rank++ : int8_t{-128};
      }
    }
  }
};
constexpr Ranks kRanks;

inline __m256i widened(const void* p) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
}

inline __m256 load8(const float* p) { return _mm256_loadu_ps(p); }

inline __m256 load8(const Bfloat16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

inline __m256 load8(const int8_t* p) {
  return _mm256_cvtepi32_ps(widened(p));
}

template <bool kDense, class T>
inline void expand(uint64_t bits, const T* p, Vector* w) {
  for (int i = 0; i < 8; ++i) {
    if (kDense) {
      w[i] = load8(p + 8 * i);
    } else {
      const uint8_t mask = bits >> 8 * i;
      const __m256i ranks = widened(kRanks.of[mask]);
      w[i] = _mm256_blendv_ps(
          _mm256_permutevar8x32_ps(load8(p), ranks), _mm256_setzero_ps(),
          _mm256_castsi256_ps(ranks));
      p += __builtin_popcount(mask);
    }
  }
}

#else

template <class T>
inline void widen64(const T* p, Vector* w) {
  float room[kWord];
  for (int i = 0; i < kWord; ++i) room[i] = widen(p[i]);
  std::memcpy(w, room, sizeof room);
}

#endif

// By how much `expand` makes values too large.
template <class T>
constexpr float kUnit = 1;
#if defined(__AVX512VBMI2__)
template <>
constexpr float kUnit<int8_t> = 1.0f / (1 << 24);
#endif

// Adds the products of 64 places with N examples.
template <int N, bool kDense, class T>
inline void add64(uint64_t word, const T* values, const float* x,
                  int64_t stride, Vector (&sums)[N][kSums]) {
  Vector w[kVectors];
#if defined(__AVX2__)
  expand<kDense>(word, values, w);
#else
  if (!kDense) {  // Without such instructions it is better to skip zeros.
    float found[N] = {};
    for (; word; word &= word - 1) {
      const float value = widen(*values++);
      const float* p = x + __builtin_ctzll(word);
      for (int e = 0; e < N; ++e) found[e] += value * p[e * stride];
    }
    for (int e = 0; e < N; ++e) sums[e][0][0] += found[e];
    return;
  }
  widen64(values, w);
#endif
  for (int e = 0; e < N; ++e) {
    for (int v = 0; v < kVectors; ++v) {
      sums[e][v % kSums] += w[v] * load(x + e * stride + kWidth * v);
    }
  }
}

// Up to this density one example's activations are fetched to where the values
// are, rather than the other way round: words hardly ever have more than 16.
constexpr double kFewest = 0.15;

#if defined(__AVX512VBMI2__)

// Adds the products of 64 places, of which few are not zero.
template <class T>
inline void add_rare(uint64_t word, const T* values, const float* x,
                     Vector* sum) {
  static constexpr auto kPlaces = [] {
    struct alignas(64) {
      uint8_t of[kWord];
    } places{};
    for (int i = 0; i < kWord; ++i) places.of[i] = i;
    return places;
  }();
  __m512i zeros = _mm512_setzero_si512();
  asm("" : "+v"(zeros));  // As in `expand`.
  __m512i found = _mm512_mask_compress_epi8(
      zeros, word, _mm512_load_si512(kPlaces.of));
  const __m512 a = load16(x), b = load16(x + 16);
  const __m512 c = load16(x + 32), d = load16(x + 48);
  for (int64_t left = __builtin_popcountll(word);;) {
    const __m512i at = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(found));
    const __m512 activations = _mm512_mask_blend_ps(
        _mm512_test_epi32_mask(at, _mm512_set1_epi32(32)),
        _mm512_permutex2var_ps(a, at, b), _mm512_permutex2var_ps(c, at, d));
    *sum = _mm512_mask3_fmadd_ps(activations, load16(values), *sum,
                                 static_cast<__mmask16>(lowest(left)));
    left -= 16;
    if (__builtin_expect(left <= 0, 1)) return;
    values += 16;
    found = _mm512_shuffle_i32x4(found, found, 0x39);  // The next 16.
  }
}

#endif

// Copies the values of the last n places of a group, or what the array still
// has of them; returns their bits. Not inline, since it is rarely called.
template <class T>
__attribute__((noinline)) uint64_t copy_last(const Masked& w, int64_t r,
                                             int64_t i, int64_t n, int64_t at,
                                             T (&to)[kWord]) {
  const uint64_t word = word_of(w, r, i, n);
  const int64_t left =
      std::min<int64_t>(__builtin_popcountll(word), w.count - at);
  std::fill(to, to + kWord, T());
  if (left > 0) std::memcpy(to, static_cast<const T*>(w.values) + at,
                            left * sizeof(T));
  return word;
}

// Rows' products with N examples, at y, y + rows, ...
template <int N, bool kDense, bool kRare, class T>
bool dots(const float* x, int64_t stride, const Masked& w, float* y,
          int64_t begin, int64_t end) {
  const int64_t groups = w.groups, size = w.width / groups, rows = w.rows;
  const T* const values = static_cast<const T*>(w.values);
  const float* const scales = w.scales;
  const int64_t safe = w.count - kWord;  // Up to here 64 can be read.
  for (int64_t r = begin; r < end; ++r) {
    const uint8_t* const bits = bits_of(w, r);
    int64_t at = start_of(w, r);
    Vector totals[N] = {};
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t stop = (g + 1) * size;
      Vector sums[N][kSums] = {};
      for (int64_t i = g * size; i < stop; i += kWord) {
        T last[kWord];
        const T* next = values + at;
        uint64_t word = ~uint64_t{0};
        if (__builtin_expect(i + kWord > stop || at > safe, 0)) {
          word = copy_last(w, r, i, std::min(kWord, stop - i), at, last);
          next = last;
        } else if (!kDense) {
          std::memcpy(&word, bits + (i >> 3), sizeof word);
          __builtin_prefetch(bits + (i >> 3) + kAhead / 4);
        }
        __builtin_prefetch(reinterpret_cast<const char*>(next) + kAhead);
#if defined(__AVX512VBMI2__)
        if constexpr (kRare) {
          add_rare(word, next, x + i, &sums[0][0]);
        } else
#endif
          add64<N, kDense>(word, next, x + i, stride, sums);
        at += kDense ? std::min(kWord, stop - i) : __builtin_popcountll(word);
      }
      const float scale = kUnit<T> * (scales ? scales[r * groups + g] : 1.0f);
      for (int e = 0; e < N; ++e) {
        Vector all = sums[e][0] + sums[e][1];  // No loop: it stays in registers.
        if (kSums == 4) all += sums[e][2 % kSums] + sums[e][3 % kSums];
        totals[e] += scale * all;
      }
    }
    if (!kDense && at != start_of(w, r + 1)) return false;
    for (int e = 0; e < N; ++e) y[e * rows + r] = sum(totals[e]);
  }
  return true;
}

template <bool kDense, class T>
bool few_rows(const float* x, int64_t batch, int64_t stride, const Masked& w,
              float* y, int64_t begin, int64_t end) {
#if defined(__AVX512VBMI2__)
  constexpr bool kMayBeRare = !kDense && !std::is_same_v<T, int8_t>;
#else
  constexpr bool kMayBeRare = false;
#endif
  const bool rare =
      kMayBeRare && w.pointers[w.rows] <= kFewest * w.rows * w.width;
  bool good = true;
  // Rows whose weights stay in the cache for all examples.
  for (; begin < end; begin += kRows) {
    const int64_t stop = std::min(end, begin + kRows);
    for (int64_t e = 0; e < batch;) {
      const bool several = batch - e >= kFew;
      const auto multiply =
          several ? dots<kFew, kDense, false, T>
          : rare  ? dots<1, kDense, kMayBeRare, T>
                  : dots<1, kDense, false, T>;
      good &= multiply(x + e * stride, stride, w, y + e * w.rows, begin, stop);
      e += several ? kFew : 1;
    }
  }
  return good;
}

// What rows of the matrix are for `many`: values in float32, and where the
// places of each word of bits begin.
struct Unpacked {
  bool whole;                          // Zeros are in place.
  std::vector<float> room;             // If whole, [rows, 64 words].
  std::vector<uint64_t> words;         // [rows, words]
  std::vector<const float*> pointers;  // [rows, words]
  const char* next;                    // What comes after them in memory,
  int64_t bytes;                       // of as many rows.
};

// Values of a row as floats, times its scales.
template <class T>
void convert(const Masked& w, int64_t r, int64_t begin, int64_t end,
             float* to) {
  const T* values = static_cast<const T*>(w.values);
  if (!w.scales) {
    for (int64_t j = begin; j < end; ++j) *to++ = widen(values[j]);
    return;
  }
  const int64_t size = w.width / w.groups;
  for (int64_t g = 0; g < w.groups && begin < end; ++g) {
    int64_t taken = 0;
    for (int64_t i = g * size; i < (g + 1) * size; i += kWord) {
      const int64_t n = std::min(kWord, (g + 1) * size - i);
      taken += __builtin_popcountll(word_of(w, r, i, n));
    }
    const float scale = w.scales[r * w.groups + g];
    for (const int64_t stop = std::min(end, begin + taken); begin < stop;) {
      *to++ = scale * widen(values[begin++]);
    }
  }
}

// Puts the values of a word in their places, times a scale, and zeros between
// them. Up to 64 values are read.
template <class T>
inline void put(uint64_t word, const T* values, float scale, float* to) {
#if defined(__AVX2__)
  Vector w[kVectors];
  expand<false>(word, values, w);
  for (int v = 0; v < kVectors; ++v) store(scale * w[v], to + kWidth * v);
#else
  std::fill(to, to + kWord, 0.0f);
  for (; word; word &= word - 1) {
    to[__builtin_ctzll(word)] = scale * widen(*values++);
  }
#endif
}

// Makes a row with its zeros in place, [64 words].
template <class T>
bool unpack_whole(const Masked& w, int64_t r, float* to) {
  const int64_t size = w.width / w.groups, safe = w.count - kWord;
  int64_t at = start_of(w, r);
  for (int64_t g = 0; g < w.groups; ++g) {
    const float scale = kUnit<T> * (w.scales ? w.scales[r * w.groups + g] : 1);
    const int64_t stop = (g + 1) * size;
    for (int64_t i = g * size; i < stop; i += kWord) {
      const int64_t n = std::min(kWord, stop - i);
      T last[kWord];
      const T* next = static_cast<const T*>(w.values) + at;
      uint64_t word;
      if (__builtin_expect(n < kWord || at > safe, 0)) {
        word = copy_last(w, r, i, n, at, last);
        next = last;
      } else {
        word = word_of(w, r, i, kWord);
      }
      for (size_t b = 0; b < kWord * sizeof(T); b += 64) {
        __builtin_prefetch(reinterpret_cast<const char*>(next) + kAhead + b);
      }
      put(word, next, scale, to + i);
      at += __builtin_popcountll(word);
    }
  }
  return at == start_of(w, r + 1);
}

// Unpacks rows. Values are copied, even floats, since `add` reads them in another
// order than they come from memory.
template <class T>
bool unpack_rows(const Masked& w, int64_t begin, int64_t end, Unpacked* out) {
  const int64_t words = (w.width + kWord - 1) / kWord;
  const int64_t first = start_of(w, begin), last = start_of(w, end);
  const int64_t rows = end - begin, size = words * kWord;
  out->words.resize(rows * words);
  out->pointers.resize(rows * words);
  // `put` writes whole words, even of groups that end within one.
  out->room.resize(out->whole ? rows * size + kWord : last - first);
  float* values = out->room.data();
  for (int64_t r = begin, at = 0; r < end; ++r) {
    if (out->whole) {
      if (!unpack_whole<T>(w, r, values)) return false;
      for (int64_t i = 0; i < words; ++i, values += kWord) {
        out->pointers[at++] = values;
      }
      continue;
    }
    const int64_t start = start_of(w, r), stop = start_of(w, r + 1);
    convert<T>(w, r, start, stop, values);
    const float* const own = values;
    for (int64_t i = 0; i < words; ++i, ++at) {
      const int64_t n = std::min(kWord, w.width - i * kWord);
      const uint64_t word = word_of(w, r, i * kWord, n);
      out->words[at] = word;
      out->pointers[at] = values;
      values += __builtin_popcountll(word);
    }
    if (values - own != stop - start) return false;
  }
  out->next =
      reinterpret_cast<const char*>(static_cast<const T*>(w.values) + last);
  out->bytes = (std::min(w.count, 2 * last - first) - last) * sizeof(T);
  return true;
}

bool unpack(const Masked& w, int64_t begin, int64_t end, Unpacked* out) {
  const auto rows = w.type == Type::kInt8       ? unpack_rows<int8_t>
                    : w.type == Type::kBfloat16 ? unpack_rows<Bfloat16>
                                                : unpack_rows<float>;
  return rows(w, begin, end, out);
}

// Fetches the share of the next rows that is n of all, from the i-th on, into the
// second-level cache: the first is full, and all at once would wait for memory.
inline void fetch(const Unpacked& from, int64_t i, int64_t n, int64_t all) {
  const int64_t stop = from.bytes * (i + n) / all;
  for (int64_t b = from.bytes * i / all; b < stop; b += 64) {
    __builtin_prefetch(from.next + b, 0, 2);
  }
}

// Adds the products of one word of a row with V vectors of examples.
template <int V>
inline void add(uint64_t word, const float* values, const float* x, float* y) {
  Vector sums[V];
  for (int v = 0; v < V; ++v) sums[v] = load(y + kWidth * v);
  for (; word; word &= word - 1) {
    const float w = *values++;
    const float* p = x + __builtin_ctzll(word) * (V * kWidth);
    for (int v = 0; v < V; ++v) sums[v] += w * load(p + kWidth * v);
  }
  for (int v = 0; v < V; ++v) store(sums[v], y + kWidth * v);
}

// Adds the products of n places of N whole rows with V vectors of examples, which
// lie a stride apart.
template <int V, int N, int64_t kStride>
inline void add_whole(const float* const* values, int64_t words, int64_t n,
                      const float* x, float* y) {
  Vector sums[N][V];
  const float* w[N];
  for (int r = 0; r < N; ++r) {
    w[r] = values[r * words];
    for (int v = 0; v < V; ++v) sums[r][v] = load(y + r * kStride + v * kWidth);
  }
  for (int64_t i = 0; i < n; ++i, x += kStride) {
    for (int v = 0; v < V; ++v) {
      const Vector next = load(x + v * kWidth);
      for (int r = 0; r < N; ++r) sums[r][v] += w[r][i] * next;
    }
  }
  for (int r = 0; r < N; ++r) {
    for (int v = 0; v < V; ++v) store(sums[r][v], y + r * kStride + v * kWidth);
  }
}

// The same of all of these rows, by as many as the registers hold the sums of.
template <int V, int64_t kStride>
void add_rows(const float* const* values, int64_t words, int64_t n,
              int64_t rows, const float* x, float* y) {
  constexpr int kOf = std::min(V, 4);
  constexpr int kAtOnce = kOf < 4 ? 8 : 4;
  int64_t r = 0;
  for (; r + kAtOnce <= rows; r += kAtOnce) {
    add_whole<kOf, kAtOnce, kStride>(values + r * words, words, n, x,
                                     y + r * kStride);
  }
  for (; r < rows; ++r) {
    add_whole<kOf, 1, kStride>(values + r * words, words, n, x,
                               y + r * kStride);
  }
  if constexpr (V > kOf) {
    add_rows<V - kOf, kStride>(values, words, n, rows, x + kOf * kWidth,
                               y + kOf * kWidth);
  }
}

// The products of examples [first, first + n) with unpacked rows, to y [.., rows].
template <int V>
void panel(const float* panels, int64_t first, int64_t n, int64_t batch,
           const Masked& w, const Unpacked& unpacked, int64_t begin,
           int64_t end, float* y) {
  constexpr int64_t kOwn = V * kWidth;
  const int64_t words = (w.width + kWord - 1) / kWord, rows = end - begin;
  alignas(64) float sums[kBlock * kOwn];
  std::memset(sums, 0, rows * kOwn * sizeof(float));
  const float* x = panels + first * w.width;
  for (int64_t i = 0; i < words; ++i, x += kWord * kOwn) {
    fetch(unpacked, first * words + i * n, n, batch * words);
    const float* const* const values = &unpacked.pointers[i];
    if (unpacked.whole) {
      add_rows<V, kOwn>(values, words, std::min(kWord, w.width - i * kWord),
                        rows, x, sums);
      continue;
    }
    for (int64_t r = 0; r < rows; ++r) {
      add<V>(unpacked.words[r * words + i], values[r * words], x,
             sums + r * kOwn);
    }
  }
  to_examples(sums, kOwn, rows, n, y + first * w.rows + begin, w.rows);
}

// As above, of a panel of so many lanes of examples.
template <int... L, class... Args>
void panel_of(int64_t lanes, std::integer_sequence<int, L...>,
              const Args&... args) {
  constexpr auto width = [](int lanes) { return lanes * kLanes / kWidth; };
  (void)((L + 1 == lanes && (panel<width(L + 1)>(args...), true)) || ...);
}

bool many(const float* panels, int64_t batch, const Masked& w, float* y,
          int64_t begin, int64_t end) {
  // Kept by each thread: new memory is slow to touch for the first time.
  thread_local Unpacked unpacked;
  const double density = static_cast<double>(start_of(w, w.rows)) /
                         static_cast<double>(w.rows * w.width);
  unpacked.whole = is_for_whole(density, batch);
  const int64_t most = unpacked.whole ? kWholeBlock : kBlock;
  const int64_t blocks = (end - begin + most - 1) / most;
  const int64_t size = (vectors_of(end - begin) + blocks - 1) / blocks * kLanes;
  for (int64_t r = begin; r < end; r += size) {
    const int64_t stop = std::min(end, r + size);
    if (!unpack(w, r, stop, &unpacked)) return false;
    for (int64_t first = 0; first < batch; first += kExamples) {
      const int64_t n = std::min(kExamples, batch - first);
      panel_of(vectors_of(n),
               std::make_integer_sequence<int, kExamples / kLanes>(), panels,
               first, n, batch, w, unpacked, r, stop, y);
    }
  }
  return true;
}

void fill(const float* x, int64_t batch, int64_t width, int64_t first,
          float* panels) {
  const int64_t n = std::min(kExamples, batch - first);
  to_features(x + first * width, width, n, width, panels + first * width,
              vectors_of(n) * kLanes);
}

bool few(const float* x, int64_t batch, int64_t stride, const Masked& w,
         float* y, int64_t begin, int64_t end) {
  const auto rows = [&](auto type) {
    using T = decltype(type);
    return (w.bits ? few_rows<false, T> : few_rows<true, T>)(
        x, batch, stride, w, y, begin, end);
  };
  if (w.type == Type::kFloat32) return rows(float());
  if (w.type == Type::kBfloat16) return rows(Bfloat16());
  return rows(int8_t());
}

}  // namespace

#define SPARSEJAX_NAME(isa) SPARSEJAX_JOIN(isa)
#define SPARSEJAX_JOIN(isa) masked_##isa
extern const MaskedProducts SPARSEJAX_NAME(SPARSEJAX_ISA);
const MaskedProducts SPARSEJAX_NAME(SPARSEJAX_ISA) = {
    few, many, fill, kExamples, kBlock, kMostFew};

}  // namespace sparsejax
