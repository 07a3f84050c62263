// Attention of a few queries, compiled once for every instruction set.

#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "vectors.h"

namespace sparsejax {
namespace {

// Queries for which a key or value is loaded once.
constexpr int kTogether = 3;
// Vectors of a value that are summed at once: what the registers hold.
constexpr int kChunk = 4;

template <class T>
inline Vector wide(const T* p) {
  float room[kWidth];
  for (int i = 0; i < kWidth; ++i) room[i] = widen(p[i]);
  return load(room);
}

inline Vector wide(const float* p) { return load(p); }

// e^x for x <= 0, to 1e-7 of it: Cody and Waite's reduction and Taylor's
// polynomial, without a branch or a loop, so that compilers make vectors of it.
inline float exponential(float x) {
  const float n = std::nearbyintf(std::max(x, -87.0f) * 1.44269504f);
  const float r = (std::max(x, -87.0f) - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return x < -87.0f ? 0.0f : p * power;
}

// Scores of N queries with the keys [begin, end).
template <int N, class T>
void score(const float* query, const T* keys, int64_t width, int64_t begin,
           int64_t end, float scale, float* scores, int64_t stride) {
  const int64_t whole = width / kWidth * kWidth;
  for (int64_t l = begin; l < end; ++l) {
    const T* key = keys + l * width;
    Vector sums[N] = {};
    for (int64_t i = 0; i < whole; i += kWidth) {
      const Vector k = wide(key + i);
      for (int q = 0; q < N; ++q) sums[q] += k * load(query + q * width + i);
    }
    for (int q = 0; q < N; ++q) {
      float dot = sum(sums[q]);
      for (int64_t i = whole; i < width; ++i) {
        dot += widen(key[i]) * query[q * width + i];
      }
      scores[q * stride + l] = scale * dot;
    }
  }
}

// y = sum of weights times the values [begin, end), for N queries.
template <int N, class T>
void mix(const float* weights, int64_t stride, const T* values, int64_t width,
         int64_t begin, int64_t end, float* y) {
  constexpr int64_t kPlaces = kChunk * kWidth;
  int64_t i = 0;
  for (; i + kPlaces <= width; i += kPlaces) {
    Vector sums[N][kChunk] = {};
    for (int64_t l = begin; l < end; ++l) {
      for (int c = 0; c < kChunk; ++c) {
        const Vector v = wide(values + l * width + i + c * kWidth);
        for (int q = 0; q < N; ++q) sums[q][c] += weights[q * stride + l] * v;
      }
    }
    for (int q = 0; q < N; ++q) {
      for (int c = 0; c < kChunk; ++c) {
        store(sums[q][c], y + q * width + i + c * kWidth);
      }
    }
  }
  for (; i < width; ++i) {
    float sums[N] = {};
    for (int64_t l = begin; l < end; ++l) {
      const float v = widen(values[l * width + i]);
      for (int q = 0; q < N; ++q) sums[q] += weights[q * stride + l] * v;
    }
    for (int q = 0; q < N; ++q) y[q * width + i] = sums[q];
  }
}

inline float larger(float a, float b) { return a > b ? a : b; }

// Scores to weights that add up to 1. A score that is NaN makes them NaN.
void softmax(float* scores, const float* bias, int64_t count) {
  if (bias) {
    for (int64_t i = 0; i < count; ++i) scores[i] += bias[i];
  }
  // Several at once: one after another would wait for each.
  float most[kLanes], totals[kLanes] = {};
  std::fill(most, most + kLanes, -INFINITY);
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) most[j] = larger(scores[i + j], most[j]);
  }
  for (int64_t i = whole; i < count; ++i) most[0] = larger(scores[i], most[0]);
  const float top = *std::max_element(most, most + kLanes);
  for (int64_t i = 0; i < count; ++i) scores[i] = exponential(scores[i] - top);
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) totals[j] += scores[i + j];
  }
  for (int64_t i = whole; i < count; ++i) totals[0] += scores[i];
  const float one = 1.0f / std::accumulate(totals, totals + kLanes, 0.0f);
  for (int64_t i = 0; i < count; ++i) scores[i] *= one;
}

template <int N, class T>
void attend_to(const Attention& a, int64_t head, int64_t first, float* room) {
  const int32_t* spans = a.spans + head * a.tokens * 2;
  int64_t begin = a.length, end = 0;  // What any of them sees.
  for (int q = 0; q < N; ++q) {
    const int32_t* span = spans + (first + q) % a.tokens * 2;
    begin = std::min<int64_t>(begin, span[0]);
    end = std::max<int64_t>(end, span[1]);
  }
  const int64_t at = head * a.length * a.width;
  const int64_t row = head * a.queries + first;
  score<N>(a.query + row * a.width, static_cast<const T*>(a.key) + at, a.width,
           begin, end, a.scale, room, a.length);
  for (int q = 0; q < N; ++q) {
    float* scores = room + q * a.length;
    const int32_t* span = spans + (first + q) % a.tokens * 2;
    const float* bias = a.bias ? a.bias + (row + q) * a.length : nullptr;
    softmax(scores + span[0], bias ? bias + span[0] : nullptr,
            span[1] - span[0]);
    std::fill(scores + begin, scores + span[0], 0.0f);
    std::fill(scores + span[1], scores + end, 0.0f);
  }
  mix<N>(room, a.length, static_cast<const T*>(a.value) + at, a.width, begin,
         end, a.y + row * a.width);
}

template <class T>
void attend_head(const Attention& a, int64_t head, float* room) {
  int64_t q = 0;
  for (; q + kTogether <= a.queries; q += kTogether) {
    attend_to<kTogether, T>(a, head, q, room);
  }
  for (; q < a.queries; ++q) attend_to<1, T>(a, head, q, room);
}

void attend_any(const Attention& a, int64_t head, float* room) {
  (a.type == Type::kFloat32 ? attend_head<float> : attend_head<Bfloat16>)(
      a, head, room);
}

}  // namespace

#define SPARSEJAX_NAME(isa) SPARSEJAX_JOIN(isa)
#define SPARSEJAX_JOIN(isa) attend_##isa
extern const Attend SPARSEJAX_NAME(SPARSEJAX_ISA);
const Attend SPARSEJAX_NAME(SPARSEJAX_ISA) = attend_any;

}  // namespace sparsejax
