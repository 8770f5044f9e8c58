#include <seqmix/convolution/fnet.hpp>

#include <cmath>
#include <memory>
#include <numbers>
#include <vector>

#include "support/cores.hpp"
#include "support/data.hpp"

namespace seqmix::bench {
namespace {

constexpr Index channels = 768;

struct Data {
  Data(Index length, int threads)
      : x(length, 1, channels, -1, 1, rng), y(length, 1, channels), workspace(executor(threads)) {}

  void run(Index, Index) { fnet<float>(x.flat(), y.flat(), workspace); }
  void clear() {}

  /// Some rows, from the definition in double.
  void check(Index, Index length) const {
    Comparison outputs;
    const auto angle = [](Index i, Index n) { return 2 * std::numbers::pi * double(i % n) / double(n); };
    for (const Index t : {Index(0), length / 3}) {
      std::vector<double> cosines(std::size_t(channels), 0.0), sines(std::size_t(channels), 0.0);
      for (Index s = 0; s < length; ++s) {
        const double c = std::cos(angle(s * t, length)), d = std::sin(angle(s * t, length));
        for (Index i = 0; i < channels; ++i) {
          cosines[std::size_t(i)] += c * double(x.flat()(s, i)), sines[std::size_t(i)] += d * double(x.flat()(s, i));
        }
      }
      for (Index c = 0; c < channels; ++c) {
        double expected = 0;
        for (Index i = 0; i < channels; ++i) {
          const double a = angle(i * c, channels);
          expected += std::cos(a) * cosines[std::size_t(i)] - std::sin(a) * sines[std::size_t(i)];
        }
        outputs.add(y.flat().row(t) + c, &expected, 1);
      }
    }
    outputs.expect_within(1e-5, "the transform");
  }

  Index state_bytes() const { return 0; }

  Rng rng{5};
  Tensor x, y;
  Workspace workspace;
};

// A prime length is one of the slow ones.
const bool registered = add_core_sequences(
    "fnet", [](Index tokens, int threads) { return std::make_shared<Data>(tokens, threads); },
    [](Index length) { return work::fourier(length, channels); }, {512, 2048, 8191, 8192});

}  // namespace
}  // namespace seqmix::bench
