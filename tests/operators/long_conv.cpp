// Long convolutions, causal and of period twice the length.
#include <cmath>
#include <seqmix/convolution/long_conv.hpp>

#include "support/golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

template <class T, Direction way>
struct LongConvGolden final : GoldenLayer<LongConv<T, way>> {
  explicit LongConvGolden(GoldenCase& golden) : GoldenLayer<LongConv<T, way>>(golden, config(golden)) {}

  static typename LongConv<T, way>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    config.expect("causal", way == Direction::causal);
    config.expect("activation", "gelu");
    return {.channels = config.integer("dim"),
            .outputs = config.integer("channels", Index(1)),
            .kernel_length = config.integer("kernel_length"),
            .shrinkage = config.number("lam")};
  }
};

template <class T>
struct LongConvAnyGolden {
  static std::unique_ptr<GoldenRunner<T>> make(GoldenCase& golden) {
    if (golden.config().boolean("causal")) return std::make_unique<LongConvGolden<T, Direction::causal>>(golden);
    return std::make_unique<LongConvGolden<T, Direction::bidirectional>>(golden);
  }
};

const GoldenRegistration<LongConvAnyGolden> golden{"long_conv", "layer"};

template <Direction way>
struct LongConvTests {
  static constexpr const char* name = way == Direction::causal ? "long_conv" : "long_conv, bidirectional";
  template <class T>
  using Mixer = LongConv<T, way>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    return {
        {"one channel of one tap", {.channels = 1, .kernel_length = 1}},
        {"five channels, two outputs, 40 taps", {.channels = 5, .outputs = 2, .kernel_length = 40, .shrinkage = 0.05}},
        {"three channels, 300 taps", {.channels = 3, .kernel_length = 300, .shrinkage = 0.01}},
        {"21 channels, two outputs, 400 taps, balanced",
         {.channels = 21, .outputs = 2, .kernel_length = 400, .schedule = StreamingSchedule::balanced}},
        {"random",
         {.channels = rng.integer(1, 20), .outputs = rng.integer(1, 3), .kernel_length = rng.integer(65, 150)}}};
  }

  static Matrixd reference(const typename Mixer<double>::Config& config, const typename Mixer<double>::Weights& weights,
                           const Matrixd& x) {
    const Index L = x.rows(), D = config.channels, C = config.outputs, K = config.kernel_length;
    Matrixd mixed(L, C * D);
    for (Index row = 0; row < C * D; ++row) {
      for (Index t = 0; t < L; ++t) {
        double sum = weights.skip.data()[row] * x(t, row % D);
        for (Index s = 0; s < L; ++s) {
          const Index tap = way == Direction::bidirectional && s > t ? 2 * L + t - s : t - s;
          if (tap < 0 || tap >= K) continue;
          const double k = weights.kernel(row, tap);
          sum += (k < 0 ? -1 : 1) * std::max(std::abs(k) - config.shrinkage, 0.0) * x(s, row % D);
        }
        mixed(t, row) = gelu(sum);
      }
    }
    const Matrixd both = linear(mixed, weights.output, weights.output_bias);
    Matrixd y(L, D);
    for (Index t = 0; t < L; ++t) {
      for (Index d = 0; d < D; ++d) y(t, d) = both(t, d) * sigmoid(both(t, D + d));
    }
    return y;
  }
};

const MixerRegistration<LongConvTests<Direction::causal>> causal;
const MixerRegistration<LongConvTests<Direction::bidirectional>> bidirectional;

}  // namespace
}  // namespace seqmix::test
