// Products with masked matrices as a target of XLA's foreign function interface.

#include <algorithm>
#include <atomic>
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

// Memory in whole cache lines, since a load that crosses one takes twice as
// long. It is kept by a thread, for new memory is slow to touch first.
class Room {
 public:
  float* of(int64_t size) {
    room_.resize(size + 16);
    const auto address = reinterpret_cast<uintptr_t>(room_.data());
    return room_.data() + (-address % 64) / sizeof(float);
  }

 private:
  std::vector<float> room_;
};

// Calls rows(begin, end) for parts of the matrix; tells if all went well.
template <class Rows>
bool by_parts(Crew& crew, const Masked& w, int64_t batch, const Rows& rows) {
  const bool alone = batch * w.rows * w.width < kAlone;
  const int64_t parts = alone ? 1 : std::min(w.rows, 4 * crew.threads());
  std::atomic<bool> good{true};
  const auto each = [&](int64_t part) {
    if (!rows(w.rows * part / parts, w.rows * (part + 1) / parts)) good = false;
  };
  if (parts == 1) {
    each(0);
  } else {
    crew.run(parts, each);
  }
  return good;
}

bool multiply_few(Crew& crew, const float* x, int64_t batch, const Masked& w,
                  float* y) {
  thread_local Room room;
  const int64_t stride = (w.width + 127) / 64 * 64;
  float* padded = room.of(batch * stride);
  for (int64_t e = 0; e < batch; ++e) {
    float* to = padded + e * stride;
    std::fill(std::copy_n(x + e * w.width, w.width, to), to + stride, 0.0f);
  }
  return by_parts(crew, w, batch, [=](int64_t begin, int64_t end) {
    return masked_products().few(padded, batch, stride, w, y, begin, end);
  });
}

bool multiply_many(Crew& crew, const float* x, int64_t batch, const Masked& w,
                   float* y) {
  thread_local Room room;
  const MaskedProducts& use = masked_products();
  const int64_t wide = (batch + kLanes - 1) / kLanes * kLanes;
  float* panels = room.of(wide * w.width);
  crew.run((batch + use.panel - 1) / use.panel, [=, &use](int64_t i) {
    use.fill(x, batch, w.width, i * use.panel, panels);
  });
  return by_parts(crew, w, batch, [=, &use](int64_t begin, int64_t end) {
    return use.many(panels, batch, w, y, begin, end);
  });
}

ffi::Error multiply_masked(ffi::ThreadPool pool, Floats x, Bytes bits,
                           Ints pointers, ffi::AnyBuffer values, Floats scales,
                           ffi::ResultBuffer<ffi::F32> y) {
  const bool is_int8 = values.element_type() == ffi::S8;
  const auto type = is_int8 ? Type::kInt8 : type_of(values.element_type());
  if (!type) return wrong_type();
  const int64_t batch = x.dimensions()[0];
  const Masked w = {
      bits.element_count() ? bits.typed_data() : nullptr,
      pointers.typed_data(),
      y->dimensions()[1],
      x.dimensions()[1],
      values.untyped_data(),
      *type,
      static_cast<int64_t>(values.element_count()),
      is_int8 ? scales.typed_data() : nullptr,
      is_int8 ? scales.dimensions()[1] : 1,
  };
  if (!in_order(w)) return broken_bits();
  const int64_t used = w.bits ? w.pointers[w.rows] : w.rows * w.width;
  Crew crew(pool);
  bool good = true;
  for (int64_t first = 0; first < batch; first += kMost) {
    const int64_t n = std::min(kMost, batch - first);
    const bool few = n * w.rows * w.width < kMany * used;
    const auto multiply = few ? multiply_few : multiply_many;
    good &= multiply(crew, x.typed_data() + first * w.width, n, w,
                     y->typed_data() + first * w.rows);
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
                                  .Arg<sparsejax::Bytes>()
                                  .Arg<sparsejax::Ints>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<sparsejax::Floats>()
                                  .Ret<sparsejax::Floats>());
