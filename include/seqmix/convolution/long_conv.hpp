// Long convolutions with filters that are parameters, of which small numbers are taken for zeros.
//
//   Source    Fu et al. 2023, arXiv:2302.06646; HazyResearch/safari, standalone_long_convs.py (LongConv)
//   Glossary  L length   D channels   C outputs of a channel   K taps
//   Engine    engine/convolution_streaming.hpp; engine/convolution_fft.hpp
//
//   k = sign(kernel) max(|kernel| - shrinkage, 0),   u_t[c, d] = sum over s of k[c, d, t - s] x_s[d] + D[c, d] x_t[d],
//   y = W gelu(u) + b, its first half times the sigmoid of its second
//
// Causal: s <= t. Bidirectional: t - s is taken modulo 2 L, so that the taps above L belong to the tokens that follow: the last
// one, of 2 L, to the next token. Sequences of K tokens and more see none of those.
// Differs   from the authors' code in that the causal form is one at any length: theirs is this one from K tokens on, else the
//           bidirectional one.
//
// Causal rows of forward and prefill depend on later rows by rounding errors (engine/convolution_streaming.hpp); those of steps
// do not.
#pragma once

#include <algorithm>
#include <cmath>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/convolution_streaming.hpp>
#include <seqmix/parts/mixing_output.hpp>
#include <seqmix/parts/passes.hpp>
#include <seqmix/parts/streamed_past.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// A layer of long convolutions, causal or bidirectional.
template <std::floating_point T, Direction way = Direction::causal>
class LongConv : public RecurrentMixerBase<LongConv<T, way>, T> {
 public:
  static constexpr std::string_view name = "long_conv";
  static constexpr Direction direction = way;
  static constexpr StateGrowth growth = StateGrowth::constant;
  static constexpr Causality causality = Causality::rounded;

  struct Config {
    Index channels = 0;
    Index outputs = 1;                                          ///< C
    Index kernel_length = 0;                                    ///< K
    double shrinkage = 0.001;                                   ///< taken off the magnitude of every tap
    StreamingSchedule schedule = StreamingSchedule::amortised;  ///< of steps
  };

  struct Weights {
    Matrix<T> kernel;       // [C D, K]
    Matrix<T> skip;         // D [C, D]
    Matrix<T> output;       // W [2 D, C D]
    Vector<T> output_bias;  // b [2 D]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("kernel", self.kernel, Presence::required);
      visitor("D", self.skip, Presence::required);
      visitor("output_linear.0.weight", self.output, Presence::required);
      visitor("output_linear.0.bias", self.output_bias, Presence::required);
    }
  };

  using State = StreamedPast<T>;

  /// Shrinks the taps and transforms them; O(C D K log K) time. Throws std::invalid_argument unless the shapes of `weights`
  /// follow from `config`.
  LongConv(const Config& config, const Weights& weights)
      : config_(config),
        output_(name, config.channels, config.outputs, true, true, weights.output, weights.output_bias) {
    check(config);
    const Index D = config.channels, C = config.outputs, K = config.kernel_length;
    expect_tensor(name, "kernel", {C * D, K}, weights.kernel);
    expect_tensor(name, "D", {C, D}, weights.skip);
    Matrix<T> taps = weights.kernel.unaryExpr(
        [&](T tap) { return T(std::copysign(std::max(std::abs(double(tap)) - config.shrinkage, 0.0), double(tap))); });
    for (Index row = 0; row < C * D; ++row) taps(row, 0) += weights.skip.data()[row];
    convolution_ = StreamingConvolution<T>(name, D, taps, config.schedule);
    if constexpr (way == Direction::bidirectional) {
      short_ = OneTimeConvolution<T>(K);
      taps_ = taps.transpose();
    }
  }

  /// The authors': kernels of deviation 0.002, D of 1; a projection uniform in +-inputs^-1/2 as torch begins it.
  static Weights random_weights(const Config& config, Rng& rng) {
    check(config);
    const Index D = config.channels, rows = config.outputs * D;
    const double limit = std::pow(double(rows), -0.5);
    return {normal_matrix<T>(rows, config.kernel_length, 0.002, rng), normal_matrix<T>(config.outputs, D, 1.0, rng),
            random_projection<T>(2 * D, rows, rng), uniform_vector<T>(2 * D, -limit, limit, rng)};
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// y = mixer(x) for a whole sequence. x, y [L, D]. O(C L D (log(min(L, K)) + D)) time, C L D numbers of scratch. Throws
  /// std::invalid_argument on wrong shapes and overlapping views.
  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    internal::expect_input_output<T>(name, channels(), x, y);
    if (x.length() == 0) return;
    const auto frame = workspace.frame();
    const auto mixed = workspace.sequence<T>(x.length(), convolution_.outputs());
    const Index length = x.length(), K = config_.kernel_length;
    if (way == Direction::causal || length >= K) {
      convolution_.forward(x, mixed, workspace);
    } else {
      const auto tap = [&](Index lag) -> const T* {
        const Index from = lag < 0 ? 2 * length + lag : lag;
        return from < K ? taps_.data() + from * taps_.cols() : nullptr;
      };
      short_.run(config_.outputs, tap, x, mixed, workspace);
    }
    for_passes(length, workspace, [&](Index begin, Index count) {
      output_.apply(mixed.rows(begin, count), y.rows(begin, count), workspace);
    });
  }

  /// Zeros, O(C D K) of them.
  State initial_state() const
    requires(way == Direction::causal)
  {
    return {0, Tensor<T>(convolution_.state_shape())};
  }

  /// Throws std::invalid_argument unless the state has this mixer's shape.
  void check_state(const State& state) const { state.check(name, convolution_); }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const auto mixed = workspace.sequence<T>(x.length(), convolution_.outputs());
    run_streamed(convolution_, batch, x, mixed, workspace);
    output_.apply(mixed, y, workspace);
  }

 private:
  static void check(const Config& config) {
    expect(config.channels > 0 && config.outputs > 0 && config.kernel_length > 0, name, "config.channels",
           "must be positive, as must outputs and kernel_length");
  }

  Config config_;
  MixingOutput<T> output_;
  StreamingConvolution<T> convolution_;
  OneTimeConvolution<T> short_;  // of fewer tokens than taps, where those wrap around
  Matrix<T> taps_;               // [K, C D], for it
};

static_assert(RecurrentMixer<LongConv<float>>);
static_assert(Mixer<LongConv<float, Direction::bidirectional>>);
static_assert(!CausalMixer<LongConv<float, Direction::bidirectional>>);

}  // namespace seqmix::inline SEQMIX_ARCH
