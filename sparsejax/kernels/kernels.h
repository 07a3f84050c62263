// What the handlers call: products with the non-zeros of a matrix, and the
// selection of the k largest keys. Nothing here knows of XLA.
//
// A matrix W [in, out] is given by its columns ("rows" of W transposed): row o
// lists the inputs of output o. Activations are by example, [batch, features].
// Kernels read those of one side by feature: a copy that is turned over.

#ifndef SPARSEJAX_KERNELS_H_
#define SPARSEJAX_KERNELS_H_

#include <algorithm>
#include <cstdint>
#include <functional>

namespace sparsejax {

constexpr int64_t kLanes = 16;

enum class Type { kFloat32, kBfloat16, kInt8 };

// Values, of which slots may be named in another order than they lie in.
struct Values {
  const void* data;
  Type type;
  const int32_t* slots;  // The slot of each entry; null where it is its place.
  int64_t count;         // How many slots there are.
};

// The places of non-zeros: row r has columns[pointers[r]] and following.
struct Places {
  const int32_t* pointers;  // [rows + 1], ascending from 0.
  const uint16_t* columns;
  int64_t rows;
  int64_t width;  // Columns are below it.
};

inline int64_t vectors_of(int64_t batch) {
  return (batch + kLanes - 1) / kLanes;
}

// Rows of a matrix, activations, and what is to be made of them.
struct Layer {
  Places places;
  Values values;
  int64_t batch;
  const float* x;        // [batch, width]
  float* product;        // [batch, rows]: x times the rows; null for none.
  const float* by_rows;  // [batch, rows], for dots.
  void* dots;  // Of by_rows and x over the batch, for each slot; null for none.
  // Room: x turned over, [width, batch], its batch a multiple of kLanes; values
  // as floats in the order of entries, null if they are; dots in that order.
  float* turned;
  float* weights;
  float* sums;
};

// A batch is multiplied in lots, each by one thread if there are not more: what
// it turns over stays in its cache. Dots have one lot: their sums cost more.
inline int64_t lots_of(const Layer& layer) {
  return layer.dots ? 1 : std::min<int64_t>(2, vectors_of(layer.batch));
}

struct Products {
  // Looks at rows [begin, end), and fetches their values. False if a place or
  // slot is out of range.
  bool (*prepare)(const Layer&, int64_t begin, int64_t end);
  // Turns features [begin, end) of a lot over, from a multiple of kLanes on.
  void (*turn)(const Layer&, int64_t lot, int64_t begin, int64_t end);
  // Makes rows [begin, end) of the product and the dots of a lot.
  void (*multiply)(const Layer&, int64_t lot, int64_t begin, int64_t end);
  // y [rows] = W x [width], of one example. False as for prepare.
  bool (*multiply_one)(const float* x, Places, Values, float* y, int64_t begin,
                       int64_t end);
};

// The best that this processor can run.
const Products& products();

// Calls each(i) for i in [0, parts), on threads or not.
using Parallel =
    std::function<void(int64_t parts, const std::function<void(int64_t)>&)>;

// Marks the k largest keys, ties by lower index; a key of 0 is never marked.
void select(const uint32_t* keys, int64_t size, int64_t k, bool* mask,
            int64_t threads, const Parallel& parallel);

}  // namespace sparsejax

#endif  // SPARSEJAX_KERNELS_H_
