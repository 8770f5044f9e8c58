// HGRN: a gated linear recurrence of every channel by itself, whose gates have lower bounds.
//
//   Source    Qin et al. 2023, arXiv:2311.04823, section 3; Doraemonzzz/hgru-pytorch, hgru/hgru1d.py, hgru/hgrureal1d.py;
//             fla-org/flash-linear-attention, fla/layers/hgrn.py
//   Glossary  L length   D channels   I inner channels   b lower bounds of the gates
//   Engine    engine/scan.hpp with RealDiagonal or ComplexDiagonal
//   Size      two layers, of two code bases that share the core: real or complex, in one direction or both
//
// Core:   h_t = exp(g_t) h_{t-1} + x_t,   y = h
// Layers: lambda = b + (1 - b) sigmoid(f)
//         Hgrn   fla's: f, i, g = projections of x, f and i convolved where asked for;
//                h from the core with inputs (1 - lambda) silu(i);   y = W_o (rms(h) * w * silu(g))
//         Hgru   the authors': c = silu(projection of x), h_t = lambda_t e^(i theta) h_{t-1} + (1 - lambda_t) c_t with complex
//                numbers c = (re, im) side by side, or with real ones;   y = W_o (layer_norm(h) * silu(gate(x))) + b_o, h as
//                its real parts and then its imaginary ones. Bidirectional: h plus the same from the end to the beginning
#pragma once

#include <algorithm>
#include <cmath>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/scan.hpp>
#include <seqmix/parts/gate.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/norm.hpp>
#include <seqmix/parts/short_convolution.hpp>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// A gate with a lower bound: what it keeps, b + (1 - b) sigmoid(f), and what it lets in, the rest to 1; both accurate to a
/// few ulp however close to 0.
template <class T>
struct BoundedGate {
  Batch<T> kept, admitted;

  SEQMIX_ALWAYS_INLINE BoundedGate(const Batch<T>& f, const Batch<T>& bound) {
    const Batch<T> one = broadcast(T(1)), power = exp_decay(-abs(f));
    const Batch<T> large = divide(one, one + power), small = power * large;
    const auto open = f > broadcast(T(0));
    const Batch<T> rest = one - bound;
    admitted = rest * select(open, small, large);
    kept = select(admitted < broadcast(T(0.5)), one - admitted, fma(rest, select(open, large, small), bound));
  }
};

}  // namespace detail

/// The recurrence of HGRN from and into `state` [D]. log_decay (<= 0, -infinity allowed), input, output [L, D]. O(L D) time, no
/// scratch but for few channels. Allocates nothing once `workspace` is warm. Throws std::invalid_argument on shapes that do
/// not fit and on results that overlap another argument.
template <std::floating_point T>
void hgrn(ConstSequence<T> log_decay, ConstSequence<T> input, Token<T> state, Sequence<T> output,
          Workspace& workspace) {
  const Index L = output.length(), D = output.channels();
  expect_shape("hgrn", "log_decay", {L, D}, log_decay);
  expect_shape("hgrn", "input", {L, D}, input);
  expect_shape("hgrn", "state", {D}, state);
  const auto alone = [&](std::string_view name, const auto& argument) {
    expect_disjoint("hgrn", "output", output, name, argument);
    expect_disjoint("hgrn", "state", state, name, argument);
  };
  alone("log_decay", log_decay), alone("input", input);
  expect_disjoint("hgrn", "output", output, "state", state);
  const auto steps = [&](Index t, const auto& read) SEQMIX_INLINE_LAMBDA {
    return RealDiagonal::Step<Batch<T>>{exp_decay(read(log_decay, t)), read(input, t)};
  };
  scan<RealDiagonal>(steps, Sequence<T>(state), output, workspace);
}

/// The layer of HGRN in flash-linear-attention.
template <std::floating_point T>
class Hgrn : public RecurrentMixerBase<Hgrn<T>, T> {
 public:
  static constexpr std::string_view name = "hgrn";
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 0;
    Index expand = 1;       ///< I is expand times channels
    bool convolve = false;  ///< f and i
    Index convolution_width = 4;
    bool convolution_bias = false;
    T norm_eps = T(1e-5);
  };

  struct Weights {
    Matrix<T> input, forget, gate;                              // [I, D]
    Matrix<T> input_convolution, forget_convolution;            // [I, width], or absent
    Vector<T> input_convolution_bias, forget_convolution_bias;  // [I], or absent
    Vector<T> lower_bound;                                      // [I], in [0, 1); empty: zeros
    Vector<T> norm;                                             // [I]
    Matrix<T> output;                                           // [D, I]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("i_proj.weight", self.input, Presence::required);
      visitor("f_proj.weight", self.forget, Presence::required);
      visitor("g_proj.weight", self.gate, Presence::required);
      visitor("i_conv1d.weight", self.input_convolution, Presence::optional);
      visitor("i_conv1d.bias", self.input_convolution_bias, Presence::optional);
      visitor("f_conv1d.weight", self.forget_convolution, Presence::optional);
      visitor("f_conv1d.bias", self.forget_convolution_bias, Presence::optional);
      visitor("lower_bound", self.lower_bound, Presence::optional);
      visitor("g_norm.weight", self.norm, Presence::required);
      visitor("o_proj.weight", self.output, Presence::required);
    }
  };

  struct State {
    Tensor<T> memory;         // [1, I]
    Tensor<T> input, forget;  // [width, I], the last inputs of the convolutions, oldest first; or empty

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("memory", self.memory), visitor("input", self.input), visitor("forget", self.forget);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  Hgrn(const Config& config, const Weights& weights)
      : config_(checked(config)), lower_bound_(Vector<T>::Zero(inner())) {
    const Index D = config.channels, I = inner();
    expect_tensor(name, "i_proj.weight", {I, D}, weights.input);
    expect_tensor(name, "f_proj.weight", {I, D}, weights.forget);
    expect_tensor(name, "g_proj.weight", {I, D}, weights.gate);
    expect_tensor(name, "g_norm.weight", {I}, weights.norm);
    expect_tensor(name, "o_proj.weight", {D, I}, weights.output);
    if (weights.lower_bound.size() > 0) {
      expect_tensor(name, "lower_bound", {I}, weights.lower_bound);
      lower_bound_ = weights.lower_bound;
    }
    const auto convolution = [&](std::string_view which, const Matrix<T>& weight, const Vector<T>& bias) {
      const std::string prefix = std::string(which) + "_conv1d.";
      expect_tensor(name, prefix + "weight", {I, config.convolution_width}, weight);
      if (config.convolution_bias) expect_tensor(name, prefix + "bias", {I}, bias);
      return ShortConvolution<T>(name, weight, config.convolution_bias ? bias : Vector<T>(),
                                 ConvolutionActivation::none);
    };
    if (config.convolve) {
      input_convolution_ = convolution("i", weights.input_convolution, weights.input_convolution_bias);
      forget_convolution_ = convolution("f", weights.forget_convolution, weights.forget_convolution_bias);
    }
    projected_ = Linear<T>({&weights.input, &weights.forget, &weights.gate});
    norm_ = weights.norm;
    output_ = Linear<T>(weights.output);
  }

  /// Projections and convolutions uniform in +-inputs^-1/2; no lower bounds; the norm's weight is 1.
  static Weights random_weights(const Config& config, Rng& rng) {
    checked(config);
    const Index D = config.channels, I = config.expand * D, W = config.convolution_width;
    const double limit = std::pow(double(D), -0.5), taps = std::pow(double(W), -0.5);
    const auto bias = [&] {
      return uniform_vector<T>(config.convolve && config.convolution_bias ? I : 0, -taps, taps, rng);
    };
    Weights weights;
    weights.input = uniform_matrix<T>(I, D, limit, rng);
    weights.forget = uniform_matrix<T>(I, D, limit, rng);
    weights.gate = uniform_matrix<T>(I, D, limit, rng);
    if (config.convolve) weights.input_convolution = uniform_matrix<T>(I, W, taps, rng);
    if (config.convolve) weights.forget_convolution = uniform_matrix<T>(I, W, taps, rng);
    weights.input_convolution_bias = bias();
    weights.forget_convolution_bias = bias();
    weights.norm = Vector<T>::Ones(I);
    weights.output = uniform_matrix<T>(D, I, std::pow(double(I), -0.5), rng);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: I zeros, and those of the convolutions.
  State initial_state() const {
    return {Tensor<T>({1, inner()}), input_convolution_.initial_state(), forget_convolution_.initial_state()};
  }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    expect_shape(name, "state.memory", {1, inner()}, state.memory.shape());
    input_convolution_.check_state(name, "state.input", state.input);
    forget_convolution_.check_state(name, "state.forget", state.forget);
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index I = inner();
    ColumnCutter<T> columns(projected_.apply(x, workspace));
    Sequence<T> input = columns.next(I), forget = columns.next(I);
    const auto gate = columns.rest();
    if (config_.convolve) {
      input = input_convolution_.apply(batch, &State::input, input, workspace);
      forget = forget_convolution_.apply(batch, &State::forget, forget, workspace);
    }
    const auto mixed = workspace.sequence<T>(x.length(), I);
    const Token<const T> bound(lower_bound_);
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const Sequence<T>& view) { return view.rows(batch.begin(b), batch.length(b)); };
      const Sequence<const T> i = rows(input), f = rows(forget);
      const auto steps = [&](Index t, const auto& read) SEQMIX_INLINE_LAMBDA {
        const detail::BoundedGate<T> lambda(read(f, t), read(bound));
        return RealDiagonal::Step<Batch<T>>{lambda.kept, lambda.admitted * silu(read(i, t))};
      };
      scan<RealDiagonal>(steps, Sequence<T>(batch.state(b).memory.data(), 1, I), rows(mixed), workspace);
    }
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      rms_normalize(mixed.rows(begin, count).heads(1), config_.norm_eps, norm_);
      multiply_silu<T>(mixed.rows(begin, count), gate.rows(begin, count));
    });
    output_.apply(mixed, y, workspace);
  }

 private:
  static const Config& checked(const Config& config) {
    expect(config.channels > 0 && config.expand > 0, name, "config.channels", "must be positive, as must expand");
    expect(!config.convolve || config.convolution_width > 0, name, "config.convolution_width", "must be positive");
    return config;
  }

  Index inner() const { return config_.expand * config_.channels; }

  Config config_;
  Vector<T> lower_bound_, norm_;  // [I]
  Linear<T> projected_, output_;
  ShortConvolution<T> input_convolution_, forget_convolution_;
};

/// The authors' layer of HGRN, with complex numbers (their Hgru1d) or real ones (HgruRealV6); causal or bidirectional.
template <std::floating_point T, bool complex = true, Direction way = Direction::causal>
class Hgru : public RecurrentMixerBase<Hgru<T, complex, way>, T> {
 public:
  static constexpr std::string_view name = "hgrn";
  static constexpr StateGrowth growth = StateGrowth::constant;
  static constexpr Direction direction = way;

  struct Config {
    Index channels = 0;
    bool bias = true;
    T norm_eps = T(1e-5);
  };

  struct Weights {
    Matrix<T> input, forget, gate;                 // [I, D], [D, D], [I, D]; I = 2 D, or D if real
    Vector<T> input_bias, forget_bias, gate_bias;  // [I], [D], [I], with biases
    Vector<T> phase;                               // theta [D], if complex
    Vector<T> lower_bound;                         // [D], in [0, 1); empty: zeros
    Vector<T> norm_weight, norm_bias;              // [I]
    Matrix<T> output;                              // [D, I]
    Vector<T> output_bias;                         // [D], with biases

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("input_proj.weight", self.input, Presence::required);
      visitor("input_proj.bias", self.input_bias, Presence::optional);
      visitor("lambda_proj.weight", self.forget, Presence::required);
      visitor("lambda_proj.bias", self.forget_bias, Presence::optional);
      visitor("gate.weight", self.gate, Presence::required);
      visitor("gate.bias", self.gate_bias, Presence::optional);
      if constexpr (complex) visitor("theta", self.phase, Presence::required);
      visitor("lower_bound", self.lower_bound, Presence::optional);
      visitor("norm.weight", self.norm_weight, Presence::required);
      visitor("norm.bias", self.norm_bias, Presence::required);
      visitor("out_proj.weight", self.output, Presence::required);
      visitor("out_proj.bias", self.output_bias, Presence::optional);
    }
  };

  struct State {
    Tensor<T> memory;  // [2, D]: real parts, imaginary parts; or [1, D]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("memory", self.memory);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  Hgru(const Config& config, const Weights& weights)
      : config_(checked(config)), lower_bound_(Vector<T>::Zero(config.channels)) {
    const Index D = config.channels, I = parts * D;
    expect_tensor(name, "input_proj.weight", {I, D}, weights.input);
    expect_tensor(name, "lambda_proj.weight", {D, D}, weights.forget);
    expect_tensor(name, "gate.weight", {I, D}, weights.gate);
    expect_tensor(name, "norm.weight", {I}, weights.norm_weight);
    expect_tensor(name, "norm.bias", {I}, weights.norm_bias);
    expect_tensor(name, "out_proj.weight", {D, I}, weights.output);
    if (config.bias) {
      expect_tensor(name, "input_proj.bias", {I}, weights.input_bias);
      expect_tensor(name, "lambda_proj.bias", {D}, weights.forget_bias);
      expect_tensor(name, "gate.bias", {I}, weights.gate_bias);
      expect_tensor(name, "out_proj.bias", {D}, weights.output_bias);
    }
    if (weights.lower_bound.size() > 0) {
      expect_tensor(name, "lower_bound", {D}, weights.lower_bound);
      lower_bound_ = weights.lower_bound;
    }
    if constexpr (complex) {
      expect_tensor(name, "theta", {D}, weights.phase);
      cosine_.resize(D), sine_.resize(D);
      for (Index c = 0; c < D; ++c) {
        cosine_[c] = T(std::cos(double(weights.phase[c]))), sine_[c] = T(std::sin(double(weights.phase[c])));
      }
    }
    // Real and imaginary parts apart.
    const auto apart = [&](const auto& pairs) {
      auto result = pairs;
      for (Index r = 0; r < pairs.rows(); ++r) result.row(r % parts * D + r / parts) = pairs.row(r);
      return result;
    };
    const Matrix<T> input = apart(weights.input);
    const Vector<T> none, input_bias = config.bias ? Vector<T>(apart(weights.input_bias)) : none;
    projected_ =
        Linear<T>({&input, &weights.forget, &weights.gate},
                  {&input_bias, config.bias ? &weights.forget_bias : &none, config.bias ? &weights.gate_bias : &none});
    norm_weight_ = weights.norm_weight;
    norm_bias_ = weights.norm_bias;
    output_ = Linear<T>(weights.output, config.bias ? weights.output_bias : none);
  }

  /// Projections and biases uniform in +-inputs^-1/2; phases 10000^(-2c/D); no lower bounds; the norm's weight is 1.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Index D = checked(config).channels, I = parts * D;
    const auto projection = [&](Index rows, Index columns) {
      return uniform_matrix<T>(rows, columns, std::pow(double(columns), -0.5), rng);
    };
    const auto bias = [&](Index rows, Index columns) {
      const double limit = std::pow(double(columns), -0.5);
      return uniform_vector<T>(config.bias ? rows : 0, -limit, limit, rng);
    };
    Weights weights;
    weights.input = projection(I, D);
    weights.input_bias = bias(I, D);
    weights.forget = projection(D, D);
    weights.forget_bias = bias(D, D);
    weights.gate = projection(I, D);
    weights.gate_bias = bias(I, D);
    if (complex) {
      weights.phase =
          Vector<T>::NullaryExpr(D, [&](Index c) { return T(std::pow(10000.0, -2.0 * double(c) / double(D))); });
    }
    weights.norm_weight = Vector<T>::Ones(I);
    weights.norm_bias = Vector<T>::Zero(I);
    weights.output = projection(D, I);
    weights.output_bias = bias(D, I);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// y = mixer(x). x, y [L, D]. Throws std::invalid_argument on wrong shapes and overlapping views.
  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    if constexpr (direction == Direction::causal) {
      RecurrentMixerBase<Hgru, T>::forward(x, y, workspace);
    } else {
      internal::expect_input_output<T>(name, channels(), x, y);
      if (x.length() == 0) return;
      const auto frame = workspace.frame();
      mix(x, y, workspace, [&](Sequence<T> input, Sequence<T> forget, Sequence<T> output) {
        // Views of the rows from the last to the first.
        const auto reversed = [](const Sequence<T>& rows) {
          return Sequence<T>(rows.row(rows.length() - 1), rows.length(), rows.channels(), -rows.stride());
        };
        const auto empty = [&] {
          const auto memory = workspace.take<T>(parts * channels());
          std::fill(memory.begin(), memory.end(), T(0));
          return memory.data();
        };
        const auto backward = workspace.sequence<T>(x.length(), parts * channels());
        recur(input, forget, empty(), output, workspace);
        recur(reversed(input), reversed(forget), empty(), reversed(backward), workspace);
        workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
          for (Index t = begin; t < begin + count; ++t) {
            map_row(
                output.channels(), output.row(t),
                [](const Batch<T>& a, const Batch<T>& b) SEQMIX_INLINE_LAMBDA { return a + b; },
                static_cast<const T*>(output.row(t)), static_cast<const T*>(backward.row(t)));
          }
        });
      });
    }
  }

  /// The empty state: D zeros, or 2 D.
  State initial_state() const
    requires(way == Direction::causal)
  {
    return {Tensor<T>(state_shape())};
  }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    expect_shape(name, "state.memory", state_shape(), state.memory.shape());
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    mix(x, y, workspace, [&](Sequence<T> input, Sequence<T> forget, Sequence<T> output) {
      for (Index b = 0; b < batch.size(); ++b) {
        const auto rows = [&](const Sequence<T>& view) { return view.rows(batch.begin(b), batch.length(b)); };
        recur(rows(input), rows(forget), batch.state(b).memory.data(), rows(output), workspace);
      }
    });
  }

 private:
  static constexpr Index parts = complex ? 2 : 1;
  Shape state_shape() const { return {parts, config_.channels}; }

  static const Config& checked(const Config& config) {
    expect(config.channels > 0, name, "config.channels", "must be positive");
    return config;
  }

  /// Projections, gate and norm around recur(input, forget, output).
  template <class Recur>
  void mix(ConstSequence<T> x, Sequence<T> y, Workspace& workspace, Recur&& recur) const {
    const Index D = channels();
    ColumnCutter<T> columns(projected_.apply(x, workspace));
    const auto input = columns.next(parts * D), forget = columns.next(D), gate = columns.rest();
    const auto mixed = workspace.sequence<T>(x.length(), parts * D);
    recur(input, forget, mixed);
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      const auto block = mixed.rows(begin, count);
      layer_normalize(block, block, config_.norm_eps, norm_weight_, norm_bias_);
      multiply_silu<T>(block, gate.rows(begin, count));
    });
    output_.apply(mixed, y, workspace);
  }

  /// From and into `state` [parts, D].
  void recur(Sequence<const T> input, Sequence<const T> forget, T* state, Sequence<T> output,
             Workspace& workspace) const {
    const Index D = channels();
    const Token<const T> bound(lower_bound_);
    const Sequence<T> memory(state, parts, D);
    if constexpr (complex) {
      const Token<const T> cosine(cosine_), sine(sine_);
      const auto real = input.columns(0, D), imag = input.columns(D, D);
      const auto steps = [&](Index t, const auto& read) SEQMIX_INLINE_LAMBDA {
        const detail::BoundedGate<T> lambda(read(forget, t), read(bound));
        return ComplexDiagonal::Step<Batch<T>>{lambda.kept * read(cosine), lambda.kept * read(sine),
                                               lambda.admitted * silu(read(real, t)),
                                               lambda.admitted * silu(read(imag, t))};
      };
      scan<ComplexDiagonal>(steps, memory, output, workspace);
    } else {
      const auto steps = [&](Index t, const auto& read) SEQMIX_INLINE_LAMBDA {
        const detail::BoundedGate<T> lambda(read(forget, t), read(bound));
        return RealDiagonal::Step<Batch<T>>{lambda.kept, lambda.admitted * silu(read(input, t))};
      };
      scan<RealDiagonal>(steps, memory, output, workspace);
    }
  }

  Config config_;
  Vector<T> lower_bound_, cosine_, sine_;  // [D]
  Linear<T> projected_, output_;
  Vector<T> norm_weight_, norm_bias_;  // [I]
};

static_assert(RecurrentMixer<Hgrn<float>> && RecurrentMixer<Hgru<float>> && RecurrentMixer<Hgru<float, false>>);
static_assert(!CausalMixer<Hgru<float, true, Direction::bidirectional>>);

}  // namespace seqmix::inline SEQMIX_ARCH
