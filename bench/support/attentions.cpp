#include "support/attentions.hpp"

#include <cmath>
#include <memory>

namespace seqmix::bench {

Case attention(const AttentionShape& shape, double pairs, int threads,
               const std::function<void(const AttentionStreams&, Workspace&)>& call,
               const std::function<bool(Index row, Index key)>& visible) {
  struct Data {
    Data(const AttentionShape& of, int on_threads)
        : query(of.rows, of.heads, of.head_dim, -2, 2, rng),
          key(of.keys, of.kv_heads, of.head_dim, -1, 1, rng),
          value(of.keys, of.kv_heads, of.head_dim, -1, 1, rng),
          output(of.rows, of.heads, of.head_dim),
          decodes(of.rows == 1),
          workspace(executor(on_threads)) {}
    AttentionStreams streams() { return {query.view(), cached(key.view()), cached(value.view()), output.view()}; }

    // In a cache each head's rows are contiguous (see KeyValueCache), in a projection each token's.
    HeadSequence<const float> cached(const HeadSequence<const float>& x) const {
      if (!decodes) return x;
      return {x.data(), x.length(), x.heads(), x.head_dim(), x.head_dim(), x.length() * x.head_dim()};
    }

    Rng rng{2};
    Tensor query, key, value, output;
    bool decodes;
    Workspace workspace;
  };
  const auto data = std::make_shared<Data>(shape, threads);

  Case result;
  result.run = [=] { call(data->streams(), data->workspace); };
  result.check = [=] {
    const AttentionStreams streams = data->streams();
    Comparison comparison;
    for (const Index t : sampled_rows(shape.rows)) {
      const Index apart = shape.rows > 16 ? shape.heads : 1;  // of a few rows all heads, of many one
      for (Index h = t % shape.heads; h < shape.heads; h += apart) {
        const Index shared = h / (shape.heads / shape.kv_heads);
        const auto expected =
            reference_attention(streams.query.row(t, h), streams.key.head(shared), streams.value.head(shared),
                                1 / std::sqrt(double(shape.head_dim)), [&](Index j) { return visible(t, j); });
        comparison.add(streams.output.row(t, h), expected.data(), shape.head_dim);
      }
    }
    comparison.expect_within(2e-5, "attention");
  };
  result.tokens = shape.rows;
  result.workspace_bytes = [data] { return data->workspace.capacity_bytes(); };
  if (shape.rows == 1) {
    result.work = work::attention_step(shape.keys, shape.heads, shape.kv_heads, shape.head_dim);
    result.key_value_bytes = result.work.resident_bytes;
    result.state_bytes = Index(result.key_value_bytes);
  } else {
    result.work = work::attention(pairs, double(shape.rows), shape.heads, shape.kv_heads, shape.head_dim);
  }
  return result;
}

}  // namespace seqmix::bench
