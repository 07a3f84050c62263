// Products with masked matrices as a target of XLA's foreign function interface.

#include <algorithm>
#include <atomic>
#include <map>
#include <vector>

#include "calls.h"
#include "masked.h"

namespace sparsejax {
namespace {

using Bytes = ffi::Buffer<ffi::U8>;

// From so many examples on, times the density, weights are unpacked for all of
// them. Around that it makes little difference.
constexpr int64_t kMany = 64;
// Less work than this many weights is done by the calling thread.
constexpr int64_t kAlone = 1 << 16;
// Examples that are multiplied at once: a limit on memory.
constexpr int64_t kMost = 512;

ffi::Error broken_bits() {
  return ffi::Error::InvalidArgument(
      "the bits and row pointers of a packed matrix do not go with its values: "
      "make it with packed.pack, or look at it with packed.check");
}

bool in_order(const Masked& w) {
  if (!w.bits) return w.count >= w.rows * w.width;
  const int32_t* p = w.pointers;
  return p[0] >= 0 && p[w.rows] <= w.count &&
         std::is_sorted(p, p + w.rows + 1);
}

// One of the matrices that x is multiplied by, and where to.
struct Product {
  Masked w;
  float* y;
  bool dynamic;  // Whether x is rounded to int8.
};

int64_t rows_of(const std::vector<Product>& products) {
  int64_t all = 0;
  for (const Product& p : products) all += p.w.rows;
  return all;
}

// A quarter of a thread's rows.
int64_t quarter(const Crew& crew, const std::vector<Product>& products) {
  const int64_t parts = 4 * crew.threads();
  return (rows_of(products) + parts - 1) / parts;
}

// Calls rows(product, begin, end) for parts of all rows of matrices of one
// width, of so many rows; tells if all went well. Threads are woken once, and
// small matrices share a part.
template <class Rows>
bool by_parts(Crew& crew, const std::vector<Product>& products, int64_t batch,
              int64_t size, const Rows& rows) {
  const int64_t all = rows_of(products);
  const bool alone = batch * all * products[0].w.width < kAlone;
  const int64_t parts = alone ? 1 : (all + size - 1) / size;
  std::atomic<bool> good{true};
  const auto each = [&](int64_t part) {
    int64_t begin = part * size, end = alone ? all : begin + size;
    for (const Product& p : products) {
      const int64_t from = std::max<int64_t>(begin, 0);
      const int64_t to = std::min(end, p.w.rows);
      if (from < to && !rows(p, from, to)) good = false;
      begin -= p.w.rows;
      end -= p.w.rows;
    }
  };
  if (parts == 1) {
    each(0);
  } else {
    crew.run(parts, each);
  }
  return good;
}

bool multiply_few(Crew& crew, const float* x, int64_t batch,
                  const std::vector<Product>& products) {
  thread_local Room room;
  const int64_t width = products[0].w.width;
  const int64_t stride = (width + 127) / 64 * 64;
  float* padded = room.of<float>(batch * stride);
  for (int64_t e = 0; e < batch; ++e) {
    float* to = padded + e * stride;
    std::fill(std::copy_n(x + e * width, width, to), to + stride, 0.0f);
  }
  const auto rows = [=](const Product& p, int64_t begin, int64_t end) {
    return masked_products().few(padded, batch, stride, p.w, p.y, begin, end);
  };
  return by_parts(crew, products, batch, quarter(crew, products), rows);
}

bool multiply_many(Crew& crew, const float* x, int64_t batch,
                   const std::vector<Product>& products) {
  thread_local Room room;
  const MaskedProducts& use = masked_products();
  const int64_t width = products[0].w.width;
  const int64_t wide = (batch + kLanes - 1) / kLanes * kLanes;
  float* panels = room.of<float>(wide * width);
  crew.run((batch + use.panel - 1) / use.panel, [=, &use](int64_t i) {
    use.fill(x, batch, width, i * use.panel, panels);
  });
  const auto rows = [=, &use](const Product& p, int64_t begin, int64_t end) {
    return use.many(panels, batch, p.w, p.y, begin, end);
  };
  // As many parts for each thread, each unpacked at once, whose results share no
  // lines of the cache.
  const int64_t lots = vectors_of(rows_of(products)), threads = crew.threads();
  const int64_t most = threads * (use.block / kLanes);
  const int64_t parts = threads * ((lots + most - 1) / most);
  const int64_t size = (lots + parts - 1) / parts * kLanes;
  return by_parts(crew, products, batch, size, rows);
}

// Of x that is rounded to int8, by matrices of as many groups.
bool multiply_rounded(Crew& crew, const float* x, int64_t batch,
                      const std::vector<Product>& products) {
  thread_local Room of_integers, of_scales, of_sums;
  const Masked& first = products[0].w;
  const int64_t padded = (batch + kTogether - 1) / kTogether * kTogether;
  const int64_t stride = (first.width + kWord - 1) / kWord * kWord;
  const int64_t size = padded * stride + kWord, sums = padded * first.groups;
  const Rounded to = {batch, stride, of_integers.of<int8_t>(size),
                      of_scales.of<float>(batch), of_sums.of<int32_t>(sums)};
  std::fill(to.integers + batch * stride, to.integers + size, int8_t{0});
  std::fill(to.sums + batch * first.groups, to.sums + sums, 0);
  const auto round = [&](int64_t part) {
    const int64_t end = std::min(batch, (part + 1) * kTogether);
    for (int64_t e = part * kTogether; e < end; ++e) {
      integer_products().round(x + e * first.width, first, e, to);
    }
  };
  crew.run(padded / kTogether, round);
  const auto rows = [&](const Product& p, int64_t begin, int64_t end) {
    return integer_products().multiply(to, p.w, p.y, begin, end);
  };
  return by_parts(crew, products, batch, quarter(crew, products), rows);
}

// Whether a matrix is one for the kernel of few examples. It depends on the
// matrix alone, so that those beside it change no result.
bool is_for_few(const Masked& w, int64_t batch) {
  const int64_t used = w.bits ? w.pointers[w.rows] : w.rows * w.width;
  return batch < masked_products().fewest &&
         batch * w.rows * w.width < kMany * used;
}

constexpr size_t kBuffers = 4;  // Of a matrix: bits, pointers, values, scales.

// Reads the i-th matrix, and where its product goes.
ffi::Error read_product(int64_t width, const ffi::RemainingArgs& matrices,
                        const ffi::RemainingRets& results, size_t i,
                        Product* to) {
  const auto bits = matrices.get<Bytes>(kBuffers * i);
  const auto pointers = matrices.get<Ints>(kBuffers * i + 1);
  const auto values = matrices.get<ffi::AnyBuffer>(kBuffers * i + 2);
  const auto scales = matrices.get<Floats>(kBuffers * i + 3);
  auto y = results.get<Floats>(i);
  if (!bits || !pointers || !values || !scales || !y) {
    return ffi::Error::InvalidArgument("a matrix lacks a buffer");
  }
  const bool is_int8 = values->element_type() == ffi::S8;
  const auto type = is_int8 ? Type::kInt8 : type_of(values->element_type());
  if (!type) return wrong_type();
  to->y = (*y)->typed_data();
  to->w = {
      bits->element_count() ? bits->typed_data() : nullptr,
      pointers->typed_data(),
      (*y)->dimensions()[1],
      width,
      values->untyped_data(),
      *type,
      static_cast<int64_t>(values->element_count()),
      is_int8 ? scales->typed_data() : nullptr,
      is_int8 ? scales->dimensions()[1] : 1,
  };
  return in_order(to->w) ? ffi::Error::Success() : broken_bits();
}

// The products of the same x with several matrices. Bit i of `dynamic` tells
// whether x is rounded for the i-th.
ffi::Error multiply_masked(ffi::ThreadPool pool, Floats x, int64_t dynamic,
                           ffi::RemainingArgs matrices,
                           ffi::RemainingRets results) {
  const int64_t batch = x.dimensions()[0], width = x.dimensions()[1];
  std::vector<Product> products(results.size());
  for (size_t i = 0; i < products.size(); ++i) {
    const auto error = read_product(width, matrices, results, i, &products[i]);
    if (error.failure()) return error;
    products[i].dynamic = dynamic >> i & 1;
  }
  Crew crew(pool);
  bool good = true;
  for (int64_t first = 0; first < batch; first += kMost) {
    const int64_t n = std::min(kMost, batch - first);
    const float* const from = x.typed_data() + first * width;
    std::vector<Product> few, many;
    std::map<int64_t, std::vector<Product>> rounded;  // By number of groups.
    for (Product p : products) {
      auto& to = p.dynamic              ? rounded[p.w.groups]
                 : is_for_few(p.w, n) ? few
                                        : many;
      p.y += first * p.w.rows;
      to.push_back(p);
    }
    if (!few.empty()) good &= multiply_few(crew, from, n, few);
    if (!many.empty()) good &= multiply_many(crew, from, n, many);
    for (const auto& [groups, some] : rounded) {
      good &= multiply_rounded(crew, from, n, some);
    }
  }
  return good ? ffi::Error::Success() : broken_bits();
}

}  // namespace
}  // namespace sparsejax

XLA_FFI_DEFINE_HANDLER_SYMBOL(sparsejax_multiply_masked,
                              sparsejax::multiply_masked,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<sparsejax::Floats>()
                                  .Attr<int64_t>("dynamic")
                                  .RemainingArgs()
                                  .RemainingRets());
