// Runs products with masked matrices, good and broken, for the sanitizers; and
// compares them with sums in double precision.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "masked.h"

#define JOIN(table, isa) table##_##isa
#define NAME(table, isa) JOIN(table, isa)

namespace sparsejax {
extern const MaskedProducts NAME(masked, SPARSEJAX_ISA);
extern const IntegerProducts NAME(integers, SPARSEJAX_ISA);
}

using namespace sparsejax;

namespace {

const MaskedProducts& use = NAME(masked, SPARSEJAX_ISA);
const IntegerProducts& integers = NAME(integers, SPARSEJAX_ISA);
std::mt19937 random_bits(7);

void expect(bool good, const char* what) {
  if (good) return;
  std::printf("%s\n", what);
  std::exit(1);
}

struct Example {
  std::vector<uint8_t> bits;
  std::vector<int32_t> pointers = {0};
  std::vector<char> values;
  std::vector<float> scales;
  std::vector<double> exact;  // [rows, width]
  Masked matrix;
};

// Integers from -9 to 9, which every type holds, times scales.
void draw(int64_t rows, int64_t width, int64_t groups, double density,
          Type type, Example* out) {
  const bool dense = density >= 1;
  const int64_t bytes = (width + 7) / 8;
  out->bits.resize(rows * bytes);
  out->exact.resize(rows * width);
  out->scales.assign(rows * groups, 1.0f);
  for (float& s : out->scales) {
    if (type == Type::kInt8) s = (1 + random_bits() % 7) / 8.0f;
  }
  int64_t count = 0;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < width; ++i) {
      if (!dense && random_bits() % 1000 >= 1000 * density) continue;
      out->bits[r * bytes + i / 8] |= 1 << i % 8;
      const int value = static_cast<int>(random_bits() % 19) - 9;
      const float wide = value;
      const int8_t byte = value;
      const int size = type == Type::kFloat32    ? 4
                       : type == Type::kBfloat16 ? 2
                                                 : 1;
      const char* from = reinterpret_cast<const char*>(&wide) + 4 - size;
      if (type == Type::kInt8) from = reinterpret_cast<const char*>(&byte);
      out->values.insert(out->values.end(), from, from + size);
      const float scale = out->scales[r * groups + i / (width / groups)];
      out->exact[r * width + i] = double{scale} * value;
      ++count;
    }
    out->pointers.push_back(count);
  }
  out->values.shrink_to_fit();
  out->matrix = {dense ? nullptr : out->bits.data(),
                 dense ? nullptr : out->pointers.data(),
                 rows,
                 width,
                 out->values.data(),
                 type,
                 count,
                 type == Type::kInt8 ? out->scales.data() : nullptr,
                 type == Type::kInt8 ? groups : 1};
}

bool multiply(const std::vector<float>& x, int64_t batch, const Masked& w,
              bool many, std::vector<float>* y) {
  y->assign(batch * w.rows, NAN);
  if (many) {
    std::vector<float> panels((batch + 15) / 16 * 16 * w.width);
    for (int64_t e = 0; e < batch; e += use.panel) {
      use.fill(x.data(), batch, w.width, e, panels.data());
    }
    return use.many(panels.data(), batch, w, y->data(), 0, w.rows);
  }
  const int64_t stride = w.width + 64;
  std::vector<float> padded(batch * stride);
  for (int64_t e = 0; e < batch; ++e) {
    std::copy_n(x.data() + e * w.width, w.width, padded.data() + e * stride);
  }
  return use.few(padded.data(), batch, stride, w, y->data(), 0, w.rows);
}

bool multiply_rounded(const std::vector<float>& x, int64_t batch,
                      const Masked& w, std::vector<float>* y) {
  y->assign(batch * w.rows, NAN);
  const int64_t padded = (batch + kTogether - 1) / kTogether * kTogether;
  const int64_t stride = (w.width + kWord - 1) / kWord * kWord;
  std::vector<int8_t> numbers(padded * stride + kWord);
  std::vector<float> scales(batch);
  std::vector<int32_t> sums(padded * w.groups);
  const Rounded to = {batch, stride, numbers.data(), scales.data(),
                      sums.data()};
  for (int64_t e = 0; e < batch; ++e) {
    integers.round(x.data() + e * w.width, w, e, to);
  }
  return integers.multiply(to, w, y->data(), 0, w.rows);
}

void product_of(int64_t rows, int64_t width, int64_t groups, int64_t batch,
                double density, Type type) {
  Example example;
  draw(rows, width, groups, density, type, &example);
  std::vector<float> x(batch * width), y;
  for (float& v : x) v = static_cast<int>(random_bits() % 201) - 100;
  // So that rounding leaves integers as they are.
  for (int64_t e = 0; e < batch; ++e) x[e * width] = 127;
  for (const int way : {0, 1, 2}) {
    if (way == 2 && type != Type::kInt8) continue;
    const auto multiply_by = [&](const Masked& w) {
      return way == 2 ? multiply_rounded(x, batch, w, &y)
                      : multiply(x, batch, w, way == 1, &y);
    };
    expect(multiply_by(example.matrix), "a good structure was refused");
    for (int64_t e = 0; e < batch; ++e) {
      for (int64_t r = 0; r < rows; ++r) {
        double sum = 0;
        for (int64_t i = 0; i < width; ++i) {
          sum += example.exact[r * width + i] * x[e * width + i];
        }
        expect(std::abs(y[e * rows + r] - sum) <= 1e-5 * (1 + std::abs(sum)),
               "a product is wrong");
      }
    }
    // More bits than values: refused, and not read beyond them.
    if (density >= 1) continue;
    Masked broken = example.matrix;
    std::vector<uint8_t> full(example.bits.size(), 255);
    broken.bits = full.data();
    expect(!multiply_by(broken) || density > 0.99,
           "bits without values were taken");
  }
}

}  // namespace

int main() {
  for (const Type type : {Type::kFloat32, Type::kBfloat16, Type::kInt8}) {
    for (const double density : {0.0, 0.1, 0.6, 1.0}) {
      for (const int64_t batch : {1, 4, 9, 70, 131}) {
        product_of(1 + random_bits() % 70, 1 + random_bits() % 200, 1, batch,
                   density, type);
        product_of(5, 192, 4, batch, density, type);
        product_of(3, 40, 5, batch, density, type);
      }
    }
  }
  std::printf("good\n");
}
