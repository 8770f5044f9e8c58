// The real-gated linear recurrent unit of Griffin and RecurrentGemma, and the recurrent block around it.
//
//   Source    De et al. 2024, arXiv:2402.19427, sections 2.3 and 2.4; google-deepmind/recurrentgemma,
//             recurrentgemma/torch/layers.py and modules.py
//   Glossary  L length   D channels   W width of the recurrence   H heads: diagonal blocks of the gates' maps
//   Engine    engine/scan.hpp with RealDiagonal
//   Size      the recurrence and the block around it, which both start anew at the starts of documents
//   Differs   windows of the convolution never cross the start of a document, when decoding either
//
// RgLru:       log a_t = -8 sigmoid(W_a x_t + b_a) softplus(a_param),
//              h_t = a_t h_{t-1} + sqrt(1 - a_t^2) sigmoid(W_x x_t + b_x) x_t,   y_t = h_t
// RgLruBlock:  y = W_out (RgLru(convolution(W_x x)) * gelu(W_y x)), tanh form
// Where a document starts, nothing is kept and nothing scaled: h_t = sigmoid(W_x x_t + b_x) x_t.
#pragma once

#include <cmath>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/scan.hpp>
#include <seqmix/parts/gate.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/short_convolution.hpp>
#include <vector>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// What mixers share whose sequences may hold several documents. `starts` [L, 1] is not 0 where one starts; without it, one
/// starts where a state has seen no tokens yet. Derived has check_state, and advance with starts.
template <class Derived, class Base, class T>
class DocumentMixer : public Base {
 public:
  using Base::forward, Base::prefill, Base::step;

  /// As without `starts`. Throws std::invalid_argument too if starts is not [L, 1] or overlaps y.
  void forward(ConstSequence<T> x, ConstSequence<T> starts, Sequence<T> y, Workspace& workspace) const {
    check_starts(x, starts, y);
    Base::forward_with(x, y, workspace, starts);
  }
  template <class D = Derived>
  void prefill(typename D::State& state, ConstSequence<T> x, ConstSequence<T> starts, Sequence<T> y,
               Workspace& workspace) const {
    check_starts(x, starts, y);
    Base::prefill_with(state, x, y, workspace, starts);
  }

  template <class State>
  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const auto starts = workspace.template sequence<T>(x.length(), 1);
    for (Index t = 0; t < x.length(); ++t) starts(t, 0) = T(0);
    for (Index b = 0; b < batch.size(); ++b) {
      if (batch.length(b) > 0 && batch.state(b).tokens == 0) starts(batch.begin(b), 0) = T(1);
    }
    static_cast<const Derived&>(*this).advance(batch, x, y, workspace, starts);
  }

 private:
  static void check_starts(ConstSequence<T> x, ConstSequence<T> starts, Sequence<T> y) {
    expect_shape(Derived::name, "starts", {x.length(), 1}, starts);
    expect_disjoint(Derived::name, "y", y, "starts", starts);
  }
};

}  // namespace detail

/// The RG-LRU itself.
template <std::floating_point T>
class RgLru : public detail::DocumentMixer<RgLru<T>, RecurrentMixerBase<RgLru<T>, T>, T> {
 public:
  static constexpr std::string_view name = "rg_lru";
  static constexpr StateGrowth growth = StateGrowth::constant;
  using detail::DocumentMixer<RgLru<T>, RecurrentMixerBase<RgLru<T>, T>, T>::advance;

  struct Config {
    Index channels = 0;  ///< W
    Index heads = 1;     ///< divides channels
  };

  struct Weights {
    Vector<T> decay;                             // a_param [W]
    Matrix<T> input_gate, decay_gate;            // [H W/H, W/H]: of every head as [inputs, outputs]
    Matrix<T> input_gate_bias, decay_gate_bias;  // [H, W/H]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("a_param", self.decay, Presence::required);
      visitor("input_gate.w", self.input_gate, Presence::required);
      visitor("input_gate.b", self.input_gate_bias, Presence::required);
      visitor("a_gate.w", self.decay_gate, Presence::required);
      visitor("a_gate.b", self.decay_gate_bias, Presence::required);
    }
  };

  struct State {
    Tensor<T> memory;  // [1, W]
    Index tokens = 0;  // seen

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("memory", self.memory), visitor("tokens", self.tokens);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless heads divides channels and the shapes of `weights` follow from
  /// `config`.
  RgLru(const Config& config, const Weights& weights) : config_(checked(config)) {
    const Index W = config.channels, H = config.heads;
    const Index K = W / H;
    expect_tensor(name, "a_param", {W}, weights.decay);
    expect_tensor(name, "input_gate.w", {W, K}, weights.input_gate);
    expect_tensor(name, "input_gate.b", {H, K}, weights.input_gate_bias);
    expect_tensor(name, "a_gate.w", {W, K}, weights.decay_gate);
    expect_tensor(name, "a_gate.b", {H, K}, weights.decay_gate_bias);
    rate_.resize(W);
    for (Index c = 0; c < W; ++c) rate_[c] = T(-8) * softplus(weights.decay[c]);
    const auto gate = [&](const Matrix<T>& weight, const Matrix<T>& bias) {
      std::vector<Linear<T>> heads;
      for (Index h = 0; h < H; ++h) {
        heads.emplace_back(Matrix<T>(weight.middleRows(h * K, K).transpose()), Vector<T>(bias.row(h).transpose()));
      }
      return heads;
    };
    input_gate_ = gate(weights.input_gate, weights.input_gate_bias);
    decay_gate_ = gate(weights.decay_gate, weights.decay_gate_bias);
  }

  /// Decays that keep between 0.9 and 0.999 of the state where softplus(a_param) is not scaled, as the authors have it.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Index W = checked(config).channels, H = config.heads, K = W / H;
    Weights weights;
    weights.decay = Vector<T>::NullaryExpr(W, [&] {
      const double a = std::sqrt(rng.uniform(0.9 * 0.9, 0.999 * 0.999));
      return T(std::log(std::expm1(-std::log(a))));
    });
    const double deviation = std::pow(double(K), -0.5);
    weights.input_gate = normal_matrix<T>(W, K, deviation, rng);
    weights.decay_gate = normal_matrix<T>(W, K, deviation, rng);
    weights.input_gate_bias = weights.decay_gate_bias = Matrix<T>::Zero(H, K);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: W zeros.
  State initial_state() const { return {Tensor<T>({1, config_.channels})}; }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    expect_shape(name, "state.memory", {1, config_.channels}, state.memory.shape());
  }

  /// Works on any state with the fields of State.
  template <class S>
  void advance(const SequenceBatch<S>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace,
               ConstSequence<T> starts) const {
    const Index W = config_.channels, K = W / config_.heads;
    const auto gate = [&](const std::vector<Linear<T>>& heads) {
      const auto result = workspace.sequence<T>(x.length(), W);
      for (Index h = 0; h < config_.heads; ++h) {
        heads[std::size_t(h)].apply(x.columns(h * K, K), result.columns(h * K, K), workspace);
      }
      return result;
    };
    const auto decay = gate(decay_gate_), input = gate(input_gate_);
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      for (Index t = begin; t < begin + count; ++t) {
        // The logarithm of the decay: what a start keeps is e^-infinity.
        const Batch<T> reset = broadcast(starts(t, 0) != T(0) ? -std::numeric_limits<T>::infinity() : T(0));
        map_row(
            W, decay.row(t),
            [&](const Batch<T>& a, const Batch<T>& rate) SEQMIX_INLINE_LAMBDA { return fma(rate, sigmoid(a), reset); },
            static_cast<const T*>(decay.row(t)), static_cast<const T*>(rate_.data()));
        map_row(
            W, input.row(t),
            [](const Batch<T>& i, const Batch<T>& log_a, const Batch<T>& in)
                SEQMIX_INLINE_LAMBDA { return sqrt(-expm1(log_a + log_a)) * sigmoid(i) * in; },
            static_cast<const T*>(input.row(t)), static_cast<const T*>(decay.row(t)), x.row(t));
      }
    });
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const auto& view) { return view.rows(batch.begin(b), batch.length(b)); };
      const Sequence<const T> log_a = rows(decay), in = rows(input);
      const Sequence<T> memory(batch.state(b).memory.data(), 1, W);
      const auto steps = [&](Index t, const auto& read) SEQMIX_INLINE_LAMBDA {
        return RealDiagonal::Step<Batch<T>>{exp_decay(read(log_a, t)), read(in, t)};
      };
      scan<RealDiagonal>(steps, memory, rows(y), workspace);
      batch.state(b).tokens += batch.length(b);
    }
  }

 private:
  static const Config& checked(const Config& config) {
    expect_divides(name, "config.heads", config.heads, "channels", config.channels);
    return config;
  }

  Config config_;
  Vector<T> rate_;                                  // [W], -8 softplus(a_param)
  std::vector<Linear<T>> input_gate_, decay_gate_;  // one for each head
};

/// The recurrent block: two projections, of which one is convolved and passes the RG-LRU, multiplied and projected back.
template <std::floating_point T>
class RgLruBlock : public detail::DocumentMixer<RgLruBlock<T>, RecurrentMixerBase<RgLruBlock<T>, T>, T> {
 public:
  static constexpr std::string_view name = "rg_lru";
  static constexpr StateGrowth growth = StateGrowth::constant;
  using detail::DocumentMixer<RgLruBlock<T>, RecurrentMixerBase<RgLruBlock<T>, T>, T>::advance;

  struct Config {
    Index channels = 0;  ///< D
    Index width = 0;     ///< W; 0 means channels
    Index heads = 1;     ///< divides width
    Index convolution_width = 4;
  };

  struct Weights {
    Matrix<T> gate, input;            // [W, D]
    Vector<T> gate_bias, input_bias;  // [W]
    Matrix<T> convolution;            // [convolution_width, W]
    Vector<T> convolution_bias;       // [W]
    typename RgLru<T>::Weights unit;
    Matrix<T> output;       // [D, W]
    Vector<T> output_bias;  // [D]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("linear_y.weight", self.gate, Presence::required);
      visitor("linear_y.bias", self.gate_bias, Presence::required);
      visitor("linear_x.weight", self.input, Presence::required);
      visitor("linear_x.bias", self.input_bias, Presence::required);
      visitor("conv_1d.w", self.convolution, Presence::required);
      visitor("conv_1d.b", self.convolution_bias, Presence::required);
      visitor("rg_lru.a_param", self.unit.decay, Presence::required);
      visitor("rg_lru.input_gate.w", self.unit.input_gate, Presence::required);
      visitor("rg_lru.input_gate.b", self.unit.input_gate_bias, Presence::required);
      visitor("rg_lru.a_gate.w", self.unit.decay_gate, Presence::required);
      visitor("rg_lru.a_gate.b", self.unit.decay_gate_bias, Presence::required);
      visitor("linear_out.weight", self.output, Presence::required);
      visitor("linear_out.bias", self.output_bias, Presence::required);
    }
  };

  struct State {
    Tensor<T> convolution;  // [convolution_width, W], its last inputs, oldest first
    Tensor<T> memory;       // [1, W]
    Index tokens = 0;       // seen

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("convolution", self.convolution), visitor("memory", self.memory), visitor("tokens", self.tokens);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  RgLruBlock(const Config& config, const Weights& weights)
      : config_(completed(config)), unit_({config_.width, config_.heads}, weights.unit) {
    const Index D = config_.channels, W = config_.width;
    expect_tensor(name, "linear_y.weight", {W, D}, weights.gate);
    expect_tensor(name, "linear_y.bias", {W}, weights.gate_bias);
    expect_tensor(name, "linear_x.weight", {W, D}, weights.input);
    expect_tensor(name, "linear_x.bias", {W}, weights.input_bias);
    expect_tensor(name, "conv_1d.w", {config_.convolution_width, W}, weights.convolution);
    expect_tensor(name, "conv_1d.b", {W}, weights.convolution_bias);
    expect_tensor(name, "linear_out.weight", {D, W}, weights.output);
    expect_tensor(name, "linear_out.bias", {D}, weights.output_bias);
    projected_ = Linear<T>({&weights.gate, &weights.input}, {&weights.gate_bias, &weights.input_bias});
    convolution_ = ShortConvolution<T>(name, weights.convolution.transpose(), weights.convolution_bias,
                                       ConvolutionActivation::none);
    output_ = Linear<T>(weights.output, weights.output_bias);
  }

  /// Maps normal of size inputs^-1/2, no biases.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Config c = completed(config);
    const Index D = c.channels, W = c.width;
    const auto map = [&](Index rows, Index columns, Index inputs) {
      return normal_matrix<T>(rows, columns, std::pow(double(inputs), -0.5), rng);
    };
    Weights weights;
    weights.gate = map(W, D, D);
    weights.input = map(W, D, D);
    weights.convolution = map(c.convolution_width, W, c.convolution_width);
    weights.unit = RgLru<T>::random_weights({W, c.heads}, rng);
    weights.output = map(D, W, W);
    weights.gate_bias = weights.input_bias = weights.convolution_bias = Vector<T>::Zero(W);
    weights.output_bias = Vector<T>::Zero(D);
    return weights;
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: W (convolution_width + 1) zeros.
  State initial_state() const { return {convolution_.initial_state(), Tensor<T>({1, config_.width})}; }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    convolution_.check_state(name, "state.convolution", state.convolution);
    expect_shape(name, "state.memory", {1, config_.width}, state.memory.shape());
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace,
               ConstSequence<T> starts) const {
    const Index W = config_.width;
    ColumnCutter<T> columns(projected_.apply(x, workspace));
    const auto gate = columns.next(W), input = columns.rest();
    const auto convolved = workspace.sequence<T>(x.length(), W), mixed = workspace.sequence<T>(x.length(), W);
    for (Index b = 0; b < batch.size(); ++b) {
      convolve_documents(batch.state(b), starts.rows(batch.begin(b), batch.length(b)),
                         input.rows(batch.begin(b), batch.length(b)), convolved.rows(batch.begin(b), batch.length(b)),
                         workspace);
    }
    unit_.advance(batch, convolved, mixed, workspace, starts);
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      multiply_activated<T>(mixed.rows(begin, count), gate.rows(begin, count), gelu_tanh);
    });
    output_.apply(mixed, y, workspace);
  }

 private:
  /// Convolves every document by itself.
  void convolve_documents(State& state, ConstSequence<T> starts, Sequence<T> input, Sequence<T> output,
                          Workspace& workspace) const {
    State* const states[] = {&state};
    for (Index begin = 0, end = 0; begin < input.length(); begin = end) {
      for (end = begin + 1; end < input.length() && starts(end, 0) == T(0);) ++end;
      if (starts(begin, 0) != T(0)) std::fill(state.convolution.begin(), state.convolution.end(), T(0));
      const Index offsets[] = {0, end - begin};
      convolution_.apply(SequenceBatch<State>{states, offsets}, &State::convolution, input.rows(begin, end - begin),
                         output.rows(begin, end - begin), workspace);
    }
  }

  static Config completed(Config config) {
    if (config.width == 0) config.width = config.channels;
    expect(config.channels > 0 && config.width > 0, name, "config.channels", "must be positive, as must width");
    expect(config.convolution_width > 0, name, "config.convolution_width", "must be positive");
    expect_divides(name, "config.heads", config.heads, "width", config.width);
    return config;
  }

  Config config_;
  RgLru<T> unit_;
  Linear<T> projected_, output_;
  ShortConvolution<T> convolution_;
};

static_assert(RecurrentMixer<RgLru<float>> && RecurrentMixer<RgLruBlock<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
