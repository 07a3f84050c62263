// Attention as a target of XLA's foreign function interface.

#include <vector>

#include "attention.h"
#include "calls.h"

namespace sparsejax {
namespace {

ffi::Error attend_few(ffi::ThreadPool pool, Floats query, ffi::AnyBuffer key,
                      ffi::AnyBuffer value, Floats bias, Ints spans,
                      float scale, ffi::ResultBuffer<ffi::F32> y) {
  const auto type = type_of(key.element_type());
  if (!type) return wrong_type();
  const auto keys = key.dimensions(), queries = query.dimensions();
  const Attention a = {
      keys[0],
      queries[1],
      spans.dimensions()[1],
      keys[1],
      keys[2],
      query.typed_data(),
      key.untyped_data(),
      value.untyped_data(),
      *type,
      bias.element_count() ? bias.typed_data() : nullptr,
      spans.typed_data(),
      scale,
      y->typed_data(),
  };
  int64_t seen = 0;
  for (int64_t i = 0; i < a.heads * a.tokens; ++i) {
    const int32_t* span = a.spans + 2 * i;
    if (span[0] < 0 || span[0] >= span[1] || span[1] > a.length) {
      return ffi::Error::InvalidArgument(
          "a token attends to nothing, or to positions that the cache does not "
          "have");
    }
    seen += span[1] - span[0];
  }
  const auto each = [&a](int64_t head) {
    thread_local std::vector<float> room;
    room.resize(a.queries * a.length);
    attend()(a, head, room.data());
  };
  if (2 * seen * a.queries / a.tokens * a.width < kWorthThreads) {
    for (int64_t head = 0; head < a.heads; ++head) each(head);
  } else {
    Crew(pool).run(a.heads, each);
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace sparsejax

XLA_FFI_DEFINE_HANDLER_SYMBOL(sparsejax_attend, sparsejax::attend_few,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<sparsejax::Floats>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<sparsejax::Floats>()
                                  .Arg<sparsejax::Ints>()
                                  .Attr<float>("scale")
                                  .Ret<sparsejax::Floats>());
