// Based: the core functions and the layer.
#include <seqmix/linear/based.hpp>

#include "support/polynomial_attention.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

struct BasedOperator {
  using Polynomial = polynomial::Taylor;
  static constexpr const char* feature_map = "taylor2";
  template <class T>
  static constexpr auto causal = &based<T>;
  template <class T>
  static constexpr auto bidirectional = &based_bidirectional<T>;
  template <class T, Direction direction>
  using Layer = Based<T, direction>;
  static void read_further(GoldenConfig& /*config*/, auto& /*result*/) {}
};

template <class T>
using BasedCoreGolden = PolynomialCoreGolden<BasedOperator, T>;
template <class T>
using BasedLayerGolden = PolynomialLayerGolden<BasedOperator, T>;

const GoldenRegistration<BasedCoreGolden> core_golden{"based", "core"};
const GoldenRegistration<BasedLayerGolden> layer_golden{"based", "layer"};

// --- mixers -----------------------------------------------------------------------------------------------------------

template <Direction direction>
struct BasedTests {
  static constexpr const char* name = direction == Direction::causal ? "based" : "based, bidirectional";
  template <class T>
  using Mixer = Based<T, direction>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index heads = rng.integer(1, 3);
    return {{"one head of 1, one feature", {.channels = 1, .heads = 1, .feature_dim = 1}},
            {"two heads, two features", {.channels = 6, .heads = 2, .feature_dim = 2}},
            {"three heads of 5, 7 features", {.channels = 15, .heads = 3, .feature_dim = 7}},
            {"16 features, two heads of 33", {.channels = 66, .heads = 2, .feature_dim = 16}},
            {"32 features", {.channels = 8, .heads = 1, .feature_dim = 32}},
            {"not normalised, scale 2",
             {.channels = 12, .heads = 3, .feature_dim = 4, .options = {.scale = T(2), .normalize = false}}},
            {"negative scale, large epsilon",
             {.channels = 12, .heads = 3, .feature_dim = 8, .options = {.scale = T(-0.3), .epsilon = T(0.5)}}},
            {"random", {.channels = heads * rng.integer(1, 17), .heads = heads, .feature_dim = rng.integer(1, 20)}}};
  }

  static Matrixd reference(const typename Mixer<double>::Config& config, const typename Mixer<double>::Weights& weights,
                           const Matrixd& x) {
    return linear(
        polynomial_heads<direction>(linear(x, weights.query), linear(x, weights.key), linear(x, weights.value),
                                    config.heads, config.options, [](double s) { return 1 + s + s * s / 2; }),
        weights.output);
  }
};

const MixerRegistration<BasedTests<Direction::causal>> causal;
const MixerRegistration<BasedTests<Direction::bidirectional>> bidirectional;

}  // namespace
}  // namespace seqmix::test
