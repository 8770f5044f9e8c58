// Toeplitz neural operator: every channel is convolved with a function of the distance, which a small perceptron makes.
//
//   Source    Qin et al. 2023, arXiv:2305.04749; Doraemonzzz/tnn-pytorch, tnn_pytorch/tno.py, rpe.py and gtu.py
//   Glossary  L length   D channels   E inner channels   H heads   R width of the perceptron   n lags with coefficients
//   Engine    engine/convolution_streaming.hpp; parts/toeplitz_coefficients.hpp, where the coefficients c are
//   Size      cores of both directions with their state, and a layer
//
// Core:   y_t = sum over s of c_{t-s} x_s,   s <= t where causal;   over the same sum of ones if normalised
// Layer:  y = W_o norm(silu(W_u x + b_u) core(silu(W_v x + b_v))) + b_o,   norm(a) = a / (rms(a) + 1e-8), or nothing
//
// Causal rows of forward and prefill depend on later rows by rounding errors (engine/convolution_streaming.hpp) where there are
// more than a few dozen lags; those of steps do not.
// Differs   from the authors' code in that there are no coefficients from lag n on, in either direction, and in that positions
//           that are parts of the length are parts of n, not of each sequence.
#pragma once

#include <algorithm>
#include <cmath>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/convolution_streaming.hpp>
#include <seqmix/parts/gate.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/passes.hpp>
#include <seqmix/parts/streamed_past.hpp>
#include <seqmix/parts/toeplitz_coefficients.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// The core, over channels h E / H + d.
template <std::floating_point T, Direction way = Direction::causal>
class ToeplitzOperator {
 public:
  static constexpr std::string_view name = "tnn";

  ToeplitzOperator() = default;

  /// Makes the coefficients, in double, and transforms them. Throws std::invalid_argument unless the shapes of `weights` follow
  /// from the others.
  ToeplitzOperator(const ToeplitzConfig& config, Index channels, const ToeplitzWeights<T>& weights,
                   StreamingSchedule schedule = StreamingSchedule::amortised)
      : normalize_(config.normalize) {
    const Matrix<double> later = toeplitz_coefficients(name, config, weights, channels, 1);  // [n, E]
    forward_ = StreamingConvolution<T>(name, channels, Matrix<double>(later.transpose()), schedule);
    if (normalize_) after_ = sums(later);
    if constexpr (way == Direction::bidirectional) {
      Matrix<double> earlier = toeplitz_coefficients(name, config, weights, channels, -1);
      earlier.row(0).setZero();
      backward_ = StreamingConvolution<T>(name, channels, Matrix<double>(earlier.transpose()));
      if (normalize_) before_ = sums(earlier);
    }
  }

  Index channels() const { return forward_.channels(); }

  /// See StreamingConvolution.
  Shape state_shape() const { return forward_.state_shape(); }

  /// A whole sequence x [L, E] into y [L, E], not overlapping. O(E L log(min(L, n))) time on all threads of the workspace; allocates
  /// nothing once it is warm.
  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index length = x.length();
    if (length == 0) return;
    forward_.forward(x, y, workspace);
    if constexpr (way == Direction::bidirectional) {
      const auto frame = workspace.frame();
      const auto back = workspace.sequence<T>(length, channels());
      // Views of the rows from the last to the first.
      const auto reversed = [&](const auto& rows) {
        return std::remove_cvref_t<decltype(rows)>(rows.row(length - 1), length, channels(), -rows.stride());
      };
      backward_.forward(reversed(x), reversed(back), workspace);
      for (Index t = 0; t < length; ++t) {
        map_row(
            channels(), y.row(t), [](const Batch<T>& a, const Batch<T>& b) SEQMIX_INLINE_LAMBDA { return a + b; },
            static_cast<const T*>(y.row(t)), static_cast<const T*>(back.row(t)));
      }
    }
    normalize(y, 0);
  }

  /// The next tokens from and into `state`, which `position` have been seen by.
  void run(T* state, Index position, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const
    requires(way == Direction::causal)
  {
    forward_.run(state, position, x, y, workspace);
    normalize(y, position);
  }

 private:
  /// Sums of rows 0 .. l in row l.
  static Matrix<T> sums(Matrix<double> rows) {
    for (Index l = 1; l < rows.rows(); ++l) rows.row(l) += rows.row(l - 1);
    return rows.template cast<T>();
  }

  void normalize(const Sequence<T>& y, Index position) const {
    if (!normalize_) return;
    const Index last = after_.rows() - 1;
    for (Index t = 0; t < y.length(); ++t) {
      const T* const after = after_.data() + std::min(position + t, last) * channels();
      if constexpr (way == Direction::bidirectional) {
        map_row(
            channels(), y.row(t),
            [](const Batch<T>& a, const Batch<T>& b, const Batch<T>& c) SEQMIX_INLINE_LAMBDA { return a / (b + c); },
            static_cast<const T*>(y.row(t)), after, before_.data() + std::min(y.length() - 1 - t, last) * channels());
      } else {
        map_row(
            channels(), y.row(t), [](const Batch<T>& a, const Batch<T>& b) SEQMIX_INLINE_LAMBDA { return a / b; },
            static_cast<const T*>(y.row(t)), after);
      }
    }
  }

  bool normalize_ = false;
  StreamingConvolution<T> forward_, backward_;
  Matrix<T> after_, before_;  // [n, E]: sums of coefficients
};

/// The layer (gated Toeplitz unit), causal or bidirectional.
template <std::floating_point T, Direction way = Direction::causal>
class Tnn : public RecurrentMixerBase<Tnn<T, way>, T> {
 public:
  static constexpr std::string_view name = "tnn";
  static constexpr Direction direction = way;
  static constexpr StateGrowth growth = StateGrowth::constant;
  static constexpr Causality causality = Causality::rounded;

  struct Config {
    Index channels = 0;
    Index inner_channels = 0;                                   ///< E; 0 means 3 D
    bool normalize_rows = false;                                ///< norm before the last projection
    StreamingSchedule schedule = StreamingSchedule::amortised;  ///< of steps
    ToeplitzConfig toeplitz;

    Index inner() const { return inner_channels > 0 ? inner_channels : 3 * channels; }
  };

  struct Weights {
    Matrix<T> value, gate, output;                 // W_v, W_u [E, D], W_o [D, E]
    Vector<T> value_bias, gate_bias, output_bias;  // [E], [E], [D], or absent
    ToeplitzWeights<T> toeplitz;

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("v_proj.weight", self.value, Presence::required);
      visitor("v_proj.bias", self.value_bias, Presence::optional);
      visitor("u_proj.weight", self.gate, Presence::required);
      visitor("u_proj.bias", self.gate_bias, Presence::optional);
      visitor("o.weight", self.output, Presence::required);
      visitor("o.bias", self.output_bias, Presence::optional);
      self.toeplitz.visit_as("toep.", self.toeplitz, visitor);
    }
  };

  using State = StreamedPast<T>;

  /// Makes the coefficients and packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  Tnn(const Config& config, const Weights& weights) : config_(config) {
    check(config);
    const Index D = config.channels, E = config.inner();
    const auto projection = [&](const char* of, const Matrix<T>& weight, const Vector<T>& bias, Index rows,
                                Index columns) {
      expect_tensor(name, std::string(of) + ".weight", {rows, columns}, weight);
      if (bias.size() > 0) expect_tensor(name, std::string(of) + ".bias", {rows}, bias);
      return Linear<T>(weight, bias);
    };
    value_ = projection("v_proj", weights.value, weights.value_bias, E, D);
    gate_ = projection("u_proj", weights.gate, weights.gate_bias, E, D);
    output_ = projection("o", weights.output, weights.output_bias, D, E);
    core_ = ToeplitzOperator<T, way>(config.toeplitz, E, weights.toeplitz, config.schedule);
  }

  /// As torch begins projections, and the authors decays.
  static Weights random_weights(const Config& config, Rng& rng) {
    check(config);
    const Index D = config.channels, E = config.inner();
    Weights weights;
    const auto projection = [&](Matrix<T>& weight, Vector<T>& bias, Index rows, Index columns) {
      const double limit = std::pow(double(columns), -0.5);
      weight = random_projection<T>(rows, columns, rng), bias = uniform_vector<T>(rows, -limit, limit, rng);
    };
    projection(weights.value, weights.value_bias, E, D), projection(weights.gate, weights.gate_bias, E, D);
    projection(weights.output, weights.output_bias, D, E);
    weights.toeplitz = random_toeplitz<T>(name, config.toeplitz, E, rng);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// y = mixer(x) for a whole sequence. x, y [L, D]. O(L E (D + log(min(L, n)))) time, 2 L E numbers of scratch. Throws
  /// std::invalid_argument on wrong shapes and overlapping views.
  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    internal::expect_input_output<T>(name, channels(), x, y);
    const auto frame = workspace.frame();
    const auto value = workspace.sequence<T>(x.length(), core_.channels());
    const auto mixed = workspace.sequence<T>(x.length(), core_.channels());
    for_passes(x.length(), workspace, [&](Index begin, Index count) {
      project(value_, x.rows(begin, count), value.rows(begin, count), workspace);
    });
    core_.forward(value, mixed, workspace);
    for_passes(x.length(), workspace, [&](Index begin, Index count) {
      finish(x.rows(begin, count), mixed.rows(begin, count), y.rows(begin, count), workspace);
    });
  }

  /// Zeros, O(E n) of them.
  State initial_state() const
    requires(way == Direction::causal)
  {
    return {0, Tensor<T>(core_.state_shape())};
  }

  /// Throws std::invalid_argument unless the state has this mixer's shape.
  void check_state(const State& state) const { state.check(name, core_); }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const auto value = workspace.sequence<T>(x.length(), core_.channels());
    const auto mixed = workspace.sequence<T>(x.length(), core_.channels());
    project(value_, x, value, workspace);
    run_streamed(core_, batch, value, mixed, workspace);
    finish(x, mixed, y, workspace);
  }

 private:
  static void check(const Config& config) {
    expect(config.channels > 0, name, "config.channels", "must be positive");
    expect_toeplitz(name, config.toeplitz, config.inner());
  }

  static void project(const Linear<T>& linear, const Sequence<const T>& x, const Sequence<T>& to,
                      Workspace& workspace) {
    linear.apply(x, to, workspace);
    workspace.for_row_blocks(to.length(), [&](Index begin, Index count) { apply_silu(to.rows(begin, count)); });
  }

  /// From the core's output, which is used up.
  void finish(const Sequence<const T>& x, const Sequence<T>& mixed, const Sequence<T>& y, Workspace& workspace) const {
    const auto gate = gate_.apply(x, workspace);
    workspace.for_row_blocks(mixed.length(), [&](Index begin, Index count) {
      multiply_silu<T>(mixed.rows(begin, count), gate.rows(begin, count));
      if (!config_.normalize_rows) return;
      for (Index t = begin; t < begin + count; ++t) {
        const Index E = mixed.channels();
        const T squares = sum_row(
            E, [](const Batch<T>& a) SEQMIX_INLINE_LAMBDA { return a * a; }, static_cast<const T*>(mixed.row(t)));
        const T factor = T(1) / (std::sqrt(squares / T(E)) + T(1e-8));
        map_row(
            E, mixed.row(t), [&](const Batch<T>& a) SEQMIX_INLINE_LAMBDA { return broadcast(factor) * a; },
            static_cast<const T*>(mixed.row(t)));
      }
    });
    output_.apply(mixed, y, workspace);
  }

  Config config_;
  Linear<T> value_, gate_, output_;
  ToeplitzOperator<T, way> core_;
};

static_assert(RecurrentMixer<Tnn<float>>);
static_assert(Mixer<Tnn<float, Direction::bidirectional>>);
static_assert(!CausalMixer<Tnn<float, Direction::bidirectional>>);

}  // namespace seqmix::inline SEQMIX_ARCH
