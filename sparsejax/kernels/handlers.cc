// The kernels as targets of XLA's foreign function interface.

#include <algorithm>
#include <atomic>
#include <optional>

#include "calls.h"
#include "kernels.h"

namespace sparsejax {
namespace {

// Where parts of about as many non-zeros begin.
int64_t begin_of(const Places& places, int64_t part, int64_t parts) {
  if (part == parts) return places.rows;
  const int64_t before = int64_t{places.pointers[places.rows]} * part / parts;
  const int32_t* end = places.pointers + places.rows;
  return part ? std::lower_bound(places.pointers, end, before) - places.pointers
              : 0;
}

template <class Rows>
ffi::Error by_rows(ffi::ThreadPool& pool, const Places& places, int64_t work,
                   const Rows& rows) {
  Crew crew(pool);
  const int64_t parts =
      work < kWorthThreads ? 1
                           : std::min(places.rows, 4 * crew.threads());
  std::atomic<bool> good{true};
  const auto each = [&](int64_t part) {
    const int64_t begin = begin_of(places, part, parts);
    const int64_t end = begin_of(places, part + 1, parts);
    if (begin < end && !rows(begin, end)) good = false;
  };
  if (parts <= 1) {
    each(0);
  } else {
    crew.run(parts, each);
  }
  if (good) return ffi::Error::Success();
  return ffi::Error::InvalidArgument(
      "the structure of a packed matrix has a place out of range: make it with "
      "packed.pack, or look at it with packed.check");
}

std::optional<Places> places_of(const Ints& pointers, const Shorts& columns,
                                int64_t width) {
  const int32_t* p = pointers.typed_data();
  const int64_t rows = static_cast<int64_t>(pointers.element_count()) - 1;
  if (rows < 0 || p[0] != 0 ||
      p[rows] > static_cast<int64_t>(columns.element_count()) ||
      !std::is_sorted(p, p + rows + 1)) {
    return std::nullopt;
  }
  return Places{p, columns.typed_data(), rows, width};
}

ffi::Error broken() {
  return ffi::Error::InvalidArgument(
      "the row pointers of a packed matrix do not ascend from 0 to its number "
      "of slots: make it with packed.pack, or look at it with packed.check");
}

ffi::Error multiply(ffi::ThreadPool pool, Floats x, Ints pointers,
                    Shorts columns, ffi::AnyBuffer values, Ints slots,
                    ffi::ResultBuffer<ffi::F32> y) {
  const auto type = type_of(values.element_type());
  if (!type) return wrong_type();
  const bool one = x.dimensions().size() == 1;
  const int64_t batch = one ? 1 : x.dimensions()[1];
  const auto places = places_of(pointers, columns, x.dimensions()[0]);
  if (!places) return broken();
  const int32_t* in_order = slots.element_count() ? slots.typed_data() : nullptr;
  if (in_order && slots.element_count() < columns.element_count()) {
    return broken();
  }
  const Values given = {values.untyped_data(), *type, in_order,
                        static_cast<int64_t>(values.element_count())};
  if (!in_order && places->pointers[places->rows] > given.count) {
    return broken();
  }
  const int64_t work = batch * places->pointers[places->rows];
  const Products& use = products();
  return by_rows(pool, *places, work, [&](int64_t begin, int64_t end) {
    const float* from = x.typed_data();
    float* to = y->typed_data();
    return one ? use.multiply_one(from, *places, given, to, begin, end)
               : use.multiply(from, batch, *places, given, to, begin, end);
  });
}

ffi::Error sample(ffi::ThreadPool pool, Floats x, Floats g, Ints pointers,
                  Shorts columns, ffi::Result<ffi::AnyBuffer> out) {
  const auto type = type_of(out->element_type());
  if (!type) return wrong_type();
  const int64_t batch = x.dimensions()[1];
  const auto places = places_of(pointers, columns, x.dimensions()[0]);
  const auto count = static_cast<int64_t>(out->element_count());
  if (!places || places->pointers[places->rows] > count) return broken();
  // Unused slots have no gradient.
  const int64_t used = places->pointers[places->rows];
  const int64_t bytes = *type == Type::kFloat32 ? 4 : 2;
  char* data = static_cast<char*>(out->untyped_data());
  std::fill(data + used * bytes, data + count * bytes, 0);
  const Products& use = products();
  return by_rows(pool, *places, batch * used, [&](int64_t begin, int64_t end) {
    return use.sample(x.typed_data(), g.typed_data(), batch, *places, data,
                      *type, begin, end);
  });
}

ffi::Error top_k(ffi::ThreadPool pool, ffi::Buffer<ffi::U32> keys, Ints k,
                 ffi::ResultBuffer<ffi::PRED> mask) {
  Crew crew(pool);
  select(keys.typed_data(), keys.element_count(), k.typed_data()[0],
         mask->typed_data(), crew.threads(),
         [&](int64_t parts, const std::function<void(int64_t)>& each) {
           crew.run(parts, each);
         });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace sparsejax

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    sparsejax_multiply, sparsejax::multiply,
    xla::ffi::Ffi::Bind()
        .Ctx<xla::ffi::ThreadPool>()
        .Arg<sparsejax::Floats>()
        .Arg<sparsejax::Ints>()
        .Arg<sparsejax::Shorts>()
        .Arg<xla::ffi::AnyBuffer>()
        .Arg<sparsejax::Ints>()
        .Ret<sparsejax::Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(sparsejax_sample, sparsejax::sample,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<sparsejax::Floats>()
                                  .Arg<sparsejax::Floats>()
                                  .Arg<sparsejax::Ints>()
                                  .Arg<sparsejax::Shorts>()
                                  .Ret<xla::ffi::AnyBuffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(sparsejax_top_k, sparsejax::top_k,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::U32>>()
                                  .Arg<sparsejax::Ints>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::PRED>>());
