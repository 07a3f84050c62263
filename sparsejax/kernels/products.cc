// The products, compiled once for every instruction set: SPARSEJAX_ISA is the
// name of the table that this makes.

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace sparsejax {
namespace {

// 64 bytes, wherever they lie; compilers split them on narrower machines.
typedef float Vector __attribute__((vector_size(64), aligned(4)));
typedef float Half __attribute__((vector_size(32), aligned(4)));
typedef float Quarter __attribute__((vector_size(16), aligned(4)));

// Vectors of a batch that are summed at once: what the registers hold.
#if defined(__AVX512F__)
constexpr int kPanel = 8;
#elif defined(__AVX2__)
constexpr int kPanel = 4;
#else
constexpr int kPanel = 2;
#endif

struct Bfloat16 {
  uint16_t bits;
};

inline float widen(float x) { return x; }

inline float widen(Bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline void narrow(float x, float* y) { *y = x; }

inline void narrow(float x, Bfloat16* y) {  // To the nearest, ties to even.
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) {
    y->bits = 0x7fc0;
  } else {
    y->bits = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
}

inline Vector load(const float* p) {
  return *reinterpret_cast<const Vector*>(p);
}

inline float sum(Vector v) {
  Half a, b;
  std::memcpy(&a, &v, sizeof a);
  std::memcpy(&b, reinterpret_cast<const char*>(&v) + sizeof a, sizeof b);
  a += b;
  Quarter c, d;
  std::memcpy(&c, &a, sizeof c);
  std::memcpy(&d, reinterpret_cast<const char*>(&a) + sizeof c, sizeof d);
  c += d;
  return (c[0] + c[2]) + (c[1] + c[3]);
}

template <class T>
struct Row {
  const uint16_t* columns;
  const T* values;
  const int32_t* slots;
  int64_t length;

  Row(Places places, Values all, int64_t r) {
    const int64_t begin = places.pointers[r];
    columns = places.columns + begin;
    values = static_cast<const T*>(all.data);
    slots = all.slots;
    if (slots) {
      slots += begin;
    } else {
      values += begin;
    }
    length = places.pointers[r + 1] - begin;
  }

  template <bool kSlots>
  float value(int64_t j) const {
    return widen(values[kSlots ? slots[j] : j]);
  }

  bool in_range(int64_t width, int64_t count) const {
    uint32_t most = 0;
    for (int64_t j = 0; j < length; ++j) {
      most = columns[j] > most ? columns[j] : most;
    }
    if (length && most >= width) return false;
    if (!slots) return true;
    uint32_t last = 0;  // A negative slot is a large one.
    for (int64_t j = 0; j < length; ++j) {
      const uint32_t slot = static_cast<uint32_t>(slots[j]);
      last = slot > last ? slot : last;
    }
    return !length || last < count;
  }
};

// V vectors of a row of y.
template <int V, bool kSlots, class T>
void panel(const float* x, int64_t batch, const Row<T>& row, float* y) {
  Vector sums[V] = {};
  for (int64_t j = 0; j < row.length; ++j) {
    const float w = row.template value<kSlots>(j);
    const float* p = x + row.columns[j] * batch;
    for (int v = 0; v < V; ++v) sums[v] += w * load(p + v * kLanes);
  }
  std::memcpy(y, sums, sizeof sums);
}

template <bool kSlots, class T>
void row_of_y(const float* x, int64_t batch, const Row<T>& row, float* y) {
  int64_t b = 0;
  for (; b + kPanel * kLanes <= batch; b += kPanel * kLanes) {
    panel<kPanel, kSlots>(x + b, batch, row, y + b);
  }
  if (kPanel > 4 && b + 4 * kLanes <= batch) {
    panel<4, kSlots>(x + b, batch, row, y + b);
    b += 4 * kLanes;
  }
  if (kPanel > 2 && b + 2 * kLanes <= batch) {
    panel<2, kSlots>(x + b, batch, row, y + b);
    b += 2 * kLanes;
  }
  for (; b < batch; b += kLanes) {
    panel<1, kSlots>(x + b, batch, row, y + b);
  }
}

template <class T>
bool multiply_rows(const float* x, int64_t batch, Places places, Values values,
                   float* y, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const Row<T> row(places, values, r);
    if (!row.in_range(places.width, values.count)) return false;
    if (row.slots) {
      row_of_y<true>(x, batch, row, y + r * batch);
    } else {
      row_of_y<false>(x, batch, row, y + r * batch);
    }
  }
  return true;
}

bool multiply(const float* x, int64_t batch, Places places, Values values,
              float* y, int64_t begin, int64_t end) {
  const auto rows = values.type == Type::kFloat32 ? multiply_rows<float>
                                                  : multiply_rows<Bfloat16>;
  return rows(x, batch, places, values, y, begin, end);
}

#if defined(__AVX512F__)

inline __m512 load_values(const float* p, __mmask16 m) {
  return _mm512_maskz_loadu_ps(m, p);
}

inline __m512 load_values(const Bfloat16* p, __mmask16 m) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

// Checks columns as it goes: what is out of range reads x[0].
template <class T>
bool dot(const float* x, const Row<T>& row, int64_t width, float* y) {
  __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  const __m512i bound = _mm512_set1_epi32(static_cast<int>(width));
  __mmask16 good = 0xffff;
  const auto step = [&](int64_t j, __mmask16 m, __m512& total) {
    const __m512i column = _mm512_cvtepu16_epi32(
        _mm256_maskz_loadu_epi16(m, row.columns + j));
    const __mmask16 in = _mm512_cmplt_epu32_mask(column, bound);
    good &= in;
    const __m512 xs = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), in & m,
                                               column, x, 4);
    total = _mm512_fmadd_ps(xs, load_values(row.values + j, m), total);
  };
  int64_t j = 0;
  for (; j + 32 <= row.length; j += 32) {
    step(j, 0xffff, sums[0]);
    step(j + 16, 0xffff, sums[1]);
  }
  for (; j < row.length; j += 16) {
    const int64_t left = row.length - j;
    step(j, left < 16 ? static_cast<__mmask16>((1u << left) - 1) : 0xffff,
         sums[0]);
  }
  *y = _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]));
  return good == 0xffff || !row.length;
}

#else

template <class T>
bool dot(const float* x, const Row<T>& row, int64_t width, float* y) {
  if (!row.in_range(width, 0)) return false;
  float sums[8] = {};
  int64_t j = 0;
#if defined(__AVX2__)
  __m256 total = _mm256_setzero_ps();
  for (; j + 8 <= row.length; j += 8) {
    const __m256i column = _mm256_cvtepu16_epi32(_mm_loadu_si128(
        reinterpret_cast<const __m128i*>(row.columns + j)));
    float ws[8];
    for (int i = 0; i < 8; ++i) ws[i] = row.template value<false>(j + i);
    total = _mm256_fmadd_ps(_mm256_i32gather_ps(x, column, 4),
                            _mm256_loadu_ps(ws), total);
  }
  _mm256_storeu_ps(sums, total);
#else
  for (; j + 8 <= row.length; j += 8) {
    for (int i = 0; i < 8; ++i) {
      sums[i] += row.template value<false>(j + i) * x[row.columns[j + i]];
    }
  }
#endif
  for (; j < row.length; ++j) {
    sums[0] += row.template value<false>(j) * x[row.columns[j]];
  }
  *y = ((sums[0] + sums[4]) + (sums[2] + sums[6])) +
       ((sums[1] + sums[5]) + (sums[3] + sums[7]));
  return true;
}

#endif

template <class T>
bool one_example(const float* x, Places places, Values values, float* y,
                 int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    if (!dot(x, Row<T>(places, values, r), places.width, y + r)) return false;
  }
  return true;
}

bool multiply_one(const float* x, Places places, Values values, float* y,
                  int64_t begin, int64_t end) {
  const auto rows = values.type == Type::kFloat32 ? one_example<float>
                                                  : one_example<Bfloat16>;
  return rows(x, places, values, y, begin, end);
}

// What V vectors of a row of g give, to be added to sums.
template <int V>
void dots(const float* x, const float* g, int64_t batch, const Row<float>& row,
          float* sums) {
  Vector gs[V];
  for (int v = 0; v < V; ++v) gs[v] = load(g + v * kLanes);
  int64_t j = 0;
  for (; j + 2 <= row.length; j += 2) {  // Two at once: more sums in flight.
    const float* p = x + row.columns[j] * batch;
    const float* q = x + row.columns[j + 1] * batch;
    Vector a[2] = {}, b[2] = {};
    for (int v = 0; v < V; ++v) {
      a[v % 2] += gs[v] * load(p + v * kLanes);
      b[v % 2] += gs[v] * load(q + v * kLanes);
    }
    sums[j] += sum(a[0] + a[1]);
    sums[j + 1] += sum(b[0] + b[1]);
  }
  for (; j < row.length; ++j) {
    const float* p = x + row.columns[j] * batch;
    Vector a = {};
    for (int v = 0; v < V; ++v) a += gs[v] * load(p + v * kLanes);
    sums[j] += sum(a);
  }
}

template <class T>
bool sample_rows(const float* x, const float* g, int64_t batch, Places places,
                 void* out, int64_t begin, int64_t end) {
  const Values none = {nullptr, Type::kFloat32, nullptr, 0};
  std::vector<float> room(places.width);
  float* sums = room.data();
  for (int64_t r = begin; r < end; ++r) {
    const Row<float> row(places, none, r);
    // More than there are columns: one is there twice.
    if (row.length > places.width || !row.in_range(places.width, 0)) {
      return false;
    }
    std::fill(sums, sums + row.length, 0.0f);
    const float* gr = g + r * batch;
    int64_t b = 0;
    for (; b + kPanel * kLanes <= batch; b += kPanel * kLanes) {
      dots<kPanel>(x + b, gr + b, batch, row, sums);
    }
    if (kPanel > 4 && b + 4 * kLanes <= batch) {
      dots<4>(x + b, gr + b, batch, row, sums);
      b += 4 * kLanes;
    }
    if (kPanel > 2 && b + 2 * kLanes <= batch) {
      dots<2>(x + b, gr + b, batch, row, sums);
      b += 2 * kLanes;
    }
    for (; b < batch; b += kLanes) dots<1>(x + b, gr + b, batch, row, sums);
    T* to = static_cast<T*>(out) + places.pointers[r];
    for (int64_t j = 0; j < row.length; ++j) narrow(sums[j], to + j);
  }
  return true;
}

bool sample(const float* x, const float* g, int64_t batch, Places places,
            void* out, Type type, int64_t begin, int64_t end) {
  const auto rows =
      type == Type::kFloat32 ? sample_rows<float> : sample_rows<Bfloat16>;
  return rows(x, g, batch, places, out, begin, end);
}

}  // namespace

extern const Products SPARSEJAX_ISA;
const Products SPARSEJAX_ISA = {multiply, multiply_one, sample};

}  // namespace sparsejax
