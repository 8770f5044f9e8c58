// FNet: tokens mixed by a Fourier transform, without parameters.
//
//   Source    Lee-Thorp et al. 2021, arXiv:2105.03824, section 3; huggingface/transformers,
//             models/fnet/modeling_fnet.py: FNetBasicFourierTransform, FNetLayer
//   Glossary  L length   D channels   I intermediate channels
//   Engine    engine/fourier.hpp
//   Size      the mixing, and the whole layer with its two norms and its perceptron
//
// Core:   mix(x)[t, c] = Re(sum over s and d of x[s, d] e^{-2 pi i (s t / L + d c / D)}), not normalised
// Layer:  a = layer_norm(x + mix(x)),   y = layer_norm(W_2 act(W_1 a + b_1) + b_2 + a)
//
// Every token sees all: there is no causal form, and what pads a sequence changes it.
#pragma once

#include <seqmix/core/mixer.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/fourier.hpp>
#include <seqmix/parts/gate.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/norm.hpp>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

/// The mixing alone: y = mix(x). x, y [L, D]. O(L D log(L D)) time. Allocates nothing once `workspace` is warm. Throws
/// std::invalid_argument where x and y have different shapes or overlap.
template <std::floating_point T>
void fnet(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) {
  internal::expect_input_output<T>("fnet", x.channels(), x, y);
  fourier_real_part<T>(x, y, workspace);
}

/// Activations of the layer: the authors' is tanh_gelu.
enum class FnetActivation { tanh_gelu, exact_gelu, rectifier, swish };

/// An encoder block.
template <std::floating_point T>
class Fnet {
 public:
  using Scalar = T;
  static constexpr std::string_view name = "fnet";
  static constexpr Direction direction = Direction::bidirectional;

  struct Config {
    Index channels = 0;
    Index intermediate = 0;  ///< I; 0 means 4 D
    FnetActivation activation = FnetActivation::tanh_gelu;
    double norm_epsilon = 1e-12;
  };

  struct Weights {
    Vector<T> mixed_norm, mixed_norm_bias;  // [D]
    Matrix<T> intermediate;                 // [I, D]
    Vector<T> intermediate_bias;            // [I]
    Matrix<T> output;                       // [D, I]
    Vector<T> output_bias;                  // [D]
    Vector<T> norm, norm_bias;              // [D]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("fourier.output.LayerNorm.weight", self.mixed_norm, Presence::required);
      visitor("fourier.output.LayerNorm.bias", self.mixed_norm_bias, Presence::required);
      visitor("intermediate.dense.weight", self.intermediate, Presence::required);
      visitor("intermediate.dense.bias", self.intermediate_bias, Presence::required);
      visitor("output.dense.weight", self.output, Presence::required);
      visitor("output.dense.bias", self.output_bias, Presence::required);
      visitor("output.LayerNorm.weight", self.norm, Presence::required);
      visitor("output.LayerNorm.bias", self.norm_bias, Presence::required);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  Fnet(const Config& config, const Weights& weights) : config_(completed(config)), weights_(weights) {
    const Index D = config_.channels, width = config_.intermediate;
    expect_tensor(name, "fourier.output.LayerNorm.weight", {D}, weights.mixed_norm);
    expect_tensor(name, "fourier.output.LayerNorm.bias", {D}, weights.mixed_norm_bias);
    expect_tensor(name, "intermediate.dense.weight", {width, D}, weights.intermediate);
    expect_tensor(name, "intermediate.dense.bias", {width}, weights.intermediate_bias);
    expect_tensor(name, "output.dense.weight", {D, width}, weights.output);
    expect_tensor(name, "output.dense.bias", {D}, weights.output_bias);
    expect_tensor(name, "output.LayerNorm.weight", {D}, weights.norm);
    expect_tensor(name, "output.LayerNorm.bias", {D}, weights.norm_bias);
    intermediate_ = Linear<T>(weights.intermediate, weights.intermediate_bias);
    output_ = Linear<T>(weights.output, weights.output_bias);
    weights_.intermediate = weights_.output = Matrix<T>();
  }

  /// Normal projections of deviation 0.02, biases 0, norms 1, as the authors begin.
  static Weights random_weights(const Config& given, Rng& rng) {
    const Config config = completed(given);
    const Index D = config.channels, width = config.intermediate;
    Weights weights;
    weights.intermediate = normal_matrix<T>(width, D, 0.02, rng);
    weights.output = normal_matrix<T>(D, width, 0.02, rng);
    weights.intermediate_bias = Vector<T>::Zero(width);
    weights.output_bias = weights.mixed_norm_bias = weights.norm_bias = Vector<T>::Zero(D);
    weights.mixed_norm = weights.norm = Vector<T>::Ones(D);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// y = mixer(x). x, y [L, D]. O(L D (log(L D) + I)) time. Allocates nothing once `workspace` is warm. Throws
  /// std::invalid_argument on wrong shapes and overlapping views.
  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    internal::expect_input_output<T>(name, channels(), x, y);
    if (x.length() == 0) return;
    const auto frame = workspace.frame();
    const auto mixed = workspace.sequence<T>(x.length(), channels());
    fourier_real_part<T>(x, mixed, workspace);
    add_and_normalize(x, mixed, mixed, weights_.mixed_norm, weights_.mixed_norm_bias, workspace);
    constexpr Index block = 512;  // so that the intermediate channels stay in the caches
    for (Index begin = 0; begin < x.length(); begin += block) {
      const auto scope = workspace.frame();
      const Index count = std::min(block, x.length() - begin);
      const auto wide = intermediate_.apply(mixed.rows(begin, count), workspace);
      workspace.for_row_blocks(count, [&](Index first, Index some) { activate(wide.rows(first, some)); });
      output_.apply(wide, y.rows(begin, count), workspace);
    }
    add_and_normalize(mixed, y, y, weights_.norm, weights_.norm_bias, workspace);
  }

 private:
  static Config completed(Config config) {
    expect(config.channels > 0 && config.intermediate >= 0, name, "config.channels",
           "must be positive, and intermediate not negative");
    if (config.intermediate == 0) config.intermediate = 4 * config.channels;
    return config;
  }

  void activate(Sequence<T> rows) const {
    switch (config_.activation) {
      case FnetActivation::tanh_gelu:
        return apply_activation(rows, gelu_tanh);
      case FnetActivation::exact_gelu:
        return apply_activation(rows, gelu);
      case FnetActivation::swish:
        return apply_activation(rows, silu);
      case FnetActivation::rectifier:
        return apply_activation(
            rows, [](const Batch<T>& z) SEQMIX_INLINE_LAMBDA { return max_propagating(z, broadcast(T(0))); });
    }
  }

  /// to = layer_norm(a + b); `to` may be b.
  void add_and_normalize(ConstSequence<T> a, ConstSequence<T> b, Sequence<T> to, const Vector<T>& weight,
                         const Vector<T>& bias, Workspace& workspace) const {
    workspace.for_row_blocks(a.length(), [&](Index begin, Index count) {
      const auto rows = to.rows(begin, count);
      for (Index t = 0; t < count; ++t) {
        map_row(
            channels(), rows.row(t), [](const Batch<T>& u, const Batch<T>& v) SEQMIX_INLINE_LAMBDA { return u + v; },
            a.row(begin + t), b.row(begin + t));
      }
      layer_normalize<T>(rows, rows, T(config_.norm_epsilon), weight, bias);
    });
  }

  Config config_;
  Weights weights_;  // norms
  Linear<T> intermediate_, output_;
};

static_assert(Mixer<Fnet<float>>);
static_assert(!CausalMixer<Fnet<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
