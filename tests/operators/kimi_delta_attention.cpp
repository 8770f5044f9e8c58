// Kimi delta attention: the core function and the layer.
#include <cmath>
#include <seqmix/linear/kimi_delta_attention.hpp>

#include "support/delta_rules.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

template <class T>
struct KimiDeltaAttentionCoreGolden final : DeltaCoreGolden<T> {
  explicit KimiDeltaAttentionCoreGolden(GoldenCase& golden)
      : DeltaCoreGolden<T>(golden), log_decay(golden.array<T>("input.g", {-1, -1, this->key_dim})) {
    golden.config().expect("gate", "log_per_channel");
    golden.config().expect("heads", this->query.size(1));
  }
  void run_rows(Index begin, Index count, const typename MemoryCoreGolden<T>::Streams& s) override {
    kimi_delta_attention<T>(s.query, s.key, s.value, log_decay.heads().rows(begin, count),
                            this->beta.sequence().rows(begin, count), this->scale, this->norm, s.memory, s.output,
                            this->workspace);
  }
  GoldenArray<T> log_decay;
};

template <class T>
struct KimiDeltaAttentionLayerGolden final : ConvolvedLayerGolden<KimiDeltaAttention<T>> {
  explicit KimiDeltaAttentionLayerGolden(GoldenCase& golden)
      : ConvolvedLayerGolden<KimiDeltaAttention<T>>(golden, config(golden)) {}

  static typename KimiDeltaAttention<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    typename KimiDeltaAttention<T>::Config result;
    result.channels = config.integer("dim");
    result.heads = config.integer("heads");
    result.value_heads = config.integer("v_heads", result.heads);
    result.key_dim = config.integer("head_dim");
    result.value_dim = Index(std::lround(double(result.key_dim) * config.number("expand_v")));
    result.convolution = convolution_of(config);
    result.negative_eigenvalues = config.boolean("allow_neg_eigval");
    if (config.has("lower_bound")) result.lower_bound = T(config.number("lower_bound"));
    config.ignore("lower_bound");
    result.norm_eps = T(config.number("norm_eps"));
    result.l2_eps = config.number("l2_eps");
    config.expect("output_gate", "sigmoid");
    return result;
  }
};

const GoldenRegistration<KimiDeltaAttentionCoreGolden> core_golden{"kimi_delta_attention", "core"};
const GoldenRegistration<KimiDeltaAttentionLayerGolden> layer_golden{"kimi_delta_attention", "layer"};

// --- mixers -----------------------------------------------------------------------------------------------------------

struct KimiDeltaAttentionTests {
  static constexpr const char* name = "kimi_delta_attention";
  template <class T>
  using Mixer = KimiDeltaAttention<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index heads = rng.integer(1, 4);
    return {{"one head of 1", {.channels = 3, .heads = 1, .key_dim = 1, .value_dim = 1, .negative_eigenvalues = true}},
            {"two heads, six of values, bounded below",
             {.channels = 8,
              .heads = 2,
              .value_heads = 6,
              .key_dim = 5,
              .value_dim = 3,
              .convolution = {.bias = true},
              .negative_eigenvalues = true,
              .lower_bound = T(-5)}},
            {"no convolution", {.channels = 9, .heads = 3, .key_dim = 8, .convolution = {.convolve = false}}},
            {"head_dim 64", {.channels = 64, .heads = 1, .key_dim = 64, .norm_eps = T(1e-3)}},
            {"random",
             {.channels = rng.integer(1, 33),
              .heads = heads,
              .value_heads = heads * rng.integer(1, 3),
              .key_dim = rng.integer(1, 17),
              .value_dim = rng.integer(1, 17),
              .convolution = {.convolve = rng.integer(0, 1) == 1, .width = rng.integer(1, 6)}}}};
  }

  static Matrixd reference(const KimiDeltaAttention<double>::Config& config,
                           const KimiDeltaAttention<double>::Weights& weights, const Matrixd& x) {
    const Matrixd beta = beta_gate(linear(x, weights.beta), config.negative_eigenvalues);
    Matrixd g = linear(linear(x, weights.decay_down), weights.decay_up, weights.rate_bias);
    for (Index t = 0; t < g.rows(); ++t) {
      for (Index c = 0; c < g.cols(); ++c) {
        const double rate = std::exp(weights.log_rate[c / config.key_dim]);
        g(t, c) = config.lower_bound ? *config.lower_bound * sigmoid(rate * g(t, c)) : -rate * softplus(g(t, c));
      }
    }
    const auto s = convolved_streams(x, weights);
    const Matrixd o = delta_rule_heads(l2_norm(s.query, config.heads), l2_norm(s.key, config.heads), s.value, g, beta,
                                       config.heads, beta.cols(), config.norm_eps, weights.norm);
    const Matrixd gate = linear(linear(x, weights.gate_down), weights.gate_up, weights.gate_bias);
    return linear(o.cwiseProduct(map(gate, sigmoid)), weights.output);
  }
};

/// Log decays from -infinity and some hundreds to -1e-7 side by side, beta from 0 to 2.
struct ExtremeKimiDeltaAttentionTests : KimiDeltaAttentionTests {
  static constexpr const char* name = "kimi_delta_attention, extreme gates";

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng&) {
    return {
        {"two heads, four of values",
         {.channels = 16, .heads = 2, .value_heads = 4, .key_dim = 9, .value_dim = 8, .negative_eigenvalues = true}}};
  }
  /// Decays that differ from channel to channel of one head, where rates differ from head to head.
  static KimiDeltaAttention<double>::Weights weights(const KimiDeltaAttention<double>::Config& config, Rng& rng) {
    auto result = KimiDeltaAttention<double>::random_weights(config, rng);
    stir(result, rng);
    result.beta *= 12;
    extreme_decays(result.log_rate, result.rate_bias, rng);
    for (Index c = 0; c < result.rate_bias.size(); c += 2) result.rate_bias[c] = rng.uniform(-16, 300);
    return result;
  }
};

const MixerRegistration<KimiDeltaAttentionTests> mixer;
const MixerRegistration<ExtremeKimiDeltaAttentionTests> extreme_mixer;

}  // namespace
}  // namespace seqmix::test
