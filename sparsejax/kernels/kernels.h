// What the handlers call: products with the non-zeros of a matrix, and the
// selection of the k largest keys. Nothing here knows of XLA.
//
// A matrix W [in, out] is given by its columns ("rows" of W transposed): row o
// lists the inputs of output o. Activations are by feature, [features, batch],
// with a batch that is a multiple of kLanes, unless a function says otherwise.

#ifndef SPARSEJAX_KERNELS_H_
#define SPARSEJAX_KERNELS_H_

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

// Rows [begin, end) of each product. False if a place or slot is out of range.
struct Products {
  // y [rows, batch] = W x [width, batch].
  bool (*multiply)(const float* x, int64_t batch, Places, Values, float* y,
                   int64_t begin, int64_t end);
  // y [rows] = W x [width], of one example.
  bool (*multiply_one)(const float* x, Places, Values, float* y, int64_t begin,
                       int64_t end);
  // out [count]: the products of g [rows, batch] and x [width, batch].
  bool (*sample)(const float* x, const float* g, int64_t batch, Places,
                 void* out, Type, int64_t begin, int64_t end);
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
