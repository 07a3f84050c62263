// Products for inference: a matrix given by a bit for every weight, zero or
// not, or one without zeros, in float32, bfloat16 or int8. Nothing here knows
// of XLA.
//
// A matrix W [width, rows] is given by its columns ("rows" of W transposed):
// row o holds the weights of output o. Activations are by example, [batch, ...].

#ifndef SPARSEJAX_MASKED_H_
#define SPARSEJAX_MASKED_H_

#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels.h"

namespace sparsejax {

struct Masked {
  const uint8_t* bits;      // [rows, ceil(width / 8)]; null: nothing is zero.
  const int32_t* pointers;  // [rows + 1]: where each row's values begin.
  int64_t rows;
  int64_t width;
  const void* values;  // In order of (row, place).
  Type type;
  int64_t count;        // How many values there are; all pointers are within.
  const float* scales;  // [rows, groups], of int8 values.
  int64_t groups;       // Of a multiple of 8 places each, if more than one.
};

constexpr int64_t kWord = 64;  // Places whose bits are looked at together.

namespace {  // Each instruction set has its own.

// The lowest n <= 64 bits.
inline uint64_t lowest(int64_t n) {
  return n < kWord ? (uint64_t{1} << n) - 1 : ~uint64_t{0};
}

// Where the bits of row r begin.
inline const uint8_t* bits_of(const Masked& w, int64_t r) {
  return w.bits + r * ((w.width + 7) / 8);
}

// The bits of n <= 64 places of a row from the first on, a multiple of 8.
inline uint64_t word_of(const Masked& w, int64_t r, int64_t first, int64_t n) {
  if (!w.bits) return lowest(n);
  uint64_t word = 0;
  std::memcpy(&word, bits_of(w, r) + first / 8, (n + 7) / 8);
  return word & lowest(n);
}

// Where the values of row r begin.
inline int64_t start_of(const Masked& w, int64_t r) {
  return w.bits ? w.pointers[r] : r * w.width;
}

// Memory in whole cache lines, since a load that crosses one takes twice as
// long. It is kept by a thread, for new memory is slow to touch first.
class Room {
 public:
  template <class T>
  T* of(int64_t size) {
    room_.resize(size * sizeof(T) + 64);
    const auto address = reinterpret_cast<uintptr_t>(room_.data());
    return reinterpret_cast<T*>(room_.data() + -address % 64);
  }

 private:
  std::vector<char> room_;
};

}  // namespace

// Rows [begin, end) of each product. False if a row has not as many bits as
// pointers say.
struct MaskedProducts {
  // y [batch, rows] = x W, for few examples: x is [batch, stride], with
  // stride >= width + 64 and zeros from width on.
  bool (*few)(const float* x, int64_t batch, int64_t stride, const Masked&,
              float* y, int64_t begin, int64_t end);
  // The same for many examples, from panels [width, examples]. The last panel has
  // as many examples as are left, and zeros up to a multiple of kLanes.
  bool (*many)(const float* panels, int64_t batch, const Masked&, float* y,
               int64_t begin, int64_t end);
  // Makes the panel that begins with this example.
  void (*fill)(const float* x, int64_t batch, int64_t width, int64_t first,
               float* panels);
  int64_t panel;  // Examples of a panel; the last one has fewer.
  int64_t block;  // The most rows that `many` unpacks at once.
  int64_t fewest;  // From so many on `many` is the faster one at any density.
};

// Examples whose activations are rounded to int8, each by its largest one.
struct Rounded {
  int64_t batch;
  int64_t stride;    // A multiple of 64.
  int8_t* integers;  // [padded, stride] and a word: else zeros.
  float* scales;     // [batch]: what one of an example's integers stands for.
  int32_t* sums;     // [padded, groups]: of integers.
};

// Batches of rounded examples are padded to a multiple of this.
constexpr int64_t kTogether = 8;

// Products of integers, the same ones whatever the instruction set: those of a
// group are added up in int32, then multiplied by its and the example's scale.
struct IntegerProducts {
  // Rounds an example to the nearest integers, ties to even.
  void (*round)(const float* x, const Masked&, int64_t example,
                const Rounded& to);
  // y [batch, rows] = x W, of int8.
  bool (*multiply)(const Rounded& x, const Masked&, float* y, int64_t begin,
                   int64_t end);
};

// The best that this processor can run.
const MaskedProducts& masked_products();
const IntegerProducts& integer_products();

}  // namespace sparsejax

#endif  // SPARSEJAX_MASKED_H_
