// The attention engine under several masks, and token by token.

#include <algorithm>
#include <cmath>
#include <seqmix/engine/attention.hpp>
#include <string>

#include "support/attentions.hpp"

namespace seqmix::bench {
namespace {

/// The last of the queries is aligned with the last key.
void add(const std::string& name, const AttentionShape& shape, Index left, Index right) {
  const BandMask mask{.offset = shape.keys - shape.rows, .left = left, .right = right};
  double pairs = 0;
  for (Index t = 0; t < shape.rows; ++t) {
    pairs += double(std::min(shape.keys - 1, mask.last(t)) - std::max<Index>(0, mask.first(t)) + 1);
  }
  const auto call = [=](const AttentionStreams& streams, Workspace& workspace) {
    const KeyValueSegment<float> segments[] = {{streams.key, streams.value}};
    attend<float>(streams.query, segments, mask, DotScore<float>{1 / std::sqrt(float(shape.head_dim))}, {},
                  streams.output, workspace);
  };
  const auto visible = [=](Index t, Index j) { return j >= mask.first(t) && j <= mask.last(t); };
  add_benchmark("kernel/attention/" + name + "/head_dim:" + std::to_string(shape.head_dim),
                [=](int threads) { return attention(shape, pairs, threads, call, visible); });
}

const bool registered = [] {
  constexpr Index all = BandMask::unbounded;
  add("full/length:2048", {.rows = 2048, .keys = 2048}, all, all);
  add("causal/length:2048", {.rows = 2048, .keys = 2048}, all, 0);
  add("causal/length:2048", {.rows = 2048, .keys = 2048, .heads = 6, .kv_heads = 6, .head_dim = 128}, all, 0);
  add("grouped/length:2048", {.rows = 2048, .keys = 2048, .kv_heads = 3}, all, 0);
  add("window:256/length:2048", {.rows = 2048, .keys = 2048}, 255, 0);
  add("decode/context:2048", {.rows = 1, .keys = 2048}, all, 0);
  add("decode_grouped/context:2048", {.rows = 1, .keys = 2048, .kv_heads = 3}, all, 0);
  add("decode_multi_query/context:2048", {.rows = 1, .keys = 2048, .kv_heads = 1}, all, 0);
  return true;
}();

}  // namespace
}  // namespace seqmix::bench
