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

struct Results {
  std::vector<float> product, dots;
  bool operator==(const Results& other) const {
    return product == other.product && dots == other.dots;
  }
};

// Does a layer as threads would, in so many ranges of rows and features.
bool layer_of(const Products& use, Layer layer, bool product, bool dots,
              int64_t ranges, Results* results) {
  const Places& places = layer.places;
  const int64_t count = places.pointers[places.rows];
  results->product.assign(product ? layer.batch * places.rows : 0, 7);
  results->dots.assign(dots ? count : 0, 7);
  std::vector<float> turned(vectors_of(layer.batch) * kLanes * places.width);
  std::vector<float> weights(count), sums(count);
  layer.product = product ? results->product.data() : nullptr;
  layer.dots = dots ? results->dots.data() : nullptr;
  layer.turned = turned.data();
  layer.sums = sums.data();
  if (layer.values.slots || layer.values.type != Type::kFloat32) {
    layer.weights = weights.data();
  }
  const auto part = [&](int64_t size, int64_t i) {
    return i == ranges ? size : size * i / ranges / kLanes * kLanes;
  };
  for (int64_t i = 0; i < ranges; ++i) {
    if (!use.prepare(layer, part(places.rows, i), part(places.rows, i + 1))) {
      return false;
    }
  }
  for (int64_t lot = 0; lot < lots_of(layer); ++lot) {
    for (int64_t i = 0; i < ranges; ++i) {
      use.turn(layer, lot, part(places.width, i), part(places.width, i + 1));
    }
    for (int64_t i = 0; i < ranges; ++i) {
      use.multiply(layer, lot, part(places.rows, i), part(places.rows, i + 1));
    }
  }
  return true;
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
  std::vector<float> x(batch * width), g(batch * rows);
  std::generate(x.begin(), x.end(), uniform);
  std::generate(g.begin(), g.end(), uniform);
  const Products& use = SPARSEJAX_ISA;

  Layer layer = {};
  layer.places = places;
  layer.values = values;
  layer.batch = batch;
  layer.x = x.data();
  layer.by_rows = g.data();
  Results forward, again;
  expect(layer_of(use, layer, true, false, 1, &forward),
         "multiply refused a good structure");
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < batch; ++b) {
      double sum = 0;
      for (int64_t j = pointers[r]; j < pointers[r + 1]; ++j) {
        sum += exact[j] * x[b * width + columns[j]];
      }
      close(forward.product[b * rows + r], sum, 1e-4, "multiply");
    }
  }
  layer_of(use, layer, true, false, 3, &again);
  expect(again == forward, "multiply in ranges");

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
  Layer elsewhere = layer;
  elsewhere.values = {wide_there.data(), type, slots.data(), count};
  if (half) elsewhere.values.data = narrow_there.data();
  expect(layer_of(use, elsewhere, true, false, 2, &again),
         "multiply refused good slots");
  expect(again == forward, "multiply by slots");

  std::vector<float> one(rows);
  expect(use.multiply_one(x.data(), places, values, one.data(), 0, rows),
         "multiply_one refused a good structure");
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (int64_t j = pointers[r]; j < pointers[r + 1]; ++j) {
      sum += exact[j] * x[columns[j]];
    }
    close(one[r], sum, 1e-4, "multiply_one");
  }

  if (!half) {
    Results sampled, both;
    layer_of(use, layer, false, true, 1, &sampled);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = pointers[r]; j < pointers[r + 1]; ++j) {
        double sum = 0;
        for (int64_t b = 0; b < batch; ++b) {
          sum += static_cast<double>(g[b * rows + r]) *
                 x[b * width + columns[j]];
        }
        close(sampled.dots[j], sum, 1e-4, "sample");
      }
    }
    layer_of(use, layer, false, true, 3, &again);
    expect(again == sampled, "sample in ranges");
    layer_of(use, elsewhere, true, true, 2, &both);
    expect(both.product == forward.product, "both: the product");
    for (int64_t j = 0; j < count; ++j) {
      expect(both.dots[slots[j]] == sampled.dots[j], "both: the dots");
    }
  }

  // What is out of range is refused, and not read.
  if (count == 0) return;
  const int64_t at = random_bits() % count;
  std::vector<uint16_t> far = columns;
  far[at] = static_cast<uint16_t>(width);
  Layer broken = layer;
  broken.places.columns = far.data();
  expect(!layer_of(use, broken, true, false, 1, &again),
         "multiply took a column out of range");
  expect(!layer_of(use, broken, false, true, 1, &again),
         "sample took a column out of range");
  expect(!use.multiply_one(x.data(), broken.places, values, one.data(), 0, rows),
         "multiply_one took a column out of range");
  for (const int32_t bad : {static_cast<int32_t>(count), -1}) {
    slots[at] = bad;
    expect(!layer_of(use, elsewhere, true, true, 1, &again),
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
  for (const int64_t batch : {1, 15, 16, 33, 64, 80, 128, 200, 300}) {
    for (const double density : {0.0, 0.05, 0.5, 1.0}) {
      for (const bool half : {false, true}) {
        products_of(1 + random_bits() % 90, 1 + random_bits() % 90, batch,
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
