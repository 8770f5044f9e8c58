// The short causal depthwise convolution as an operator of its own.
//
//   Source    Dao-AILab/causal-conv1d, causal_conv1d/causal_conv1d_interface.py
//   Glossary  L length   D channels   W width
//   Part      parts/short_convolution.hpp, which layers share
//
//   y_t = act(bias + sum over j < W of weight[:, j] * x_{t - W + 1 + j}),   channel by channel, act silu or nothing
//
// Differs   from the authors' code in the layout of the state, [kept, D] here and [D, kept] there.
#pragma once

#include <cmath>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/parts/short_convolution.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// A short causal convolution. O(L D W) time.
template <std::floating_point T>
class ShortConv : public RecurrentMixerBase<ShortConv<T>, T> {
 public:
  static constexpr std::string_view name = "short_conv";
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 0;
    Index width = 4;
    bool bias = true;
    ConvolutionActivation activation = ConvolutionActivation::swish;
    Index kept = -1;  ///< inputs in a state; below 0 means W - 1, which is the least
  };

  struct Weights {
    Matrix<T> weight;  // [D, W]; the last column meets the current token
    Vector<T> bias;    // [D], or absent

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("weight", self.weight, Presence::required);
      visitor("bias", self.bias, Presence::optional);
    }
  };

  struct State {
    Tensor<T> inputs;  // [kept, D], oldest first

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("inputs", self.inputs);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  ShortConv(const Config& config, const Weights& weights) : config_(config) {
    check(config);
    expect_tensor(name, "weight", {config.channels, config.width}, weights.weight);
    if (config.bias) expect_tensor(name, "bias", {config.channels}, weights.bias);
    convolution_ = ShortConvolution<T>(name, weights.weight, config.bias ? weights.bias : Vector<T>(),
                                       config.activation, config.kept < 0 ? config.width - 1 : config.kept);
  }

  /// Uniform in +-W^-1/2, as torch begins a convolution.
  static Weights random_weights(const Config& config, Rng& rng) {
    check(config);
    const double limit = std::pow(double(config.width), -0.5);
    Weights weights;
    weights.weight = uniform_matrix<T>(config.channels, config.width, limit, rng);
    if (config.bias) weights.bias = uniform_vector<T>(config.channels, -limit, limit, rng);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: zeros.
  State initial_state() const { return {convolution_.initial_state()}; }

  /// Throws std::invalid_argument unless the state has this mixer's shape.
  void check_state(const State& state) const { convolution_.check_state(name, "state.inputs", state.inputs); }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    convolution_.apply(batch, &State::inputs, x, y, workspace);
  }

 private:
  static void check(const Config& config) {
    expect(config.channels > 0 && config.width > 0, name, "config.channels", "must be positive, as must width");
  }

  Config config_;
  ShortConvolution<T> convolution_;
};

static_assert(RecurrentMixer<ShortConv<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
