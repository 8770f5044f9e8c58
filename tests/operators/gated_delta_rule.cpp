// The gated delta rule: the core function and the layer.
#include <cmath>
#include <seqmix/linear/gated_delta_rule.hpp>

#include "support/delta_rules.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

template <class T>
struct GatedDeltaRuleCoreGolden final : DeltaCoreGolden<T> {
  explicit GatedDeltaRuleCoreGolden(GoldenCase& golden)
      : DeltaCoreGolden<T>(golden), log_decay(golden.array<T>("input.g", {-1, -1})) {
    golden.config().expect("gate", "log");
  }
  void run_rows(Index begin, Index count, const typename MemoryCoreGolden<T>::Streams& s) override {
    gated_delta_rule<T>(s.query, s.key, s.value, log_decay.sequence().rows(begin, count),
                        this->beta.sequence().rows(begin, count), this->scale, this->norm, s.memory, s.output,
                        this->workspace);
  }
  GoldenArray<T> log_decay;
};

template <class T>
struct GatedDeltaRuleLayerGolden final : ConvolvedLayerGolden<GatedDeltaRule<T>> {
  explicit GatedDeltaRuleLayerGolden(GoldenCase& golden)
      : ConvolvedLayerGolden<GatedDeltaRule<T>>(golden, config(golden)) {}

  static typename GatedDeltaRule<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    typename GatedDeltaRule<T>::Config result;
    result.channels = config.integer("dim");
    result.heads = config.integer("heads");
    result.value_heads = config.integer("v_heads", result.heads);
    result.key_dim = config.integer("head_dim");
    result.value_dim = Index(std::lround(double(result.key_dim) * config.number("expand_v")));
    result.convolution = convolution_of(config);
    result.output_gate = config.boolean("use_gate");
    result.negative_eigenvalues = config.boolean("allow_neg_eigval");
    result.norm_eps = T(config.number("norm_eps"));
    result.l2_eps = config.number("l2_eps");
    return result;
  }
};

const GoldenRegistration<GatedDeltaRuleCoreGolden> core_golden{"gated_delta_rule", "core"};
const GoldenRegistration<GatedDeltaRuleLayerGolden> layer_golden{"gated_delta_rule", "layer"};

// --- mixers -----------------------------------------------------------------------------------------------------------

struct GatedDeltaRuleTests {
  static constexpr const char* name = "gated_delta_rule";
  template <class T>
  using Mixer = GatedDeltaRule<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index heads = rng.integer(1, 4);
    return {{"one head of 1", {.channels = 3, .heads = 1, .key_dim = 1, .value_dim = 1, .negative_eigenvalues = true}},
            {"two heads, six of values",
             {.channels = 8,
              .heads = 2,
              .value_heads = 6,
              .key_dim = 5,
              .value_dim = 3,
              .convolution = {.bias = true},
              .negative_eigenvalues = true}},
            {"no convolution, no gate",
             {.channels = 9,
              .heads = 3,
              .key_dim = 8,
              .convolution = {.convolve = false},
              .output_gate = false,
              .norm_eps = T(1e-3)}},
            {"head_dim 64", {.channels = 64, .heads = 1, .key_dim = 64, .value_dim = 64}},
            {"random",
             {.channels = rng.integer(1, 33),
              .heads = heads,
              .value_heads = heads * rng.integer(1, 3),
              .key_dim = rng.integer(1, 17),
              .value_dim = rng.integer(1, 17),
              .convolution = {.convolve = rng.integer(0, 1) == 1, .width = rng.integer(1, 6)}}}};
  }

  static Matrixd reference(const GatedDeltaRule<double>::Config& config, const GatedDeltaRule<double>::Weights& weights,
                           const Matrixd& x) {
    const Matrixd beta = beta_gate(linear(x, weights.beta), config.negative_eigenvalues);
    Matrixd g = linear(x, weights.decay, weights.rate_bias);
    for (Index t = 0; t < g.rows(); ++t) {
      for (Index h = 0; h < g.cols(); ++h) g(t, h) = -std::exp(weights.log_rate[h]) * softplus(g(t, h));
    }
    const auto s = convolved_streams(x, weights);
    Matrixd o = delta_rule_heads(l2_norm(s.query, config.heads), l2_norm(s.key, config.heads), s.value, g, beta,
                                 config.heads, beta.cols(), config.norm_eps, weights.norm);
    if (config.output_gate) o = o.cwiseProduct(map(linear(x, weights.gate), silu));
    return linear(o, weights.output);
  }
};

/// Log decays from -infinity and some hundreds to -1e-7 side by side, beta from 0 to 2.
struct ExtremeGatedDeltaRuleTests : GatedDeltaRuleTests {
  static constexpr const char* name = "gated_delta_rule, extreme gates";

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng&) {
    return {
        {"two heads, twelve of values",
         {.channels = 16, .heads = 2, .value_heads = 12, .key_dim = 8, .value_dim = 9, .negative_eigenvalues = true}},
        {"one head of 20", {.channels = 9, .heads = 1, .key_dim = 20, .negative_eigenvalues = true}}};
  }
  static GatedDeltaRule<double>::Weights weights(const GatedDeltaRule<double>::Config& config, Rng& rng) {
    auto result = GatedDeltaRule<double>::random_weights(config, rng);
    stir(result, rng);
    result.beta *= 12;
    extreme_decays(result.log_rate, result.rate_bias, rng);
    return result;
  }
};

const MixerRegistration<GatedDeltaRuleTests> mixer;
const MixerRegistration<ExtremeGatedDeltaRuleTests> extreme_mixer;

}  // namespace
}  // namespace seqmix::test
