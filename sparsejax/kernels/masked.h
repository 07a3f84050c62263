// Products for inference: a matrix given by a bit for every weight, zero or
// not, or one without zeros, in float32, bfloat16 or int8. Nothing here knows
// of XLA.
//
// A matrix W [width, rows] is given by its columns ("rows" of W transposed):
// row o holds the weights of output o. Activations are by example, [batch, ...].

#ifndef SPARSEJAX_MASKED_H_
#define SPARSEJAX_MASKED_H_

#include <cstdint>

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

// Rows [begin, end) of each product. False if a row has not as many bits as
// pointers say.
struct MaskedProducts {
  // y [batch, rows] = x W, for few examples: x is [batch, stride], with
  // stride >= width + 64 and zeros from width on.
  bool (*few)(const float* x, int64_t batch, int64_t stride, const Masked&,
              float* y, int64_t begin, int64_t end);
  // The same for many examples, from panels [width, examples]. The last panel is
  // as much narrower as there are vectors less.
  bool (*many)(const float* panels, int64_t batch, const Masked&, float* y,
               int64_t begin, int64_t end);
  // Makes the panel that begins with this example.
  void (*fill)(const float* x, int64_t batch, int64_t width, int64_t first,
               float* panels);
  int64_t panel;  // Examples of a panel; the last one has fewer.
};

// The best that this processor can run.
const MaskedProducts& masked_products();

}  // namespace sparsejax

#endif  // SPARSEJAX_MASKED_H_
