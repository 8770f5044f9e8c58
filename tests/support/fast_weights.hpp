// What the golden adapters and the naive references of fast weight programmers share.
#pragma once

#include <cmath>
#include <seqmix/parts/fast_weight_features.hpp>
#include <seqmix/parts/fast_weight_layer.hpp>
#include <string>
#include <utility>

#include "support/golden.hpp"
#include "support/recurrence_reference.hpp"

namespace seqmix::test {

/// The features that config keys feature_map, nu and sum_norm name, of keys of key_dim channels.
inline FastWeightFeatures features_of(GoldenConfig& config, Index key_dim) {
  FastWeightFeatures result;
  const std::string map = config.text("feature_map");
  result.kind = map == "dpfp" ? FastWeightFeatures::Kind::dpfp : FastWeightFeatures::Kind::elu1;
  if (map != "dpfp" && map != "elu1") config.unknown("feature_map");
  const Index nu = config.integer("nu", 0);
  if (map == "dpfp") result.nu = nu;
  result.sum_norm = config.boolean("sum_norm");
  config.expect("feature_dim", result.size(key_dim));
  return result;
}

/// The form that config keys layer and norm name.
inline FastWeightForm form_of(GoldenConfig& config) {
  const std::string layer = config.text("layer"), norm = config.text("norm");
  if (layer == "algorithmic" && norm == "pre") return FastWeightForm::algorithmic;
  if (layer == "language_model" && norm == "pre") return FastWeightForm::language_model_pre_norm;
  if (layer == "language_model" && norm == "post") return FastWeightForm::language_model_post_norm;
  config.unknown("layer");
}

/// What the configs of all layers have.
template <class Config>
void read_layer_config(GoldenConfig& config, Config& result) {
  result.channels = config.integer("dim");
  result.heads = config.integer("heads");
  result.head_dim = config.integer("head_dim");
  result.form = form_of(config);
  result.norm_eps = decltype(result.norm_eps)(config.number("ln_eps"));
}

/// The weights of a layer under the names of its form.
template <class Mixer>
typename Mixer::Weights read_layer_weights(GoldenCase& golden, FastWeightForm form) {
  typename Mixer::Weights weights;
  weights.form = form;
  golden.read_weights(weights);
  return weights;
}

/// Every row [d] to its features.
inline Matrixd fast_weight_features(const Matrixd& x, const FastWeightFeatures& features) {
  const Index d = x.cols();
  Matrixd f(x.rows(), features.size(d));
  for (Index t = 0; t < x.rows(); ++t) {
    if (features.kind == FastWeightFeatures::Kind::elu1) {
      for (Index j = 0; j < d; ++j) f(t, j) = x(t, j) <= 0 ? std::exp(x(t, j)) : x(t, j) + 1;
    } else {
      std::vector<double> r;
      for (Index j = 0; j < d; ++j) r.push_back(x(t, j) < 0 ? 0 : x(t, j));
      for (Index j = 0; j < d; ++j) r.push_back(-x(t, j) < 0 ? 0 : -x(t, j));
      for (Index i = 1; i <= features.nu; ++i) {
        for (Index j = 0; j < 2 * d; ++j) {
          f(t, (i - 1) * 2 * d + j) = r[std::size_t(j)] * r[std::size_t((j + 2 * d * features.nu - i) % (2 * d))];
        }
      }
    }
    if (!features.sum_norm) continue;
    double sum = 0;
    for (Index j = 0; j < f.cols(); ++j) sum += f(t, j);
    if (sum != 0 || !features.keep_zeros) f.row(t) /= sum;
  }
  return f;
}

/// A layer around `core`, which maps the slow net's output [L, slow_rows] of head h to what the head reads [L, d].
inline Matrixd fast_weight_layer(const FastWeightLayerWeights<double>& weights, double norm_eps, Index heads,
                                 const Matrixd& x, const std::function<Matrixd(const Matrixd&, Index)>& core) {
  const auto norm = [&](const Matrixd& z) { return layer_norm(z, norm_eps, weights.norm_weight, weights.norm_bias); };
  const bool post = weights.form == FastWeightForm::language_model_post_norm;
  const Matrixd h = post ? x : norm(x);
  const Matrixd slow = linear(h, weights.slow);
  Matrixd read(x.rows(), weights.output.cols());
  for (Index i = 0; i < heads; ++i) set_head(read, i, heads, core(head(slow, i, heads), i));
  const Matrixd a = linear(read, weights.output);
  if (post) return norm(x + a);
  return (weights.form == FastWeightForm::algorithmic ? x : h) + a;
}

}  // namespace seqmix::test
