// Multiresolution convolution.
#include <seqmix/convolution/multires_conv.hpp>

#include "support/golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

template <class T>
struct MultiresConvGolden final : GoldenLayer<MultiresConv<T>> {
  explicit MultiresConvGolden(GoldenCase& golden) : GoldenLayer<MultiresConv<T>>(golden, config(golden)) {}

  static typename MultiresConv<T>::Config config(GoldenCase& golden) {
    auto& config = golden.config();
    config.expect("causal", true);
    config.expect("activation", "gelu");
    const std::string memory = config.text("tree_select");
    if (memory != "fading" && memory != "uniform") config.unknown("tree_select");
    const Index depth = config.integer("depth");
    return {.channels = config.integer("dim"),
            .kernel_size = config.integer("kernel_size"),
            .depth = depth,
            .memory = memory == "fading" ? WaveletMemory::fading : WaveletMemory::uniform,
            .memory_size = config.integer("memory_size", depth + 1)};
  }
};

const GoldenRegistration<MultiresConvGolden> golden{"multires_conv", "layer"};

struct MultiresConvTests {
  static constexpr const char* name = "multires_conv";
  template <class T>
  using Mixer = MultiresConv<T>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    constexpr auto uniform = WaveletMemory::uniform;
    return {{"one channel of one tap", {.channels = 1, .kernel_size = 1, .depth = 1}},
            {"19 channels, 6 levels", {.channels = 19, .kernel_size = 2, .depth = 6}},
            {"32 channels of 4 taps", {.channels = 32, .kernel_size = 4, .depth = 3}},
            {"uniform, full", {.channels = 5, .kernel_size = 2, .depth = 5, .memory = uniform, .memory_size = 7}},
            {"uniform, cut", {.channels = 16, .kernel_size = 3, .depth = 4, .memory = uniform, .memory_size = 10}},
            {"uniform, room left", {.channels = 3, .kernel_size = 2, .depth = 2, .memory = uniform, .memory_size = 30}},
            {"random",
             {.channels = rng.integer(1, 40),
              .kernel_size = rng.integer(1, 4),
              .depth = rng.integer(1, 7),
              .memory = uniform,
              .memory_size = rng.integer(2, 20)}}};
  }

  static Matrixd reference(const MultiresConv<double>::Config& config, const MultiresConv<double>::Weights& weights,
                           const Matrixd& x) {
    const Index L = x.rows(), K = config.kernel_size, N = config.depth;
    Matrixd y(L, x.cols());
    for (Index c = 0; c < x.cols(); ++c) {
      std::vector<Vectord> low{x.col(c)}, high;
      for (Index i = 0; i < N; ++i) {
        low.emplace_back(Vectord::Zero(L)), high.emplace_back(Vectord::Zero(L));
        for (Index t = 0; t < L; ++t) {
          for (Index k = 0; k < K; ++k) {
            const Index s = t - ((K - 1 - k) << i);
            if (s < 0) continue;
            low.back()[t] += weights.low(c, k) * low[std::size_t(i)][s];
            high.back()[t] += weights.high(c, k) * low[std::size_t(i)][s];
          }
        }
      }
      const Index last = weights.weight.cols() - 1;
      for (Index t = 0; t < L; ++t) {
        double sum = weights.weight(c, 0) * low.back()[t] + weights.weight(c, last) * x(t, c);
        Index column = 1, block = 1;
        for (Index i = N - 1; i >= 0; --i) {
          if (config.memory == WaveletMemory::fading) {
            sum += weights.weight(c, N - i) * high[std::size_t(i)][t];
            continue;
          }
          for (Index r = 0; r < block && column < config.memory_size; ++r, ++column) {
            const Index s = t - (r << (i + 1));
            if (s >= 0) sum += weights.weight(c, column) * high[std::size_t(i)][s];
          }
          block = 2 * (block - 1) + K;
        }
        y(t, c) = gelu(sum);
      }
    }
    return y;
  }
};

const MixerRegistration<MultiresConvTests> mixer;

}  // namespace
}  // namespace seqmix::test
