// The kernels as targets of XLA's foreign function interface.

#include <algorithm>
#include <atomic>
#include <deque>
#include <optional>
#include <vector>

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

ffi::Error out_of_range() {
  return ffi::Error::InvalidArgument(
      "the structure of a packed matrix has a place out of range: make it with "
      "packed.pack, or look at it with packed.check");
}

// Does all that a layer asks for. Threads begin with lots of their own, and go
// on with others.
bool run(ffi::ThreadPool& pool, const Layer& layer) {
  const Places& places = layer.places;
  Crew crew(pool);
  const int64_t work = layer.batch * places.pointers[places.rows];
  const int64_t threads = work < kWorthThreads ? 1 : crew.threads();
  const int64_t lots = lots_of(layer);
  // Of each lot: every thread takes about four.
  const int64_t each = threads > 1 ? (threads + lots - 1) / lots : 1;
  const int64_t ranges = threads > 1 ? 4 * each : 1;
  // Threads write whole cache lines of the product.
  const auto row = [&](int64_t range) {
    const int64_t found = begin_of(places, range, ranges);
    return range == ranges ? found : found / kLanes * kLanes;
  };
  const auto feature = [&](int64_t range) {
    const int64_t found = places.width * range / ranges;
    return range == ranges ? found : found / kLanes * kLanes;
  };
  const Products& use = products();
  std::atomic<bool> good{true};
  Shares prepared(ranges);
  std::deque<Shares> turned, multiplied;
  for (int64_t l = 0; l < lots; ++l) {
    turned.emplace_back(ranges);
    multiplied.emplace_back(ranges);
  }
  crew.run(threads, [&](int64_t thread) {
    prepared.help([&](int64_t r) {
      if (!use.prepare(layer, row(r), row(r + 1))) good = false;
    });
    for (int64_t i = 0; good && i < lots; ++i) {
      const int64_t lot = (thread + i) % lots;
      turned[lot].help([&](int64_t r) {
        use.turn(layer, lot, feature(r), feature(r + 1));
      });
      multiplied[lot].help([&](int64_t i) {
        // Threads stay apart: neighbouring rows have slots in the same lines.
        const int64_t r = i % each * (ranges / each) + i / each;
        use.multiply(layer, lot, row(r), row(r + 1));
      });
    }
  });
  return good;
}

ffi::Error layer(ffi::ThreadPool pool, Floats x, Floats by_rows, Ints pointers,
                 Shorts columns, ffi::AnyBuffer values, Ints slots,
                 ffi::ResultBuffer<ffi::F32> product,
                 ffi::Result<ffi::AnyBuffer> dots,
                 ffi::ResultBuffer<ffi::F32> room) {
  const auto type = type_of(values.element_type());
  if (!type || dots->element_type() != values.element_type()) {
    return wrong_type();
  }
  const auto places = places_of(pointers, columns, x.dimensions()[1]);
  if (!places) return broken();
  const int64_t used = places->pointers[places->rows];
  const auto count = static_cast<int64_t>(values.element_count());
  const bool named = slots.element_count() > 0;
  if (named && slots.element_count() < columns.element_count()) return broken();
  const int64_t batch = x.dimensions()[0];
  const auto asked = [](const auto& buffer) {
    return buffer.element_count() ? buffer.typed_data() : nullptr;
  };
  Layer all = {};
  all.places = *places;
  all.values = {values.untyped_data(), *type,
                named ? slots.typed_data() : nullptr, count};
  all.batch = batch;
  all.x = x.typed_data();
  all.product = asked(*product);
  all.by_rows = asked(by_rows);
  if (all.product && !named && used > count) return broken();
  float* free = room->typed_data();
  const float* end = free + room->element_count();
  const auto take = [&](int64_t size) {
    float* taken = free;
    free += size;
    return taken;
  };
  all.turned = take(vectors_of(batch) * kLanes * places->width);
  if (all.product && (named || *type != Type::kFloat32)) {
    all.weights = take(used);
  }
  const auto slots_out = static_cast<int64_t>(dots->element_count());
  if (slots_out) {
    // Unused slots have no gradient; nor has any where there is no example.
    const int64_t first = batch ? used : 0;
    const int64_t bytes = *type == Type::kFloat32 ? 4 : 2;
    char* data = static_cast<char*>(dots->untyped_data());
    if (first > slots_out) return broken();
    std::fill(data + first * bytes, data + slots_out * bytes, 0);
    if (all.by_rows) all.dots = data;
    all.sums = take(used);
  }
  if (free > end) return ffi::Error::Internal("a layer has too little room");
  return run(pool, all) ? ffi::Error::Success() : out_of_range();
}

ffi::Error multiply_one(ffi::ThreadPool pool, Floats x, Ints pointers,
                        Shorts columns, ffi::AnyBuffer values,
                        ffi::ResultBuffer<ffi::F32> y) {
  const auto type = type_of(values.element_type());
  if (!type) return wrong_type();
  const auto places = places_of(pointers, columns, x.dimensions()[0]);
  const auto count = static_cast<int64_t>(values.element_count());
  if (!places || places->pointers[places->rows] > count) return broken();
  const Values given = {values.untyped_data(), *type, nullptr, count};
  Crew crew(pool);
  const int64_t work = places->pointers[places->rows];
  const int64_t parts =
      work < kWorthThreads ? 1 : std::min(places->rows, 4 * crew.threads());
  std::atomic<bool> good{true};
  crew.run(parts, [&](int64_t part) {
    const int64_t begin = begin_of(*places, part, parts);
    const int64_t end = begin_of(*places, part + 1, parts);
    if (begin < end &&
        !products().multiply_one(x.typed_data(), *places, given,
                                 y->typed_data(), begin, end)) {
      good = false;
    }
  });
  return good ? ffi::Error::Success() : out_of_range();
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(sparsejax_layer, sparsejax::layer,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<sparsejax::Floats>()
                                  .Arg<sparsejax::Floats>()
                                  .Arg<sparsejax::Ints>()
                                  .Arg<sparsejax::Shorts>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<sparsejax::Ints>()
                                  .Ret<sparsejax::Floats>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<sparsejax::Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(sparsejax_multiply_one, sparsejax::multiply_one,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<sparsejax::Floats>()
                                  .Arg<sparsejax::Ints>()
                                  .Arg<sparsejax::Shorts>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<sparsejax::Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(sparsejax_top_k, sparsejax::top_k,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::U32>>()
                                  .Arg<sparsejax::Ints>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::PRED>>());
