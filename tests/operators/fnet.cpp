// FNet: the mixing and the layer.
#include <cmath>
#include <numbers>
#include <seqmix/convolution/fnet.hpp>

#include "support/fourier_reference.hpp"
#include "support/golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

template <class T>
struct FnetCoreGolden final : GoldenRunner<T> {
  explicit FnetCoreGolden(GoldenCase& golden)
      : x(golden.array<T>("input.x", {-1, golden.config().integer("dim")})), y({x.size(0), x.size(1)}) {
    golden.config().expect("causal", false);
    golden.config().expect("norm", "none (unnormalised forward DFT over sequence and hidden)");
  }
  Index length() const override { return x.size(0); }
  bool stepwise() const override { return false; }
  void reset() override {}
  void run(Index, Index) override { fnet<T>(x.sequence(), y.sequence(), this->workspace); }
  void collect(GoldenOutputs& outputs) const override { outputs.add("y", y); }

  GoldenArray<T> x, y;
};

template <class T>
struct FnetLayerGolden final : GoldenLayer<Fnet<T>> {
  explicit FnetLayerGolden(GoldenCase& golden) : GoldenLayer<Fnet<T>>(golden, config(golden)) {}

  static typename Fnet<T>::Config config(GoldenCase& golden) {
    GoldenConfig& config = golden.config();
    config.expect("causal", false);
    config.expect("residual", "post-norm");
    return {.channels = config.integer("dim"),
            .intermediate = config.integer("intermediate"),
            .activation = activation(config),
            .norm_epsilon = config.number("layer_norm_eps")};
  }
  static FnetActivation activation(GoldenConfig& config) {
    const std::string name = config.text("activation");
    if (name.starts_with("gelu_new")) return FnetActivation::tanh_gelu;
    if (name.starts_with("gelu")) return FnetActivation::exact_gelu;
    if (name.starts_with("relu")) return FnetActivation::rectifier;
    if (name.starts_with("silu") || name.starts_with("swish")) return FnetActivation::swish;
    config.unknown("activation");
  }
};

const GoldenRegistration<FnetCoreGolden> core_golden{"fnet", "core"};
const GoldenRegistration<FnetLayerGolden> layer_golden{"fnet", "layer"};

// --- the layer --------------------------------------------------------------------------------------------------------

struct FnetTests {
  static constexpr const char* name = "fnet";
  template <class T>
  using Mixer = Fnet<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    using enum FnetActivation;
    return {{"two channels", {.channels = 2, .norm_epsilon = 1e-5}},
            {"16 channels", {.channels = 16}},
            {"15 channels, gelu", {.channels = 15, .intermediate = 7, .activation = exact_gelu}},
            {"37 channels, relu", {.channels = 37, .intermediate = 11, .activation = rectifier, .norm_epsilon = 1e-3}},
            {"random", {.channels = rng.integer(3, 90), .intermediate = rng.integer(1, 50), .activation = swish}}};
  }

  static Matrixd reference(const Fnet<double>::Config& config, const Fnet<double>::Weights& weights, const Matrixd& x) {
    const auto activate = [&](double z) {
      switch (config.activation) {
        case FnetActivation::tanh_gelu:
          return 0.5 * z * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (z + 0.044715 * z * z * z)));
        case FnetActivation::exact_gelu:
          return gelu(z);
        case FnetActivation::rectifier:
          return std::max(z, 0.0);
        case FnetActivation::swish:
          break;
      }
      return silu(z);
    };
    const double eps = config.norm_epsilon;
    const Matrixd a = layer_norm(x + fourier_real_part_of(x), eps, weights.mixed_norm, weights.mixed_norm_bias);
    const Matrixd wide = map(linear(a, weights.intermediate, weights.intermediate_bias), activate);
    return layer_norm(linear(wide, weights.output, weights.output_bias) + a, eps, weights.norm, weights.norm_bias);
  }
};

const MixerRegistration<FnetTests> mixer;

}  // namespace
}  // namespace seqmix::test
