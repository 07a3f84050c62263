// The k largest of many keys, by histograms of their digits.

#include <algorithm>
#include <vector>

#include "kernels.h"

namespace sparsejax {
namespace {

constexpr int kDigits = 3;
constexpr int kShift[kDigits] = {21, 10, 0};
constexpr int kBits[kDigits] = {11, 11, 10};
constexpr int kBins = 1 << 11;

}  // namespace

void select(const uint32_t* keys, int64_t size, int64_t k, bool* mask,
            int64_t threads, const Parallel& parallel) {
  const int64_t parts = std::max<int64_t>(1, std::min(threads, size >> 16));
  const auto begin = [&](int64_t part) { return size * part / parts; };
  std::vector<std::vector<int64_t>> histograms(parts);

  // Digit by digit, the k-th largest key; `above` are larger.
  uint32_t threshold = 0;
  int64_t above = 0;
  for (int digit = 0; digit < kDigits; ++digit) {
    const int shift = kShift[digit];
    const uint32_t low = (1u << kBits[digit]) - 1;
    const int settled = shift + kBits[digit];
    parallel(parts, [&](int64_t part) {
      // Two in turn: equal keys do not wait for each other's counts.
      std::vector<int64_t> bins(2 * kBins);
      const int64_t end = begin(part + 1);
      int64_t i = begin(part);
      if (digit == 0) {
        for (; i + 2 <= end; i += 2) {
          ++bins[keys[i] >> shift];
          ++bins[kBins + (keys[i + 1] >> shift)];
        }
        if (i < end) ++bins[keys[i] >> shift];
      } else {
        for (; i < end; ++i) {
          if (keys[i] >> settled == threshold >> settled) {
            ++bins[(keys[i] >> shift) & low];
          }
        }
      }
      for (int b = 0; b < kBins; ++b) bins[b] += bins[kBins + b];
      histograms[part] = std::move(bins);
    });
    int64_t bin = low;
    for (; bin > 0; --bin) {
      int64_t count = 0;
      for (const auto& bins : histograms) count += bins[bin];
      if (above + count >= k) break;
      above += count;
    }
    threshold |= static_cast<uint32_t>(bin) << shift;
  }

  // Of keys at the threshold, the first ones; a part has to know how many
  // came before it.
  std::vector<int64_t> ties(parts);
  parallel(parts, [&](int64_t part) {
    int64_t count = 0;
    for (int64_t i = begin(part); i < begin(part + 1); ++i) {
      mask[i] = keys[i] > threshold;
      count += keys[i] == threshold;
    }
    ties[part] = count;
  });
  if (threshold == 0) return;
  int64_t left = k - above;
  for (int64_t part = 0; part < parts && left > 0; ++part) {
    if (ties[part] == 0) continue;
    for (int64_t i = begin(part); i < begin(part + 1) && left > 0; ++i) {
      if (keys[i] == threshold) {
        mask[i] = true;
        --left;
      }
    }
  }
}

}  // namespace sparsejax
