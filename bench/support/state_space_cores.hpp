// Benchmarks of the cores of structured state spaces.
#pragma once

#include <algorithm>
#include <memory>
#include <seqmix/parts/state_space.hpp>
#include <seqmix/parts/state_space_convolution.hpp>
#include <string>

#include "support/cores.hpp"
#include "support/data.hpp"

namespace seqmix::bench {

/// Core is S4Core or S4dCore, a template of the scalar.
template <template <class> class Core, Index of_channels = 768>
class StateSpaceData {
 public:
  static constexpr Index channels = of_channels, modes = 32;

  StateSpaceData(Index length, int threads)
      : workspace(executor(threads)),
        x_(length, 1, channels, -1, 1, rng_),
        y_(length, 1, channels),
        weights_(random_state_space<float>(config(channels), rng_, Direction::causal)),
        core_(config(channels), weights_, Direction::causal),
        state_(std::size_t(2 * channels * modes)) {}

  void run(Index begin, Index count) {
    core_.run(x_.flat().rows(begin, count), HeadSequence<float>(state_.data(), 2, channels, modes),
              y_.flat().rows(begin, count), workspace);
  }

  void clear() { std::fill(state_.begin(), state_.end(), 0.0f); }

  /// The convolution with the kernel, for some rows of some channels; of steps, that they are finite.
  void check(Index begin, Index length) const {
    if (begin > 0) return expect_finite(y_.flat().rows(0, length), "a step");
    constexpr Index some[] = {0, 5, channels - 1};
    const Core<double> exact(config(3), some_of(some), Direction::causal);
    const Matrix<double> kernel = exact.kernel(length);
    Comparison outputs;
    for (Index i = 0; i < 3; ++i) {
      const Index h = some[i];
      for (const Index t : sampled_rows(length)) {
        double expected = double(weights_.d(0, h)) * double(x_.flat()(t, h));
        for (Index s = 0; s <= t; ++s) expected += kernel(i, t - s) * double(x_.flat()(s, h));
        outputs.add(y_.flat().row(t) + h, &expected, 1);
      }
    }
    outputs.expect_within(1e-3, "the convolution");
  }

  Index state_bytes() const { return Index(state_.size() * sizeof(float)); }

  Workspace workspace;

 protected:
  static StateSpaceConfig config(Index of) { return {.channels = of, .modes = modes}; }

  /// The parameters of three channels, in double.
  StateSpaceWeights<double> some_of(const Index (&which)[3]) const {
    const auto rows = [&](const Matrix<float>& all, Index each) {
      Matrix<double> result(3 * each, all.cols());
      for (Index i = 0; i < 3; ++i) {
        result.middleRows(i * each, each) = all.middleRows(which[i] * each, each).template cast<double>();
      }
      return result;
    };
    const Matrix<float> dt = weights_.inv_dt, d = weights_.d.transpose();
    StateSpaceWeights<double> result;
    result.inv_dt = rows(dt, 1).col(0);
    result.c = rows(weights_.c, modes), result.b = rows(weights_.b, modes), result.p = rows(weights_.p, modes);
    result.a_real = rows(weights_.a_real, 1), result.a_imag = rows(weights_.a_imag, 1);
    result.d = rows(d, 1).transpose();
    return result;
  }

  Rng rng_{5};
  Tensor x_, y_;
  StateSpaceWeights<float> weights_;
  Core<float> core_;
  Buffer<float> state_;
};

/// The same by convolution with its kernel, which is made beforehand: so there are fewer channels.
template <template <class> class Core>
class StateSpaceConvolved : public StateSpaceData<Core, 64> {
 public:
  using Base = StateSpaceData<Core, 64>;

  StateSpaceConvolved(Index length, int threads)
      : Base(length, threads),
        convolution_("state_space_convolution", Base::channels, this->core_.kernel(length), this->weights_.d,
                     Direction::causal) {}

  void run(Index begin, Index count) {
    convolution_.run(this->x_.flat().rows(begin, count), this->y_.flat().rows(begin, count), this->workspace);
  }

 private:
  StateSpaceConvolution<float> convolution_;
};

/// Registers a core that takes `flops` operations for every mode and `numbers` coefficients.
template <template <class> class Core>
bool add_state_space(const std::string& name, double flops, double numbers) {
  using Data = StateSpaceData<Core>;
  const auto make = [](Index tokens, int threads) { return std::make_shared<Data>(tokens, threads); };
  const auto whole = [flops](Index length) {
    const double tokens = double(length * Data::channels);
    return Work{.flops = tokens * (flops * Data::modes + 2), .streamed_bytes = 8 * tokens};
  };
  Work step = whole(1);
  step.streamed_bytes = 0;
  step.footprint_bytes = 4.0 * Data::channels * Data::modes * (2 + numbers);  // the state, and the coefficients
  step.resident_bytes = 4.0 * Data::channels * Data::modes * (4 + numbers);
  const auto convolved = [](Index tokens, int threads) {
    return std::make_shared<StateSpaceConvolved<Core>>(tokens, threads);
  };
  const auto convolution = [](Index length) {
    return work::long_convolution(length, StateSpaceConvolved<Core>::channels);
  };
  return add_core_sequences(name, make, whole) && add_core_step(name, make, step, 64) &&
         add_core_sequences(name + "/convolve/channels:64", convolved, convolution);
}

}  // namespace seqmix::bench
