// S4D: the core, the authors' block, and their minimal version.
#include <seqmix/ssm/s4d.hpp>

#include "support/long_sequences.hpp"
#include "support/registry.hpp"
#include "support/state_spaces.hpp"

namespace seqmix::test {
namespace {

template <class T>
struct S4dCoreGolden final : StateSpaceCoreGolden<S4dCore<T>> {
  using StateSpaceCoreGolden<S4dCore<T>>::StateSpaceCoreGolden;
};

template <class T>
struct S4dLayerGolden {
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    using Causal = StateSpaceLayerGolden<S4dCore<T>, Direction::causal>;
    auto& config = golden.config();
    if (config.has("variant")) {
      config.expect("variant", "s4d_minimal");
      config.expect("B", "ones (absorbed in C)");
      config.expect("output", "conv1x1 + glu");
      config.ignore("final_act");
      config.expect("causal", true);
      S4dMinimalWeights<T> weights;
      golden.read_weights(weights);
      return std::make_unique<Causal>(golden, weights);
    }
    if (read_direction(golden) == Direction::causal) return std::make_unique<Causal>(golden);
    return std::make_unique<StateSpaceLayerGolden<S4dCore<T>, Direction::bidirectional>>(golden);
  }
};

const GoldenRegistration<S4dCoreGolden> core_golden{"s4d", "core"};
const GoldenRegistration<S4dLayerGolden> layer_golden{"s4d", "layer"};

template <Direction way>
struct S4dTests {
  static constexpr const char* name = way == Direction::causal ? "s4d" : "s4d, bidirectional";
  template <class T>
  using Mixer = S4d<T, way>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    const Index channels = rng.integer(1, 20);
    return {{"one channel, one mode", {.channels = 1, .modes = 1}},
            {"five channels of 4 modes, bilinear",
             {.channels = 5,
              .modes = 4,
              .discretization = Discretization::bilinear,
              .dt_transform = ParameterTransform::softly_positive,
              .init = StateSpaceInit::linear}},
            {"two outputs, three sets of modes, other transforms",
             {.channels = 9,
              .modes = 3,
              .outputs = 2,
              .copies = 3,
              .real_transform = ParameterTransform::softly_positive,
              .imag_transform = ParameterTransform::exponential,
              .init = StateSpaceInit::inverse}},
            {"no activation", {.channels = 17, .modes = 2, .activate = false, .gated = false}},
            {"twelve channels of 32 modes", {.channels = 12}},
            {"random", {.channels = channels, .modes = rng.integer(1, 12), .outputs = rng.integer(1, 3)}}};
  }

  static Matrixd reference(const StateSpaceConfig& config, const typename Mixer<double>::Weights& weights,
                           const Matrixd& x) {
    const auto kernel = [&](Index row, Index length) {
      const Index h = row % config.channels, M = config.modes;
      const double dt = transformed_as(weights.core.inv_dt[h], config.dt_transform);
      std::vector<double> result(std::size_t(length), 0.0);
      for (Index n = 0; n < M; ++n) {
        const std::complex<double> a = pole(config, weights.core, h, n);
        const std::complex<double> b = complex_number(weights.core.b, h % config.sets() * M + n);
        std::complex<double> decay = std::exp(dt * a), power = b * (decay - 1.0) / a;
        if (config.discretization == Discretization::bilinear) {
          decay = (1.0 + dt * a / 2.0) / (1.0 - dt * a / 2.0), power = b * dt / (1.0 - dt * a / 2.0);
        }
        for (double& number : result) {
          number += 2 * (complex_number(weights.core.c, row * M + n) * power).real();
          power *= decay;
        }
      }
      return result;
    };
    return state_space_reference(config, weights.core, weights.output, weights.output_bias, x,
                                 way == Direction::bidirectional, kernel);
  }
};

const MixerRegistration<S4dTests<Direction::causal>> causal;
const MixerRegistration<S4dTests<Direction::bidirectional>> bidirectional;

TEST_CASE("s4d: steps through many tokens give what the scan gives", "[s4d]") {
  check_long_steps<S4d<float>>({.channels = 3, .modes = 4});
  check_long_steps<S4d<double>>({.channels = 3, .modes = 4});
}

TEST_CASE("s4d: the convolution with the kernel gives what the scan gives", "[s4d]") {
  check_convolution<S4d<float>>({.channels = 11, .modes = 3, .outputs = 2});
  check_convolution<S4d<double>>({.channels = 3, .modes = 3});
  check_convolution<S4d<float, Direction::bidirectional>>({.channels = 5, .modes = 3, .outputs = 2});
}

}  // namespace
}  // namespace seqmix::test
