// The linear recurrent unit: a complex diagonal recurrence between two dense maps.
//
//   Source    Orvieto et al. 2023, arXiv:2303.06349, section 3 and appendix A; NicolasZucchet/minimal-LRU, lru/model.py
//   Glossary  L length   D channels   N states, complex
//   Engine    engine/scan.hpp with ComplexDiagonal
//   Size      the recurrence, and the layer around it
//
// Lru:       h_t = lambda h_{t-1} + exp(gamma_log) (B x_t),   y_t = Re(C h_t) + D x_t,
//            lambda = exp(-exp(nu_log) + i exp(theta_log)), so |lambda| < 1 whatever is learned
// LruLayer:  y = x + W_1 g * sigmoid(W_2 g),   g = gelu(Lru(norm(x))), tanh form; or norm(x + ...) of Lru(x)
#pragma once

#include <cmath>
#include <numbers>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/scan.hpp>
#include <seqmix/parts/gate.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/norm.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// The LRU itself, from x to y without nonlinearity.
template <std::floating_point T>
class Lru : public RecurrentMixerBase<Lru<T>, T> {
 public:
  static constexpr std::string_view name = "lru";
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 0;
    Index state_dim = 0;  ///< N; 0 means channels
  };

  struct Weights {
    Vector<T> phase_log, decay_log, scale_log;  // theta, nu, gamma [N]
    Matrix<T> input_real, input_imag;           // B [N, D]
    Matrix<T> output_real, output_imag;         // C [D, N]
    Vector<T> skip;                             // D [D]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("theta_log", self.phase_log, Presence::required);
      visitor("nu_log", self.decay_log, Presence::required);
      visitor("gamma_log", self.scale_log, Presence::required);
      visitor("B_re", self.input_real, Presence::required);
      visitor("B_im", self.input_imag, Presence::required);
      visitor("C_re", self.output_real, Presence::required);
      visitor("C_im", self.output_imag, Presence::required);
      visitor("D", self.skip, Presence::required);
    }
  };

  struct State {
    Tensor<T> memory;  // [2, N]: real parts, imaginary parts

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("memory", self.memory);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  Lru(const Config& config, const Weights& weights) : config_(completed(config)) {
    const Index D = config_.channels, N = config_.state_dim;
    expect_tensor(name, "theta_log", {N}, weights.phase_log);
    expect_tensor(name, "nu_log", {N}, weights.decay_log);
    expect_tensor(name, "gamma_log", {N}, weights.scale_log);
    expect_tensor(name, "B_re", {N, D}, weights.input_real);
    expect_tensor(name, "B_im", {N, D}, weights.input_imag);
    expect_tensor(name, "C_re", {D, N}, weights.output_real);
    expect_tensor(name, "C_im", {D, N}, weights.output_imag);
    expect_tensor(name, "D", {D}, weights.skip);
    decay_.resize(2 * N);
    for (Index n = 0; n < N; ++n) {
      // In double: a phase may be many radians, and a decay close to 1.
      const double size = std::exp(-std::exp(double(weights.decay_log[n])));
      const double phase = std::exp(double(weights.phase_log[n]));
      decay_[n] = T(size * std::cos(phase)), decay_[N + n] = T(size * std::sin(phase));
    }
    const Vector<T> scale = weights.scale_log.array().exp();
    const Matrix<T> real = scale.asDiagonal() * weights.input_real, imag = scale.asDiagonal() * weights.input_imag;
    input_ = Linear<T>({&real, &imag});
    Matrix<T> output(D, 2 * N);
    output.leftCols(N) = weights.output_real;
    output.rightCols(N) = -weights.output_imag;
    output_ = Linear<T>(output);
    skip_ = weights.skip;
  }

  /// As the authors begin: lambda uniform in the unit disc, scales that keep the size of what comes in, the rest normal.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Config c = completed(config);
    const Index D = c.channels, N = c.state_dim;
    Weights weights;
    weights.decay_log = Vector<T>::NullaryExpr(N, [&] { return T(std::log(-0.5 * std::log(1 - rng.uniform()))); });
    weights.phase_log =
        Vector<T>::NullaryExpr(N, [&] { return T(std::log(2 * std::numbers::pi * (1 - rng.uniform()))); });
    weights.scale_log = Vector<T>::NullaryExpr(
        N, [&](Index n) { return T(0.5 * std::log(-std::expm1(-2 * std::exp(double(weights.decay_log[n]))))); });
    const double inputs = std::pow(2.0 * double(D), -0.5), outputs = std::pow(double(N), -0.5);
    weights.input_real = normal_matrix<T>(N, D, inputs, rng);
    weights.input_imag = normal_matrix<T>(N, D, inputs, rng);
    weights.output_real = normal_matrix<T>(D, N, outputs, rng);
    weights.output_imag = normal_matrix<T>(D, N, outputs, rng);
    weights.skip = normal_matrix<T>(D, 1, 1.0, rng).col(0);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: 2 N zeros.
  State initial_state() const { return {Tensor<T>({ComplexDiagonal::state_rows, config_.state_dim})}; }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    expect_shape(name, "state.memory", {ComplexDiagonal::state_rows, config_.state_dim}, state.memory.shape());
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index N = config_.state_dim;
    const auto states = input_.apply(x, workspace);
    const Token<const T> decay_real(decay_.data(), N), decay_imag(decay_.data() + N, N);
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = states.rows(batch.begin(b), batch.length(b));
      const Sequence<const T> real = rows.columns(0, N), imag = rows.columns(N, N);
      const auto steps = [&](Index t, const auto& read) SEQMIX_INLINE_LAMBDA {
        return ComplexDiagonal::Step<Batch<T>>{read(decay_real), read(decay_imag), read(real, t), read(imag, t)};
      };
      scan<ComplexDiagonal>(steps, Sequence<T>(batch.state(b).memory.data(), ComplexDiagonal::state_rows, N), rows,
                            workspace);
    }
    output_.apply(states, y, workspace);
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      for (Index t = begin; t < begin + count; ++t) {
        map_row(
            y.channels(), y.row(t),
            [](const Batch<T>& out, const Batch<T>& in, const Batch<T>& d)
                SEQMIX_INLINE_LAMBDA { return fma(in, d, out); },
            static_cast<const T*>(y.row(t)), x.row(t), static_cast<const T*>(skip_.data()));
      }
    });
  }

 private:
  static Config completed(Config config) {
    if (config.state_dim == 0) config.state_dim = config.channels;
    expect(config.channels > 0 && config.state_dim > 0, name, "config.channels", "must be positive, as must state_dim");
    return config;
  }

  Config config_;
  Vector<T> decay_;  // [2 N]: real parts, imaginary parts
  Linear<T> input_, output_;
  Vector<T> skip_;
};

/// The layer of the authors' models around an LRU: norm, activation, gated linear unit and residual.
template <std::floating_point T>
class LruLayer : public RecurrentMixerBase<LruLayer<T>, T> {
 public:
  static constexpr std::string_view name = "lru";
  static constexpr StateGrowth growth = StateGrowth::constant;
  using State = typename Lru<T>::State;

  struct Config {
    Index channels = 0;
    Index state_dim = 0;          ///< N; 0 means channels
    bool normalize_first = true;  ///< the norm is before the LRU, not after the residual
    T norm_eps = T(1e-6);
  };

  struct Weights {
    typename Lru<T>::Weights unit;
    Matrix<T> value, gate;             // W_1, W_2 as [inputs, outputs]: [D, D]
    Vector<T> value_bias, gate_bias;   // [D]
    Vector<T> norm_weight, norm_bias;  // [D]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("seq.theta_log", self.unit.phase_log, Presence::required);
      visitor("seq.nu_log", self.unit.decay_log, Presence::required);
      visitor("seq.gamma_log", self.unit.scale_log, Presence::required);
      visitor("seq.B_re", self.unit.input_real, Presence::required);
      visitor("seq.B_im", self.unit.input_imag, Presence::required);
      visitor("seq.C_re", self.unit.output_real, Presence::required);
      visitor("seq.C_im", self.unit.output_imag, Presence::required);
      visitor("seq.D", self.unit.skip, Presence::required);
      visitor("out1.kernel", self.value, Presence::required);
      visitor("out1.bias", self.value_bias, Presence::required);
      visitor("out2.kernel", self.gate, Presence::required);
      visitor("out2.bias", self.gate_bias, Presence::required);
      visitor("normalization.scale", self.norm_weight, Presence::required);
      visitor("normalization.bias", self.norm_bias, Presence::required);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  LruLayer(const Config& config, const Weights& weights)
      : config_(config),
        unit_({config.channels, config.state_dim}, weights.unit),
        norm_weight_(weights.norm_weight),
        norm_bias_(weights.norm_bias) {
    const Index D = config.channels;
    expect_tensor(name, "out1.kernel", {D, D}, weights.value);
    expect_tensor(name, "out1.bias", {D}, weights.value_bias);
    expect_tensor(name, "out2.kernel", {D, D}, weights.gate);
    expect_tensor(name, "out2.bias", {D}, weights.gate_bias);
    expect_tensor(name, "normalization.scale", {D}, weights.norm_weight);
    expect_tensor(name, "normalization.bias", {D}, weights.norm_bias);
    const Matrix<T> value = weights.value.transpose(), gate = weights.gate.transpose();
    gated_ = Linear<T>({&value, &gate}, {&weights.value_bias, &weights.gate_bias});
  }

  /// The LRU as its authors begin; W_1 and W_2 normal; no biases; the norm's weight is 1.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Index D = config.channels;
    Weights weights;
    weights.unit = Lru<T>::random_weights({D, config.state_dim}, rng);
    weights.value = normal_matrix<T>(D, D, std::pow(double(D), -0.5), rng);
    weights.gate = normal_matrix<T>(D, D, std::pow(double(D), -0.5), rng);
    weights.value_bias = weights.gate_bias = weights.norm_bias = Vector<T>::Zero(D);
    weights.norm_weight = Vector<T>::Ones(D);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }
  State initial_state() const { return unit_.initial_state(); }
  void check_state(const State& state) const { unit_.check_state(state); }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index D = config_.channels;
    const auto mixed = workspace.sequence<T>(x.length(), D);
    const auto normalize = [&](ConstSequence<T> from, Sequence<T> to) {
      workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
        layer_normalize(from.rows(begin, count), to.rows(begin, count), config_.norm_eps, norm_weight_, norm_bias_);
      });
    };
    if (config_.normalize_first) normalize(x, y);
    unit_.advance(batch, config_.normalize_first ? ConstSequence<T>(y) : x, mixed, workspace);
    workspace.for_row_blocks(x.length(),
                             [&](Index begin, Index count) { apply_activation(mixed.rows(begin, count), gelu_tanh); });
    const auto both = gated_.apply(mixed, workspace);
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      for (Index t = begin; t < begin + count; ++t) {
        map_row(
            D, y.row(t),
            [](const Batch<T>& in, const Batch<T>& value, const Batch<T>& gate)
                SEQMIX_INLINE_LAMBDA { return fma(value, sigmoid(gate), in); },
            x.row(t), static_cast<const T*>(both.row(t)), static_cast<const T*>(both.row(t) + D));
      }
    });
    if (!config_.normalize_first) normalize(y, y);
  }

 private:
  Config config_;
  Lru<T> unit_;
  Linear<T> gated_;
  Vector<T> norm_weight_, norm_bias_;
};

static_assert(RecurrentMixer<Lru<float>> && RecurrentMixer<LruLayer<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
