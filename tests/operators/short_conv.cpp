// The short causal convolution.
#include <seqmix/convolution/short_conv.hpp>

#include "support/golden.hpp"
#include "support/recurrence_golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

template <class T>
struct ShortConvGolden final : GoldenLayer<ShortConv<T>> {
  using State = typename ShortConv<T>::State;

  explicit ShortConvGolden(GoldenCase& golden) : GoldenLayer<ShortConv<T>>(golden, config(golden)) {}

  static typename ShortConv<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    config.expect("causal", true);
    const std::string activation = config.text("activation", "none");
    const bool swish = activation == "silu" || activation == "swish";
    if (!swish && activation != "none") config.unknown("activation");
    const Index width = config.integer("width");
    return {.channels = config.integer("dim"),
            .width = width,
            .bias = config.boolean("bias", golden.has("weight.bias")),
            .activation = swish ? ConvolutionActivation::swish : ConvolutionActivation::none,
            .kept = config.integer("state_len", width - 1)};
  }
  void read_state(GoldenCase& golden, State& state) override {
    if (!golden.has("input.state.conv")) return;
    Tensor<T> given({state.inputs.shape()[1], state.inputs.shape()[0]});
    golden.copy("input.state.conv", given);
    state.inputs = transposed(given);
  }
  void collect_state(const State& state, GoldenOutputs& outputs) const override {
    outputs.add("state.conv", transposed(state.inputs));
  }
};

const GoldenRegistration<ShortConvGolden> golden{"short_conv", "core"};

struct ShortConvTests {
  static constexpr const char* name = "short_conv";
  template <class T>
  using Mixer = ShortConv<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    return {{"one channel of width 1", {.channels = 1, .width = 1}},
            {"35 channels of width 4", {.channels = 35}},
            {"16 channels of width 2, neither bias nor silu",
             {.channels = 16, .width = 2, .bias = false, .activation = ConvolutionActivation::none}},
            {"9 channels of width 7, a state of 10", {.channels = 9, .width = 7, .kept = 10}},
            {"3 channels of width 40", {.channels = 3, .width = 40, .kept = 40}},
            {"random", {.channels = rng.integer(1, 70), .width = rng.integer(1, 8)}}};
  }

  static Matrixd reference(const ShortConv<double>::Config& config, const ShortConv<double>::Weights& weights,
                           const Matrixd& x) {
    Matrixd y(x.rows(), x.cols());
    for (Index t = 0; t < x.rows(); ++t) {
      for (Index c = 0; c < x.cols(); ++c) {
        double sum = config.bias ? weights.bias[c] : 0;
        for (Index j = 0; j < config.width; ++j) {
          const Index s = t - config.width + 1 + j;
          if (s >= 0) sum += weights.weight(c, j) * x(s, c);
        }
        y(t, c) = config.activation == ConvolutionActivation::swish ? silu(sum) : sum;
      }
    }
    return y;
  }
};

const MixerRegistration<ShortConvTests> mixer;

}  // namespace
}  // namespace seqmix::test
