// Golden cases of the layers of linear attention (fast-transformers, flash-linear-attention), with every feature map in both
// directions: apart from the other tests, because two files compile on two cores.
#include <memory>
#include <seqmix/linear/linear_attention.hpp>

#include "operators/linear_attention_options.hpp"
#include "support/golden.hpp"

namespace seqmix::test {
namespace {

template <class M>
struct LinearAttentionMixerGolden final : GoldenLayer<M> {
  using Base = GoldenLayer<M>;
  using T = typename M::Scalar;
  using State = typename Base::State;

  explicit LinearAttentionMixerGolden(GoldenCase& golden) : Base(golden, config(golden), weights(golden)) {}

  static typename M::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    typename M::Config result;
    result.channels = config.integer("dim");
    result.heads = config.integer("heads");
    result.key_value_heads = config.integer("kv_heads", result.heads);
    result.key_dim = config.integer("key_dim");
    result.value_dim = config.integer("value_dim");
    result.options = options_of<T>(config);
    result.normalize_query = config.boolean("norm_q", false);
    result.normalize_key = config.boolean("norm_k", false);
    result.feature_eps = T(config.number("qk_norm_eps", 1e-4));
    const std::string norm = config.text("output_norm", "identity");
    result.output_norm = norm == "rmsnorm";
    if (norm != "rmsnorm" && norm != "identity" && norm != "none") config.unknown("output_norm");
    result.norm_eps = T(config.number("norm_eps", 1e-5));
    return result;
  }
  static typename M::Weights weights(GoldenCase& golden) {
    auto& config = golden.config();
    typename M::Weights result;
    const std::string layer = config.text("layer");
    const bool fla = layer == "fla";
    if (!fla && layer != "fast_transformers") config.unknown("layer");
    result.names = fla ? LinearAttentionNames::flash_linear_attention : LinearAttentionNames::fast_transformers;
    golden.read_weights(result);
    config.expect("bias", result.query_bias.size() > 0);
    return result;
  }
  void read_state(GoldenCase& golden, State& state) override {
    if constexpr (RecurrentMixer<M>) {
      if (golden.has("input.state.S")) golden.copy("input.state.S", state.memory);
      if (golden.has("input.state.z")) golden.copy("input.state.z", state.key_sum);
    } else {
      static_cast<void>(golden), static_cast<void>(state);
    }
  }
  void collect_state(const State& state, GoldenOutputs& outputs) const override {
    if constexpr (RecurrentMixer<M>) {
      outputs.add("state.S", state.memory);
      if (this->mixer().config().options.normalize) outputs.add("state.z", state.key_sum);
    } else {
      static_cast<void>(outputs), static_cast<void>(state);
    }
  }
};

template <class T>
struct LinearAttentionLayerGolden {
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    const bool causal = golden.config().boolean("causal");
    return with_feature_map(golden.config(), [&](auto map) -> std::unique_ptr<GoldenRunner<T>> {
      using Causal = LinearAttention<T, decltype(map), Direction::causal>;
      using Bidirectional = LinearAttention<T, decltype(map), Direction::bidirectional>;
      if (causal) return std::make_unique<LinearAttentionMixerGolden<Causal>>(golden);
      return std::make_unique<LinearAttentionMixerGolden<Bidirectional>>(golden);
    });
  }
};

const GoldenRegistration<LinearAttentionLayerGolden> layer_golden{"linear_attention", "layer"};

}  // namespace
}  // namespace seqmix::test
