// Runs the kernels on random and on broken structures, for the sanitizers; and
// compares them with sums in double precision.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include "kernels.h"

namespace sparsejax {
extern const Products SPARSEJAX_ISA;
}

using namespace sparsejax;

namespace {

std::mt19937 random_bits(7);

float uniform() {
  return std::uniform_real_distribution<float>(-1, 1)(random_bits);
}

void expect(bool good, const char* what) {
  if (good) return;
  std::printf("%s\n", what);
  std::exit(1);
}

void close(float got, double wanted, double tolerance, const char* what) {
  expect(std::abs(got - wanted) <= tolerance * (1 + std::abs(wanted)), what);
}

void products_of(int64_t rows, int64_t width, int64_t batch, double density,
                 bool half) {
  std::vector<int32_t> pointers = {0};
  std::vector<uint16_t> columns;
  std::vector<double> exact;
  std::vector<float> wide;
  std::vector<uint16_t> narrow;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < width; ++c) {
      if ((uniform() + 1) / 2 >= density) continue;
      columns.push_back(c);
      const float w = uniform();
      uint32_t bits;
      std::copy_n(reinterpret_cast<const char*>(&w), 4,
                  reinterpret_cast<char*>(&bits));
      bits &= half ? 0xffff0000u : 0xffffffffu;
      float rounded;
      std::copy_n(reinterpret_cast<const char*>(&bits), 4,
                  reinterpret_cast<char*>(&rounded));
      exact.push_back(rounded);
      wide.push_back(rounded);
      narrow.push_back(bits >> 16);
    }
    pointers.push_back(columns.size());
  }
  const int64_t count = columns.size();
  const Places places = {pointers.data(), columns.data(), rows, width};
  const Type type = half ? Type::kBfloat16 : Type::kFloat32;
  Values values = {wide.data(), type, nullptr, count};
  if (half) values.data = narrow.data();
  std::vector<float> x(width * batch), g(rows * batch), y(rows * batch);
  std::generate(x.begin(), x.end(), uniform);
  std::generate(g.begin(), g.end(), uniform);
  const Products& use = SPARSEJAX_ISA;

  expect(use.multiply(x.data(), batch, places, values, y.data(), 0, rows),
         "multiply refused a good structure");
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < batch; ++b) {
      double sum = 0;
      for (int64_t j = pointers[r]; j < pointers[r + 1]; ++j) {
        sum += exact[j] * x[columns[j] * batch + b];
      }
      close(y[r * batch + b], sum, 1e-4, "multiply");
    }
  }

  // The same values in another order.
  std::vector<int32_t> slots(count);
  std::iota(slots.begin(), slots.end(), 0);
  std::shuffle(slots.begin(), slots.end(), random_bits);
  std::vector<float> wide_there(count);
  std::vector<uint16_t> narrow_there(count);
  for (int64_t j = 0; j < count; ++j) {
    wide_there[slots[j]] = wide[j];
    narrow_there[slots[j]] = narrow[j];
  }
  Values elsewhere = {wide_there.data(), type, slots.data(), count};
  if (half) elsewhere.data = narrow_there.data();
  std::vector<float> again(rows * batch);
  expect(use.multiply(x.data(), batch, places, elsewhere, again.data(), 0, rows),
         "multiply refused good slots");
  expect(again == y, "multiply by slots");

  std::vector<float> one(rows), first(width);
  for (int64_t c = 0; c < width; ++c) first[c] = x[c * batch];
  expect(use.multiply_one(first.data(), places, values, one.data(), 0, rows),
         "multiply_one refused a good structure");
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (int64_t j = pointers[r]; j < pointers[r + 1]; ++j) {
      sum += exact[j] * first[columns[j]];
    }
    close(one[r], sum, 1e-4, "multiply_one");
  }

  std::vector<float> out(count);
  expect(use.sample(x.data(), g.data(), batch, places, out.data(),
                    Type::kFloat32, 0, rows),
         "sample refused a good structure");
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = pointers[r]; j < pointers[r + 1]; ++j) {
      double sum = 0;
      for (int64_t b = 0; b < batch; ++b) {
        sum += static_cast<double>(g[r * batch + b]) *
               x[columns[j] * batch + b];
      }
      close(out[j], sum, 1e-4, "sample");
    }
  }

  // What is out of range is refused, and not read.
  if (count == 0) return;
  const int64_t at = random_bits() % count;
  std::vector<uint16_t> far = columns;
  far[at] = static_cast<uint16_t>(width);
  const Places broken = {pointers.data(), far.data(), rows, width};
  expect(!use.multiply(x.data(), batch, broken, values, y.data(), 0, rows),
         "multiply took a column out of range");
  expect(!use.multiply_one(first.data(), broken, values, one.data(), 0, rows),
         "multiply_one took a column out of range");
  expect(!use.sample(x.data(), g.data(), batch, broken, out.data(),
                     Type::kFloat32, 0, rows),
         "sample took a column out of range");
  for (const int32_t bad : {static_cast<int32_t>(count), -1}) {
    slots[at] = bad;
    expect(!use.multiply(x.data(), batch, places, elsewhere, y.data(), 0, rows),
           "multiply took a slot out of range");
  }
}

void selection_of(int64_t size, int64_t k, uint32_t most, int64_t threads) {
  std::vector<uint32_t> keys(size);
  for (auto& key : keys) key = random_bits() % (most + uint64_t{1});
  std::vector<int64_t> order(size);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return keys[a] > keys[b]; });
  std::vector<char> wanted(size), got(size, 2);
  for (int64_t i = 0; i < std::min(k, size); ++i) {
    wanted[order[i]] = keys[order[i]] > 0;
  }
  select(keys.data(), size, k, reinterpret_cast<bool*>(got.data()), threads,
         [](int64_t parts, const std::function<void(int64_t)>& each) {
           for (int64_t i = 0; i < parts; ++i) each(i);
         });
  expect(got == wanted, "select");
}

}  // namespace

int main() {
  for (const int64_t batch : {16, 32, 48, 64, 80, 128, 176, 256}) {
    for (const double density : {0.0, 0.05, 0.5, 1.0}) {
      for (const bool half : {false, true}) {
        products_of(1 + random_bits() % 40, 1 + random_bits() % 90, batch,
                    density, half);
      }
    }
  }
  for (const int64_t size : {0, 1, 1000, 200000}) {
    for (const uint32_t most : {0u, 1u, 50u, 0xffffffffu}) {
      for (const int64_t share : {0, 1, 50, 100, 120}) {
        for (const int64_t threads : {1, 3}) {
          selection_of(size, size * share / 100, most, threads);
        }
      }
    }
  }
  std::printf("good\n");
}
