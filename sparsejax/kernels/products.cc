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
    uint16_t most = 0;
    for (int64_t j = 0; j < length; ++j) most = std::max(most, columns[j]);
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

#if defined(__AVX2__)

// One by one: no slower than a gather instruction, and faster where that one
// is slow (AMD's Zen 4; Intel's after its mending by microcode).
inline __m128 gather(const float* x, const uint16_t* columns) {
  __m128 four = _mm_load_ss(x + columns[0]);
  four = _mm_insert_ps(four, _mm_load_ss(x + columns[1]), 0x10);
  four = _mm_insert_ps(four, _mm_load_ss(x + columns[2]), 0x20);
  return _mm_insert_ps(four, _mm_load_ss(x + columns[3]), 0x30);
}

inline __m128 load_four(const float* p) { return _mm_loadu_ps(p); }

inline __m128 load_four(const Bfloat16* p) {
  const __m128i four = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(four), 16));
}

template <class T>
float dot(const float* x, const Row<T>& row) {
  // Processors do not look so far ahead; it may be in one of the next rows.
  constexpr int64_t kAhead = 2048;
  __m128 sums[4] = {};
  int64_t j = 0;
  for (; j + 16 <= row.length; j += 16) {
    const uint16_t* columns = row.columns + j;
    const T* values = row.values + j;
    __builtin_prefetch(columns + kAhead);
    __builtin_prefetch(values + kAhead);
    for (int i = 0; i < 4; ++i) {
      sums[i] = _mm_fmadd_ps(gather(x, columns + 4 * i),
                             load_four(values + 4 * i), sums[i]);
    }
  }
  const __m128 all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float total = (all[0] + all[2]) + (all[1] + all[3]);
  for (; j < row.length; ++j) {
    total += row.template value<false>(j) * x[row.columns[j]];
  }
  return total;
}

#else

template <class T>
float dot(const float* x, const Row<T>& row) {
  float sums[4] = {};
  int64_t j = 0;
  for (; j + 4 <= row.length; j += 4) {
    for (int i = 0; i < 4; ++i) {
      sums[i] += row.template value<false>(j + i) * x[row.columns[j + i]];
    }
  }
  for (; j < row.length; ++j) {
    sums[0] += row.template value<false>(j) * x[row.columns[j]];
  }
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

#endif

template <class T>
bool one_example(const float* x, Places places, Values values, float* y,
                 int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const Row<T> row(places, values, r);
    if (!row.in_range(places.width, 0)) return false;
    y[r] = dot(x, row);
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
