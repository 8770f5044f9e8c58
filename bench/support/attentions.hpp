// Benchmarks of exact attention, whose cores differ only in which keys a row sees.
#pragma once

#include <functional>
#include <seqmix/core/workspace.hpp>

#include "support/benchmark.hpp"
#include "support/data.hpp"

namespace seqmix::bench {

/// `rows` queries over `keys` keys and values.
struct AttentionShape {
  Index rows, keys;
  Index heads = 12, kv_heads = 12, head_dim = 64;
};

/// What a core reads and writes.
struct AttentionStreams {
  HeadSequence<const float> query;       // [rows, heads, head_dim]
  HeadSequence<const float> key, value;  // [keys, kv_heads, head_dim]
  HeadSequence<float> output;            // [rows, heads, head_dim]
};

/// Attention with logits <q, k> / sqrt(head_dim). `call` computes it; row t sees key j if visible(t, j), and `pairs` is
/// how many such pairs there are, for the minimum work. One row counts as a decoding step: its keys and values are
/// taken to stay in cache.
Case attention(const AttentionShape& shape, double pairs, int threads,
               const std::function<void(const AttentionStreams&, Workspace&)>& call,
               const std::function<bool(Index row, Index key)>& visible);

}  // namespace seqmix::bench
