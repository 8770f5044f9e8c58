// Mega's multi-dimensional damped exponential moving average.
//
//   Source    Ma et al. 2022, arXiv:2209.10655, section 3.1; facebookresearch/mega,
//             fairseq/modules/exponential_moving_average.py
//   Glossary  L length   D channels   N averages of each channel   T truncation
//   Engine    engine/scan_time_invariant.hpp with real states; engine/convolution.hpp where truncated; convolutions with the
//             whole kernel (parts/state_space_convolution.hpp) where asked for
//   Size      one recurrence by scan, by whole kernel or truncated, in one direction or both
//
//   p = sigmoid(delta),   q = 1 - p sigmoid(alpha),   h_t = q h_{t-1} + p beta x_t,
//   y_t = silu(N^-1/2 sum_n gamma_n h_t[n] + omega x_t)
//
// Bidirectional: twice the rows of parameters; those of the second half average from the end to the beginning. Both see the
// current token. Truncated: the averages forget what is T tokens ago or longer, so that the sums are a convolution with
// the kernel K_l = N^-1/2 sum_n gamma_n p beta q^l, l < T.
// Differs   from the authors' code in that a truncated step truncates too, from a state of the last T - 1 inputs.
#pragma once

#include <cmath>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/convolution.hpp>
#include <seqmix/engine/scan_time_invariant.hpp>
#include <seqmix/parts/gate.hpp>
#include <seqmix/parts/state_space_convolution.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// The damped average of Mega, causal or bidirectional.
template <std::floating_point T, Direction way = Direction::causal>
class MegaEma : public RecurrentMixerBase<MegaEma<T, way>, T> {
 public:
  static constexpr std::string_view name = "mega_ema";
  static constexpr Direction direction = way;
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 0;
    Index averages = 16;           ///< N
    Index truncation = 0;          ///< T; 0 means none
    Index convolution_length = 0;  ///< longest sequence that convolve takes; 0: none
  };

  /// D' = D, or 2 D if bidirectional.
  struct Weights {
    Matrix<T> delta, alpha, beta;  // [D' N, 1]
    Matrix<T> gamma;               // [D', N]
    Vector<T> omega;               // [D]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("delta", self.delta, Presence::required);
      visitor("alpha", self.alpha, Presence::required);
      visitor("beta", self.beta, Presence::required);
      visitor("gamma", self.gamma, Presence::required);
      visitor("omega", self.omega, Presence::required);
    }
  };

  struct State {
    Tensor<T> memory;  // [1, D, N]; empty where truncated
    Tensor<T> inputs;  // [T - 1, D], oldest first; empty where not

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("memory", self.memory), visitor("inputs", self.inputs);
    }
  };

  /// Computes decays, in double, and packs them. Throws std::invalid_argument unless the shapes of `weights` follow from
  /// `config`.
  MegaEma(const Config& config, const Weights& weights) : config_(config) {
    const Index D = config.channels, N = config.averages, rows = D * directions;
    check(config);
    expect_tensor(name, "delta", {rows * N, 1}, weights.delta);
    expect_tensor(name, "alpha", {rows * N, 1}, weights.alpha);
    expect_tensor(name, "beta", {rows * N, 1}, weights.beta);
    expect_tensor(name, "gamma", {rows, N}, weights.gamma);
    expect_tensor(name, "omega", {D}, weights.omega);
    Matrix<double> kernels[directions];
    for (Index d = 0; d < directions; ++d) {
      Averages& to = averages_[d];
      Matrix<double> change(D, N), input(D, N), output(D, N);
      for (Index i = 0; i < D * N; ++i) {
        const Index from = d * D * N + i;
        const double p = logistic(weights.delta.data()[from]);
        change.data()[i] = -p * logistic(weights.alpha.data()[from]);
        input.data()[i] = p * double(weights.beta.data()[from]);
        output.data()[i] = double(weights.gamma.data()[from]) / std::sqrt(double(N));
      }
      // One tap more: see whole_kernel.
      if (config.convolution_length > 0) kernels[d] = kernel(change, input, output, config.convolution_length + 1);
      const Vector<T> skip = d == 0 ? weights.omega : Vector<T>(Vector<T>::Zero(D));
      if (config.truncation > 0) {
        Matrix<double> taps = kernel(change, input, output, config.truncation);
        taps.col(0) += skip.template cast<double>();
        to.convolution = CausalConvolution<T>(name, D, taps);
      } else {
        const auto numbers = [](const Matrix<double>& of) -> ComplexMatrix<T> { return {of.template cast<T>(), {}}; };
        to.system = DiagonalSystem<T, false>(name, numbers(change), numbers(input), numbers(output), skip);
      }
    }
    if (config.convolution_length > 0) {
      const Matrix<T> omega = weights.omega.transpose();
      convolution_ = StateSpaceConvolution<T>(name, D, whole_kernel(kernels), omega, way);
    }
  }

  /// The authors': normal numbers with deviation 0.2 for delta and alpha, 1 for gamma and omega; beta alternately 1 and -1,
  /// plus 0.02 times a normal number.
  static Weights random_weights(const Config& config, Rng& rng) {
    check(config);
    const Index N = config.averages, rows = config.channels * directions;
    Weights weights;
    weights.delta = normal_matrix<T>(rows * N, 1, 0.2, rng);
    weights.alpha = normal_matrix<T>(rows * N, 1, 0.2, rng);
    weights.beta = normal_matrix<T>(rows * N, 1, 0.02, rng);
    for (Index i = 0; i < rows * N; ++i) weights.beta(i, 0) += T(i % N % 2 == 0 ? 1 : -1);
    weights.gamma = normal_matrix<T>(rows, N, 1.0, rng);
    weights.omega = normal_matrix<T>(config.channels, 1, 1.0, rng).col(0);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// y = mixer(x) for a whole sequence. x, y [L, D]. Throws std::invalid_argument on wrong shapes and overlapping views.
  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    if constexpr (way == Direction::causal) {
      RecurrentMixerBase<MegaEma, T>::forward(x, y, workspace);
    } else {
      internal::expect_input_output<T>(name, channels(), x, y);
      if (x.length() == 0) return;
      const auto frame = workspace.frame();
      const auto backward = workspace.sequence<T>(x.length(), channels());
      const auto memory = workspace.take<T>(channels() * config_.averages);
      const auto average = [&](Index d, const Sequence<const T>& from, const Sequence<T>& to) {
        std::fill(memory.begin(), memory.end(), T(0));
        run(averages_[d], from, memory.data(), {}, to, workspace);
      };
      // Views of the rows from the last to the first.
      const auto reversed = [](const auto& rows) {
        return std::remove_cvref_t<decltype(rows)>(rows.row(rows.length() - 1), rows.length(), rows.channels(),
                                                   -rows.stride());
      };
      average(0, x, y);
      average(1, reversed(x), reversed(backward));
      workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
        for (Index t = begin; t < begin + count; ++t) {
          map_row(
              channels(), y.row(t),
              [](const Batch<T>& a, const Batch<T>& b) SEQMIX_INLINE_LAMBDA { return silu(a + b); },
              static_cast<const T*>(y.row(t)), static_cast<const T*>(backward.row(t)));
        }
      });
    }
  }

  /// forward as a convolution with the kernel: the same up to rounding, which depends on all tokens where there are more than
  /// a few dozen. x, y [L, D], L up to config.convolution_length. O(L D log(L)) time. Allocates nothing once `workspace` is
  /// warm. Throws std::invalid_argument on wrong shapes, on overlapping views, and on longer sequences.
  void convolve(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    internal::expect_input_output<T>(name, channels(), x, y);
    expect(x.length() <= convolution_.length(), name, "x", "is longer than config.convolution_length");
    if (x.length() == 0) return;
    const auto frame = workspace.frame();
    convolution_.run(x, y, workspace);
    workspace.for_row_blocks(y.length(), [&](Index begin, Index count) { apply_silu(y.rows(begin, count)); });
  }

  /// The empty state: D N zeros, or (T - 1) D.
  State initial_state() const
    requires(way == Direction::causal)
  {
    return {Tensor<T>(memory_shape()), Tensor<T>(inputs_shape())};
  }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    expect_shape(name, "state.memory", memory_shape(), state.memory.shape());
    expect_shape(name, "state.inputs", inputs_shape(), state.inputs.shape());
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const auto& view) { return view.rows(batch.begin(b), batch.length(b)); };
      State& state = batch.state(b);
      const Sequence<const T> inputs(state.inputs.data(), inputs_shape()[0], inputs_shape()[1]);
      run(averages_[0], rows(x), state.memory.data(), inputs, rows(y), workspace);
      if (config_.truncation > 0) keep_last_rows<T>(state.inputs, rows(x));
    }
    workspace.for_row_blocks(y.length(), [&](Index begin, Index count) { apply_silu(y.rows(begin, count)); });
  }

 private:
  static constexpr Index directions = way == Direction::bidirectional ? 2 : 1;

  /// One of them has channels.
  struct Averages {
    DiagonalSystem<T, false> system;
    CausalConvolution<T> convolution;
  };

  static void check(const Config& config) {
    expect(config.channels > 0 && config.averages > 0, name, "config.channels", "must be positive, as must averages");
    expect(config.truncation >= 0, name, "config.truncation", "must not be negative");
    expect(config.convolution_length >= 0, name, "config.convolution_length", "must not be negative");
  }

  /// K [D, length] of one direction; zeros from T on where truncated.
  Matrix<double> kernel(const Matrix<double>& change, const Matrix<double>& input, const Matrix<double>& output,
                        Index length) const {
    Matrix<double> taps = Matrix<double>::Zero(change.rows(), length);
    const Index kept = config_.truncation > 0 ? std::min(config_.truncation, length) : length;
    for (Index h = 0; h < change.rows(); ++h) {
      for (Index n = 0; n < change.cols(); ++n) {
        const double log_decay = std::log1p(change(h, n)), first = input(h, n) * output(h, n);
        for (Index l = 0; l < kept; ++l) taps(h, l) += first * (l == 0 ? 1 : std::exp(double(l) * log_decay));
      }
    }
    return taps;
  }

  /// The kernels [D, length + 1] of the directions as [D', length]. That of the second direction begins at the current token,
  /// which the first one's takes over, so that it begins at the next.
  static Matrix<double> whole_kernel(Matrix<double> (&kernels)[directions]) {
    const Index D = kernels[0].rows(), length = kernels[0].cols() - 1;
    Matrix<double> result(D * directions, length);
    result.topRows(D) = kernels[0].leftCols(length);
    if constexpr (way == Direction::bidirectional) {
      result.col(0).head(D) += kernels[1].col(0);
      result.bottomRows(D) = kernels[1].rightCols(length);
    }
    return result;
  }

  static double logistic(T x) { return 1 / (1 + std::exp(-double(x))); }

  Shape memory_shape() const { return {1, config_.channels, config_.truncation > 0 ? 0 : config_.averages}; }
  Shape inputs_shape() const { return {std::max(config_.truncation - 1, Index(0)), config_.channels}; }

  /// From and into `memory` [D, N], or after `inputs`.
  void run(const Averages& averages, Sequence<const T> x, T* memory, Sequence<const T> inputs, Sequence<T> y,
           Workspace& workspace) const {
    if (config_.truncation > 0) {
      averages.convolution.run(inputs, x, y, workspace);
    } else {
      averages.system.run(x, {memory, 1, channels(), config_.averages}, y, workspace);
    }
  }

  Config config_;
  Averages averages_[directions];
  StateSpaceConvolution<T> convolution_;
};

static_assert(RecurrentMixer<MegaEma<float>>);
static_assert(Mixer<MegaEma<float, Direction::bidirectional>>);
static_assert(!CausalMixer<MegaEma<float, Direction::bidirectional>>);

}  // namespace seqmix::inline SEQMIX_ARCH
