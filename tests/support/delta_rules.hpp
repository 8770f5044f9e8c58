// What the golden adapters and the naive references of delta rules share.
#pragma once

#include <cmath>
#include <limits>
#include <seqmix/parts/delta_layer.hpp>
#include <seqmix/parts/query_key_norm.hpp>

#include "support/recurrence_golden.hpp"
#include "support/recurrence_reference.hpp"

namespace seqmix::test {

/// Reads input.beta and whether queries and keys are normalised, besides what MemoryCoreGolden reads.
template <class T>
struct DeltaCoreGolden : MemoryCoreGolden<T> {
  explicit DeltaCoreGolden(GoldenCase& golden)
      : MemoryCoreGolden<T>(golden),
        beta(golden.array<T>("input.beta", {-1, -1})),
        norm{golden.config().boolean("qk_l2norm") ? QueryKeyNorm::Kind::l2 : QueryKeyNorm::Kind::none,
             golden.config().number("l2_eps")} {}
  GoldenArray<T> beta;
  QueryKeyNorm norm;
};

/// Every head of every row over its length: x / sqrt(sum(x^2) + epsilon).
inline Matrixd l2_norm(const Matrixd& x, Index heads, double epsilon = 1e-6) {
  Matrixd y = x;
  for (Index h = 0; h < heads; ++h) {
    Matrixd part = head(x, h, heads);
    for (Index t = 0; t < x.rows(); ++t) part.row(t) /= std::sqrt(part.row(t).squaredNorm() + epsilon);
    set_head(y, h, heads, part);
  }
  return y;
}

/// sigmoid(x), or twice that.
inline Matrixd beta_gate(const Matrixd& x, bool doubled) { return map(x, sigmoid) * (doubled ? 2.0 : 1.0); }

/// Queries, keys and values of a layer.
struct ReferenceStreams {
  Matrixd query, key, value;
};

/// Projections of x after their convolutions; values pass silu, queries and keys `activation`.
inline ReferenceStreams convolved_streams(const Matrixd& x, const DeltaLayerWeights<double>& weights,
                                          double (*activation)(double) = silu) {
  const auto& c = weights.convolution;
  return {map(short_convolution(linear(x, weights.query), c.query, c.query_bias), activation),
          map(short_convolution(linear(x, weights.key), c.key, c.key_bias), activation),
          map(short_convolution(linear(x, weights.value), c.value, c.value_bias), silu)};
}

/// The delta rule head by head and token by token with scale K^-0.5, then the norm of each head's output. The log decay
/// has one column for each head of the values, or for each of their key channels, or none; beta one for each head.
inline Matrixd delta_rule_heads(const Matrixd& q, const Matrixd& k, const Matrixd& v, const Matrixd& log_decay,
                                const Matrixd& beta, Index heads, Index value_heads, double norm_eps,
                                const Vectord& norm) {
  const Index K = q.cols() / heads, V = v.cols() / value_heads;
  Matrixd o(q.rows(), v.cols());
  for (Index h = 0; h < value_heads; ++h) {
    MemoryLoop memory(K, V);
    const Index shared = h / (value_heads / heads);
    const Matrixd q_h = head(q, shared, heads), k_h = head(k, shared, heads), v_h = head(v, h, value_heads);
    Matrixd o_h(q.rows(), V);
    for (Index t = 0; t < q.rows(); ++t) {
      if (log_decay.size() > 0) memory.decay(head(log_decay, h, value_heads).row(t));
      memory.add(k_h.row(t), beta(t, h) * (v_h.row(t) - memory.read(k_h.row(t))));
      o_h.row(t) = memory.read(q_h.row(t)) / std::sqrt(double(K));
    }
    set_head(o, h, value_heads, rms_norm(o_h, norm_eps, norm));
  }
  return o;
}

}  // namespace seqmix::test
