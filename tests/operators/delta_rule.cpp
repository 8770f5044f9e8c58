// The delta rule: the core function and the layer.
#include <cmath>
#include <seqmix/linear/delta_rule.hpp>

#include "support/delta_rules.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

template <class T>
struct DeltaRuleCoreGolden final : DeltaCoreGolden<T> {
  using DeltaCoreGolden<T>::DeltaCoreGolden;
  void run_rows(Index begin, Index count, const typename MemoryCoreGolden<T>::Streams& s) override {
    delta_rule<T>(s.query, s.key, s.value, this->beta.sequence().rows(begin, count), this->scale, this->norm, s.memory,
                  s.output, this->workspace);
  }
};

StreamActivation activation_of(GoldenConfig& config) {
  const std::string activation = config.text("qk_activation");
  if (activation == "silu") return StreamActivation::swish;
  if (activation == "relu") return StreamActivation::relu;
  if (activation == "elu") return StreamActivation::elu1;
  if (activation == "identity") return StreamActivation::none;
  config.unknown("qk_activation");
}

QueryKeyNorm norm_of(GoldenConfig& config) {
  const std::string norm = config.text("qk_norm");
  if (norm == "l2") return {QueryKeyNorm::Kind::l2, config.number("l2_eps")};
  if (norm == "sum") return {QueryKeyNorm::Kind::sum, config.number("l2_eps")};
  config.unknown("qk_norm");
}

template <class T>
struct DeltaRuleLayerGolden final : ConvolvedLayerGolden<DeltaRule<T>> {
  explicit DeltaRuleLayerGolden(GoldenCase& golden) : ConvolvedLayerGolden<DeltaRule<T>>(golden, config(golden)) {}

  static typename DeltaRule<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    typename DeltaRule<T>::Config result;
    result.channels = config.integer("dim");
    result.heads = config.integer("heads");
    result.key_channels = Index(std::lround(double(result.channels) * config.number("expand_k")));
    result.value_channels = Index(std::lround(double(result.channels) * config.number("expand_v")));
    result.convolution = convolution_of(config);
    result.activation = activation_of(config);
    result.norm = norm_of(config);
    result.learned_beta = config.boolean("use_beta");
    result.negative_eigenvalues = config.boolean("allow_neg_eigval");
    result.output_gate = config.boolean("use_gate");
    result.norm_eps = T(config.number("norm_eps"));
    return result;
  }
};

const GoldenRegistration<DeltaRuleCoreGolden> core_golden{"delta_rule", "core"};
const GoldenRegistration<DeltaRuleLayerGolden> layer_golden{"delta_rule", "layer"};

// --- mixers -----------------------------------------------------------------------------------------------------------

/// Every head of every row over its sum.
Matrixd sum_norm(const Matrixd& x, Index heads) {
  Matrixd y = x;
  for (Index h = 0; h < heads; ++h) {
    Matrixd part = head(x, h, heads);
    for (Index t = 0; t < x.rows(); ++t) part.row(t) /= part.row(t).sum();
    set_head(y, h, heads, part);
  }
  return y;
}

double activated(double z, StreamActivation activation) {
  switch (activation) {
    case StreamActivation::none:
      return z;
    case StreamActivation::swish:
      return silu(z);
    case StreamActivation::relu:
      return z < 0 ? 0 : z;
    case StreamActivation::elu1:
      return z > 0 ? z + 1 : std::exp(z);
  }
  return z;
}

struct DeltaRuleTests {
  static constexpr const char* name = "delta_rule";
  template <class T>
  using Mixer = DeltaRule<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index heads = rng.integer(1, 5);
    return {{"one head of 1", {.channels = 3, .heads = 1, .key_channels = 1, .value_channels = 1}},
            {"gate, elu + 1 over the sum",
             {.channels = 8,
              .heads = 2,
              .key_channels = 10,
              .convolution = {.bias = true},
              .activation = StreamActivation::elu1,
              .norm = QueryKeyNorm::sum,
              .output_gate = true}},
            {"relu, beta 1, no convolution",
             {.channels = 9,
              .heads = 3,
              .value_channels = 24,
              .convolution = {.convolve = false},
              .activation = StreamActivation::relu,
              .learned_beta = false}},
            {"no activation, beta up to 2",
             {.channels = 16,
              .heads = 2,
              .convolution = {.width = 2},
              .activation = StreamActivation::none,
              .negative_eigenvalues = true}},
            {"beta 2", {.channels = 6, .heads = 2, .learned_beta = false, .negative_eigenvalues = true}},
            {"head_dim 64", {.channels = 64, .heads = 1}},
            {"random",
             {.channels = rng.integer(1, 33),
              .heads = heads,
              .key_channels = heads * rng.integer(1, 17),
              .value_channels = heads * rng.integer(1, 17),
              .convolution = {.convolve = rng.integer(0, 1) == 1, .width = rng.integer(1, 6)},
              .output_gate = true}}};
  }

  static Matrixd reference(const DeltaRule<double>::Config& config, const DeltaRule<double>::Weights& weights,
                           const Matrixd& x) {
    const Index H = config.heads;
    const Matrixd beta = config.learned_beta
                             ? beta_gate(linear(x, weights.beta), config.negative_eigenvalues)
                             : Matrixd(Matrixd::Constant(x.rows(), H, config.negative_eigenvalues ? 2 : 1));
    auto s = convolved_streams(x, weights, [](double z) { return z; });
    for (Matrixd* stream : {&s.query, &s.key}) {
      *stream = map(*stream, [&](double z) { return activated(z, config.activation); });
      *stream = config.norm == QueryKeyNorm::sum ? sum_norm(*stream, H) : l2_norm(*stream, H, config.norm.epsilon);
    }
    Matrixd o = delta_rule_heads(s.query, s.key, s.value, {}, beta, H, H, config.norm_eps, weights.norm);
    if (config.output_gate) o = o.cwiseProduct(map(linear(x, weights.gate), silu));
    return linear(o, weights.output);
  }
};

/// Beta at 0 and at 2 side by side: reflections, which keep what the memory holds for ever.
struct ExtremeDeltaRuleTests : DeltaRuleTests {
  static constexpr const char* name = "delta_rule, extreme beta";

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng&) {
    return {{"three heads of 8", {.channels = 24, .heads = 3, .negative_eigenvalues = true}}};
  }
  static DeltaRule<double>::Weights weights(const DeltaRule<double>::Config& config, Rng& rng) {
    auto result = DeltaRule<double>::random_weights(config, rng);
    stir(result, rng);
    result.beta *= 30;
    return result;
  }
};

const MixerRegistration<DeltaRuleTests> mixer;
const MixerRegistration<ExtremeDeltaRuleTests> extreme_mixer;

}  // namespace
}  // namespace seqmix::test
