// Attention of a few queries to what a cache holds. Nothing here knows of XLA.

#ifndef SPARSEJAX_ATTENTION_H_
#define SPARSEJAX_ATTENTION_H_

#include <cstdint>

#include "kernels.h"

namespace sparsejax {

struct Attention {
  int64_t heads;     // Of the cache, those of all sequences.
  int64_t queries;   // Of each: whole runs of `tokens`.
  int64_t tokens;    // Query q of a head is of token q % tokens.
  int64_t length;    // The most positions of the cache.
  int64_t width;     // Of keys, values and queries.
  const float* query;      // [heads, queries, width]
  const void* key;         // [heads, length, width]
  const void* value;       // As keys.
  Type type;               // Of keys and values: float32 or bfloat16.
  const float* bias;       // [heads, queries, length]; null for none.
  const int32_t* spans;    // [heads, tokens, 2]: what is seen, from, to.
  float scale;             // Of the scores.
  float* y;                // [heads, queries, width]
};

// Softmax and weighted sums of one head. The room is of queries * length.
using Attend = void (*)(const Attention&, int64_t head, float* room);

// The best that this processor can run.
Attend attend();

}  // namespace sparsejax

#endif  // SPARSEJAX_ATTENTION_H_
