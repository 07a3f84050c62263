// The products, compiled once for every instruction set: SPARSEJAX_ISA is the
// name of the table that this makes.

#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "vectors.h"

namespace sparsejax {
namespace {

// Vectors of a batch that are summed at once: what the registers hold.
#if defined(__AVX512F__)
constexpr int kPanel = 8;
#elif defined(__AVX2__)
constexpr int kPanel = 4;
#else
constexpr int kPanel = 2;
#endif

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

// What a panel of x should not exceed, to stay in a core's second cache.
constexpr int64_t kPanelBytes = 640 << 10;
// Rows whose products are turned over together.
constexpr int64_t kBlock = 64;

// Some vectors of a batch. Their features lie together: [width, padded].
struct Panel {
  int64_t vectors, first, padded, count;  // All but the first in examples.

  float* turned(const Layer& layer) const {
    return layer.turned + first * layer.places.width;
  }
};

// Calls each(panel) for those of a lot, which are as even as can be.
template <class Each>
void for_panels(const Layer& layer, int64_t lot, const Each& each) {
  const int64_t all = vectors_of(layer.batch), lots = lots_of(layer);
  const int64_t begin = all * lot / lots;
  const int64_t vectors = all * (lot + 1) / lots - begin;
  const int64_t width = std::max<int64_t>(1, layer.places.width);
  const int64_t fit = kPanelBytes / (64 * width);
  const int64_t most = std::clamp<int64_t>(fit, std::min(4, kPanel), kPanel);
  const int64_t panels = (vectors + most - 1) / most;
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t first = begin + vectors * p / panels;
    const int64_t here = begin + vectors * (p + 1) / panels - first;
    const int64_t left = layer.batch - first * kLanes;
    each(Panel{here, first * kLanes, here * kLanes,
               std::min(here * kLanes, left)});
  }
}

void turn(const Layer& layer, int64_t lot, int64_t begin, int64_t end) {
  const int64_t width = layer.places.width;
  for_panels(layer, lot, [&](const Panel& p) {
    to_features(layer.x + p.first * width + begin, width, p.count, end - begin,
                p.turned(layer) + begin * p.padded, p.padded);
  });
}

// The entries of a row as panels want them.
struct Entries {
  const uint16_t* columns;
  const float* weights;
  float* dots;
  int64_t length;
};

// Makes a row of one panel: V vectors of the product, and what they add to the
// dot products with V vectors that come by rows.
template <int V, bool kProduct, bool kDots>
void panel(const float* turned, const Entries& row, const float* by_rows,
           float* product) {
  constexpr int kRegisters = V * kLanes / kWidth;
  Vector total[kRegisters], mine[kRegisters];
  for (int v = 0; v < kRegisters; ++v) {
    total[v] = Vector{};
    if (kDots) mine[v] = load(by_rows + v * kWidth);
  }
  const auto entry = [&](int64_t j) {
    const float* p = turned + row.columns[j] * (V * kLanes);
    Vector dot = {};
    for (int v = 0; v < kRegisters; ++v) {
      Vector x = load(p + v * kWidth);
#if defined(__AVX512F__)
      if (kProduct && kDots) __asm__("" : "+v"(x));  // Loaded once, not twice.
#endif
      if (kProduct) total[v] += row.weights[j] * x;
      if (kDots) dot += mine[v] * x;
    }
    return dot;
  };
  int64_t j = 0;
  for (; j + 4 <= row.length; j += 4) {
    const Vector a = entry(j), b = entry(j + 1);
    const Vector c = entry(j + 2), d = entry(j + 3);
    if (kDots) {
      Quarter four;
      std::memcpy(&four, row.dots + j, sizeof four);
      four += sums(a, b, c, d);
      std::memcpy(row.dots + j, &four, sizeof four);
    }
  }
  for (; j < row.length; ++j) {
    const Vector a = entry(j);
    if (kDots) row.dots[j] += sum(a);
  }
  for (int v = 0; kProduct && v < kRegisters; ++v) {
    std::memcpy(product + v * kWidth, &total[v], sizeof total[v]);
  }
}

template <bool kProduct, bool kDots>
auto panel_of(int64_t vectors) {
  static constexpr decltype(&panel<1, kProduct, kDots>) all[] = {
      panel<1, kProduct, kDots>, panel<2, kProduct, kDots>,
#if defined(__AVX2__)
      panel<3, kProduct, kDots>, panel<4, kProduct, kDots>,
#endif
#if defined(__AVX512F__)
      panel<5, kProduct, kDots>, panel<6, kProduct, kDots>,
      panel<7, kProduct, kDots>, panel<8, kProduct, kDots>,
#endif
  };
  static_assert(sizeof all / sizeof *all == kPanel);
  return all[vectors - 1];
}

// Entries [begin, end) of the dots, to their slots.
template <class T>
void put(const Layer& layer, int64_t begin, int64_t end) {
  const int32_t* slots = layer.values.slots;
  T* dots = static_cast<T*>(layer.dots);
  for (int64_t j = begin; j < end; ++j) {
    narrow(layer.sums[j], dots + (slots ? slots[j] : j));
  }
}

template <bool kProduct, bool kDots>
void multiply_as(const Layer& layer, int64_t lot, int64_t begin, int64_t end) {
  const Places& places = layer.places;
  const int32_t* pointers = places.pointers;
  const float* weights = layer.weights
                             ? layer.weights
                             : static_cast<const float*>(layer.values.data);
  float* sums = layer.sums;
  if (kDots) std::fill(sums + pointers[begin], sums + pointers[end], 0.0f);
  alignas(64) float mine[kDots ? kBlock * kPanel * kLanes : 1];
  alignas(64) float made[kProduct ? kBlock * kPanel * kLanes : 1];
  for_panels(layer, lot, [&](const Panel& p) {
    const auto one = panel_of<kProduct, kDots>(p.vectors);
    for (int64_t r = begin; r < end; r += kBlock) {
      const int64_t rows = std::min(kBlock, end - r);
      const int64_t at = p.first * places.rows + r;
      if (kDots) {
        to_features(layer.by_rows + at, places.rows, p.count, rows, mine,
                    p.padded);
      }
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t first = pointers[r + i];
        const Entries row = {places.columns + first, weights + first,
                             sums + first, pointers[r + i + 1] - first};
        one(p.turned(layer), row, mine + (kDots ? i * p.padded : 0),
            made + (kProduct ? i * p.padded : 0));
      }
      if (kProduct) {
        to_examples(made, p.padded, rows, p.count, layer.product + at,
                    places.rows);
      }
    }
  });
  if (!kDots) return;
  const auto to_slots = layer.values.type == Type::kFloat32
                            ? put<float>
                            : put<Bfloat16>;
  to_slots(layer, pointers[begin], pointers[end]);
}

void multiply(const Layer& layer, int64_t lot, int64_t begin, int64_t end) {
  if (!layer.product && !layer.dots) return;
  const auto rows = !layer.dots     ? multiply_as<true, false>
                    : layer.product ? multiply_as<true, true>
                                    : multiply_as<false, true>;
  rows(layer, lot, begin, end);
}

template <class T>
bool prepare_as(const Layer& layer, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const Row<T> row(layer.places, layer.values, r);
    if (!row.in_range(layer.places.width, layer.values.count)) return false;
    if (!layer.weights) continue;
    float* to = layer.weights + layer.places.pointers[r];
    for (int64_t j = 0; j < row.length; ++j) {
      to[j] = row.slots ? row.template value<true>(j)
                        : row.template value<false>(j);
    }
  }
  return true;
}

bool prepare(const Layer& layer, int64_t begin, int64_t end) {
  const auto rows = layer.values.type == Type::kFloat32 ? prepare_as<float>
                                                        : prepare_as<Bfloat16>;
  return rows(layer, begin, end);
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

}  // namespace

extern const Products SPARSEJAX_ISA;
const Products SPARSEJAX_ISA = {prepare, turn, multiply, multiply_one};

}  // namespace sparsejax
