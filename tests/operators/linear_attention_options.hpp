// The options of linear attention as golden cases name them.
#pragma once

#include <seqmix/linear/linear_attention.hpp>
#include <string>

#include "support/golden.hpp"

namespace seqmix::test {

/// Calls f with the feature map that config key feature_map names.
template <class F>
auto with_feature_map(GoldenConfig& config, F f) {
  const std::string map = config.text("feature_map", "elu1");
  if (map == "elu1") return f(feature_map::Elu1{});
  if (map == "relu") return f(feature_map::Relu{});
  if (map == "exp") return f(feature_map::Exp{});
  if (map == "identity") return f(feature_map::Identity{});
  if (map == "squared_relu") return f(feature_map::SquaredRelu{});
  config.unknown("feature_map");
}

/// What the core function is told.
template <class T>
LinearAttentionOptions<T> options_of(GoldenConfig& config) {
  LinearAttentionOptions<T> result;
  result.scale = T(config.number("scale"));
  result.normalize = config.boolean("normalize");
  result.epsilon = T(config.number("eps", 0.0));
  return result;
}

}  // namespace seqmix::test
