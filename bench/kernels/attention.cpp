// The attention engine under several masks, and token by token.

#include <seqmix/engine/attention.hpp>

#include <cmath>
#include <memory>

#include "support/benchmark.hpp"
#include "support/data.hpp"

namespace seqmix::bench {
namespace {

/// `rows` queries, the last of them aligned with the last of `keys` keys, under a band mask.
Case attention(Index rows, Index keys, Index heads, Index kv_heads, Index head_dim, Index left, Index right,
               int threads) {
  struct Data {
    Rng rng{2};
    Tensor query, key, value, output;
    Workspace workspace;
    explicit Data(Executor& on) : workspace(on) {}
  };
  const auto data = std::make_shared<Data>(executor(threads));
  data->query = Tensor(rows, heads, head_dim, -2, 2, data->rng);
  data->key = Tensor(keys, kv_heads, head_dim, -1, 1, data->rng);
  data->value = Tensor(keys, kv_heads, head_dim, -1, 1, data->rng);
  data->output = Tensor(rows, heads, head_dim);
  const BandMask mask{.offset = keys - rows, .left = left, .right = right};
  const float scale = 1 / std::sqrt(float(head_dim));

  Case result;
  result.run = [=] {
    const KeyValueSegment<float> segment{data->key.view(), data->value.view()};
    attend(HeadSequence<const float>(data->query.view()), std::span<const KeyValueSegment<float>>(&segment, 1), mask,
           DotScore<float>{scale}, {}, data->output.view(), data->workspace);
  };
  result.check = [=] {
    const auto &query = data->query, &key = data->key, &value = data->value;
    Comparison comparison;
    for (const Index t : sampled_rows(rows)) {
      const Index h = t % heads, g = h / (heads / kv_heads);
      const auto expected =
          reference_attention(query.view().row(t, h), key.view().head(g), value.view().head(g), double(scale),
                              [&](Index j) { return j >= mask.first(t) && j <= mask.last(t); });
      comparison.add(data->output.view().row(t, h), expected.data(), head_dim);
    }
    comparison.expect_within(2e-5, "attention");
  };
  double pairs = 0;
  for (Index t = 0; t < rows; ++t) {
    pairs += double(std::min(keys - 1, mask.last(t)) - std::max<Index>(0, mask.first(t)) + 1);
  }
  result.tokens = rows;
  result.workspace_bytes = [data] { return data->workspace.capacity_bytes(); };
  if (rows == 1) {
    result.work = work::attention_step(keys, heads, kv_heads, head_dim);
    result.key_value_bytes = result.work.resident_bytes;
  } else {
    result.work = work::attention(pairs, double(rows), heads, kv_heads, head_dim);
  }
  return result;
}

const bool registered = [] {
  constexpr Index all = BandMask::unbounded;
  add_benchmark("kernel/attention/full/length:2048/head_dim:64",
                [](int threads) { return attention(2048, 2048, 12, 12, 64, all, all, threads); });
  add_benchmark("kernel/attention/causal/length:2048/head_dim:64",
                [](int threads) { return attention(2048, 2048, 12, 12, 64, all, 0, threads); });
  add_benchmark("kernel/attention/causal/length:2048/head_dim:128",
                [](int threads) { return attention(2048, 2048, 6, 6, 128, all, 0, threads); });
  add_benchmark("kernel/attention/grouped/length:2048/head_dim:64",
                [](int threads) { return attention(2048, 2048, 12, 3, 64, all, 0, threads); });
  add_benchmark("kernel/attention/window:256/length:2048/head_dim:64",
                [](int threads) { return attention(2048, 2048, 12, 12, 64, 255, 0, threads); });
  add_benchmark("kernel/attention/decode/context:2048/head_dim:64",
                [](int threads) { return attention(1, 2048, 12, 12, 64, all, 0, threads); });
  add_benchmark("kernel/attention/decode_grouped/context:2048/head_dim:64",
                [](int threads) { return attention(1, 2048, 12, 3, 64, all, 0, threads); });
  return true;
}();

}  // namespace
}  // namespace seqmix::bench
