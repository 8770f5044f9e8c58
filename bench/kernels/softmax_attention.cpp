#include <cmath>
#include <memory>
#include <seqmix/softmax/softmax_attention.hpp>
#include <string>

#include "support/attentions.hpp"

namespace seqmix::bench {
namespace {

Case causal(Index length, Index heads, Index head_dim, int threads) {
  const AttentionShape shape{.rows = length, .keys = length, .heads = heads, .kv_heads = heads, .head_dim = head_dim};
  return attention(
      shape, double(length) * double(length + 1) / 2, threads,
      [](const AttentionStreams& s, Workspace& workspace) {
        softmax_attention<float>(s.query, s.key, s.value, {}, s.output, workspace);
      },
      [](Index t, Index j) { return j <= t; });
}

/// One query with its key and value, after a cache of `context` tokens.
Case decode(Index context, Index heads, Index head_dim, int threads) {
  constexpr Index steps_per_copy = 64;  // the cache grows with every step: it is renewed before that matters
  struct Data {
    Data(Index tokens, Index heads, Index head_dim, int on_threads)
        : query(1, heads, head_dim, -2, 2, rng),
          key(tokens + 1, heads, head_dim, -1, 1, rng),
          value(tokens + 1, heads, head_dim, -1, 1, rng),
          output(1, heads, head_dim),
          filled(heads, head_dim, head_dim),
          workspace(executor(on_threads)) {
      filled.append(key.view().rows(0, tokens), value.view().rows(0, tokens));
    }
    Rng rng{2};
    Tensor query, key, value, output;
    KeyValueCache<float> filled, cache;
    Index steps = steps_per_copy;
    Workspace workspace;
  };
  const auto data = std::make_shared<Data>(context, heads, head_dim, threads);
  Case result;
  result.prepare = [=] {
    if (data->steps < steps_per_copy) return;
    data->steps = 0;
    data->cache = data->filled;
    data->cache.reserve(context + steps_per_copy);
  };
  result.run = [=] {
    ++data->steps;
    softmax_attention<float>(data->cache, data->query.view(), data->key.view().rows(context, 1),
                             data->value.view().rows(context, 1), {}, data->output.view(), data->workspace);
  };
  result.check = [=] {
    Comparison comparison;
    const Tensor &key = data->key, &value = data->value;
    for (Index h = 0; h < heads; ++h) {
      const auto expected = reference_attention(data->query.view().row(0, h), key.view().head(h), value.view().head(h),
                                                1 / std::sqrt(double(head_dim)), [](Index) { return true; });
      comparison.add(data->output.view().row(0, h), expected.data(), head_dim);
    }
    comparison.expect_within(2e-5, "attention");
  };
  result.tokens = 1;
  result.work = work::attention_step(context, heads, heads, head_dim);
  result.key_value_bytes = result.work.resident_bytes;
  result.state_bytes = Index(result.key_value_bytes);
  result.workspace_bytes = [data] { return data->workspace.capacity_bytes(); };
  return result;
}

void add(const std::string& variant, Index heads, Index head_dim) {
  for (const Index length : {Index(512), Index(2048), Index(8192)}) {
    if (length > effort().longest_core) continue;
    add_benchmark("core/softmax_attention" + variant + "/length:" + std::to_string(length),
                  [=](int threads) { return causal(length, heads, head_dim, threads); });
  }
  add_benchmark("core_step/softmax_attention" + variant + "/context:2048",
                [=](int threads) { return decode(2048, heads, head_dim, threads); });
}

const bool registered = [] {
  add("", 12, 64);
  add("/head_dim:128", 6, 128);
  return true;
}();

}  // namespace
}  // namespace seqmix::bench
