// What the tests of attention by a polynomial of the product of query and key share: Based and ReBased.
#pragma once

#include <cmath>
#include <memory>
#include <seqmix/parts/polynomial_attention.hpp>

#include "support/golden.hpp"
#include "support/reference.hpp"

namespace seqmix::test {

/// The options of a golden case.
template <class T>
PolynomialAttentionOptions<T> polynomial_options(GoldenConfig& config) {
  return {
      .scale = T(config.number("scale")), .normalize = config.boolean("normalize"), .epsilon = T(config.number("eps"))};
}

/// A golden case of a core. Operator has feature_map, Polynomial, and causal and bidirectional: the core functions of T.
template <class Operator, class T>
struct PolynomialCoreGolden final : GoldenRunner<T> {
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    return std::make_unique<PolynomialCoreGolden>(golden);
  }
  explicit PolynomialCoreGolden(GoldenCase& golden)
      : heads(golden.config().integer("heads")),
        key_dim(golden.config().integer("key_dim")),
        value_dim(golden.config().integer("value_dim")),
        features(Operator::Polynomial::features(key_dim)),
        causal(golden.config().boolean("causal")),
        options(polynomial_options<T>(golden.config())),
        query(golden.array<T>("input.q", {-1, heads, key_dim})),
        key(golden.array<T>("input.k", {query.size(0), -1, key_dim})),
        value(golden.array<T>("input.v", {query.size(0), -1, value_dim})),
        output({query.size(0), heads, value_dim}) {
    golden.config().expect("feature_map", Operator::feature_map);
    golden.config().expect("kv_heads", key.size(1));
  }
  Index length() const override { return query.size(0); }
  bool stepwise() const override { return causal; }
  void reset() override {
    memory = GoldenArray<T>({heads, features, value_dim});
    key_sum = GoldenArray<T>({heads, features});
  }
  void run(Index begin, Index count) override {
    const auto q = query.heads().rows(begin, count), k = key.heads().rows(begin, count);
    const auto v = value.heads().rows(begin, count), y = output.heads().rows(begin, count);
    if (causal) {
      Operator::template causal<T>(q, k, v, options, {memory.data(), heads, features, value_dim}, key_sum.sequence(), y,
                                   this->workspace, {});
    } else {
      Operator::template bidirectional<T>(q, k, v, options, y, this->workspace);
    }
  }
  void collect(GoldenOutputs& outputs) const override { outputs.add("y", output); }

 private:
  Index heads, key_dim, value_dim, features;
  bool causal;
  PolynomialAttentionOptions<T> options;
  GoldenArray<T> query, key, value, output, memory, key_sum;
};

/// Golden cases of a layer. Operator has feature_map, Layer, the mixer of T and a direction, and
/// read_further(GoldenConfig&, Layer::Config&), which takes what only this layer has.
template <class Operator, class T>
struct PolynomialLayerGolden {
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    return golden.config().boolean("causal") ? make_layer<Direction::causal>(golden)
                                             : make_layer<Direction::bidirectional>(golden);
  }

 private:
  template <Direction direction>
  static std::unique_ptr<GoldenRunner<T>> make_layer(GoldenCase& golden) {
    using M = typename Operator::template Layer<T, direction>;
    GoldenConfig& config = golden.config();
    typename M::Config result;
    result.channels = config.integer("dim");
    result.heads = config.integer("heads");
    result.feature_dim = config.integer("feature_dim");
    result.options = polynomial_options<T>(config);
    config.expect("feature_map", Operator::feature_map);
    config.expect("key_dim", result.feature_dim);
    config.expect("value_dim", result.channels / result.heads);
    Operator::read_further(config, result);
    return std::make_unique<GoldenLayer<M>>(golden, result);
  }
};

/// The outputs of the heads [length, H V] for queries and keys [length, H f] and values [length, H V], where a token s
/// weighs weight(scale q . k).
template <Direction direction, class Weight>
Matrixd polynomial_heads(const Matrixd& q, const Matrixd& k, const Matrixd& v, Index heads,
                         const PolynomialAttentionOptions<double>& options, Weight weight) {
  const double scale = options.scale.value_or(1 / std::sqrt(double(q.cols() / heads)));
  Matrixd mixed(v.rows(), v.cols());
  for (Index h = 0; h < heads; ++h) {
    const Matrixd q_h = head(q, h, heads), k_h = head(k, h, heads), v_h = head(v, h, heads);
    Matrixd o = Matrixd::Zero(v_h.rows(), v_h.cols());
    for (Index t = 0; t < o.rows(); ++t) {
      double sum = 0;
      for (Index s = 0; s < (direction == Direction::causal ? t + 1 : o.rows()); ++s) {
        const double w = weight(scale * q_h.row(t).dot(k_h.row(s)));
        sum += w;
        o.row(t) += w * v_h.row(s);
      }
      if (options.normalize) o.row(t) /= sum + options.epsilon;
    }
    set_head(mixed, h, heads, o);
  }
  return mixed;
}

}  // namespace seqmix::test
