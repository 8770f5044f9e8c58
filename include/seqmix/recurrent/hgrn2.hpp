// HGRN2: a gated linear recurrence whose state is a matrix, and whose keys are what the gates forget.
//
//   Source    Qin et al. 2024, arXiv:2404.07904; fla-org/flash-linear-attention, fla/layers/hgrn2.py; Doraemonzzz/
//             hgru2-pytorch, hgru2_pytorch/modules/hgru2_1d.py
//   Glossary  L length   D channels   H heads   K, V key and value width of one head   b lower bounds of the gates
//   Engine    engine/linear_recurrence.hpp with decay::PerTokenChannel; the keys are a map of the log decays
//   Size      two layers, of two code bases that share the core
//
// Core:   S_t = diag(exp(g_t)) S_{t-1} + (1 - exp(g_t)) v_t^T,   y_t = scale * q_t^T S_t
// Layers: exp(g) = b + (1 - b) sigmoid(f)
//         Hgrn2  q, f, v = projections of x, convolved where asked for, q through silu
//                y = W_o (rms(o) * w), rms over all heads together,   o from the core with scale K^-0.5
//         Hgru2  the authors': v, q, f = W x + b_in;   y = W_o layer_norm(o) + b_o,
//                o from the core with silu(v), sigmoid(q) and scale 1
#pragma once

#include <cmath>
#include <seqmix/core/mixer.hpp>
#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/parts/convolved_streams.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/lower_bounded_gate.hpp>
#include <seqmix/parts/norm.hpp>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// 1 - e^x, the part that a gate of logarithm x lets in.
struct Admitted {
  template <class B>
  SEQMIX_ALWAYS_INLINE B operator()(const B& x) const {
    return -expm1(x);
  }
};

}  // namespace detail

/// The recurrence of HGRN2 from and into `memory` [H, K, V]. query, log_decay (<= 0, -infinity allowed) [L, H', K], value
/// [L, H', V], output [L, H, V]; every H' divides H. A memory within +-max |v| stays there. O(L H K V) time, O(H K V)
/// scratch. Allocates nothing once `workspace` is warm. Throws std::invalid_argument on shapes that do not fit and on
/// outputs that overlap.
template <std::floating_point T>
void hgrn2(ConstHeadSequence<T> query, ConstHeadSequence<T> log_decay, ConstHeadSequence<T> value,
           std::type_identity_t<T> scale, MemoryView<T> memory, HeadSequence<T> output, Workspace& workspace) {
  expect_shared_heads<T>("hgrn2", "log_decay", log_decay, memory.key_dim(), memory, output);
  expect_recurrence_shapes<T>("hgrn2", query, log_decay, value, memory, output);
  linear_recurrence(LinearRecurrenceProblem<T, decay::PerTokenChannel<T>>{query,
                                                                          log_decay,
                                                                          value,
                                                                          {log_decay},
                                                                          {},
                                                                          {},
                                                                          scale,
                                                                          memory,
                                                                          output,
                                                                          row_map<T>,
                                                                          row_map<T, detail::Admitted>},
                    workspace);
}

/// The layer of HGRN2 in flash-linear-attention.
template <std::floating_point T>
class Hgrn2 : public RecurrentMixerBase<Hgrn2<T>, T> {
 public:
  static constexpr std::string_view name = "hgrn2";
  static constexpr StateGrowth growth = StateGrowth::constant;
  using State = ConvolvedMemoryState<T>;  // key and value: of the gates and the inputs

  struct Config {
    Index channels = 0;
    Index heads = 0;      ///< 0 means channels / key_dim
    Index key_dim = 128;  ///< K, the expansion of the state; V is channels / heads
    ConvolvedStreamsConfig convolution{.convolve = false};
    T norm_eps = T(1e-5);
  };

  struct Weights {
    Matrix<T> query, forget, input;          // [H K, D], [H K, D], [D, D]
    ConvolvedStreamsWeights<T> convolution;  // of query, forget and input
    Vector<T> lower_bound;                   // [H K], in [0, 1); empty: zeros
    Vector<T> norm;                          // [D]
    Matrix<T> output;                        // [D, D]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("q_proj.weight", self.query, Presence::required);
      visitor("f_proj.weight", self.forget, Presence::required);
      visitor("i_proj.weight", self.input, Presence::required);
      visitor("q_conv1d.weight", self.convolution.query, Presence::optional);
      visitor("q_conv1d.bias", self.convolution.query_bias, Presence::optional);
      visitor("f_conv1d.weight", self.convolution.key, Presence::optional);
      visitor("f_conv1d.bias", self.convolution.key_bias, Presence::optional);
      visitor("i_conv1d.weight", self.convolution.value, Presence::optional);
      visitor("i_conv1d.bias", self.convolution.value_bias, Presence::optional);
      visitor("lower_bound", self.lower_bound, Presence::optional);
      visitor("g_norm.weight", self.norm, Presence::required);
      visitor("o_proj.weight", self.output, Presence::required);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless heads divides channels and the shapes of `weights` follow from
  /// `config`.
  Hgrn2(const Config& config, const Weights& weights)
      : config_(completed(config)),
        streams_(name, config_.convolution, key_channels(), key_channels(), config_.channels, weights.convolution,
                 StreamActivation::none, StreamActivation::none),
        input_({&weights.query, &weights.forget, &weights.input}),
        lower_bound_(weights.lower_bound),
        norm_(weights.norm),
        output_(weights.output) {
    const Index D = config_.channels, keys = key_channels();
    expect_tensor(name, "q_proj.weight", {keys, D}, weights.query);
    expect_tensor(name, "f_proj.weight", {keys, D}, weights.forget);
    expect_tensor(name, "i_proj.weight", {D, D}, weights.input);
    if (weights.lower_bound.size() > 0) expect_tensor(name, "lower_bound", {keys}, weights.lower_bound);
    expect_tensor(name, "g_norm.weight", {D}, weights.norm);
    expect_tensor(name, "o_proj.weight", {D, D}, weights.output);
  }

  /// Projections uniform in +-inputs^-1/2; no lower bounds; the norm's weight is 1.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Config c = completed(config);
    const Index D = c.channels, keys = c.heads * c.key_dim;
    const double limit = std::pow(double(D), -0.5);
    return {uniform_matrix<T>(keys, D, limit, rng),
            uniform_matrix<T>(keys, D, limit, rng),
            uniform_matrix<T>(D, D, limit, rng),
            ConvolvedStreams<T>::random_weights(c.convolution, keys, keys, D, rng),
            {},
            Vector<T>::Ones(D),
            uniform_matrix<T>(D, D, limit, rng)};
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: K D zeros, and those of the convolutions.
  State initial_state() const { return streams_.initial_state(memory_shape()); }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const { streams_.check_state(state, memory_shape()); }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index H = config_.heads, K = config_.key_dim;
    ColumnCutter<T> columns(input_.apply(x, workspace));
    const auto query = columns.next(key_channels()), forget = columns.next(key_channels()), input = columns.rest();
    const auto streams = streams_.apply(batch, {query, forget, input}, workspace);
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      apply_silu(streams.query.rows(begin, count));
      apply_lower_bounded_gate<T>(streams.key.rows(begin, count), lower_bound_);
    });
    const auto mixed = workspace.sequence<T>(x.length(), channels());
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const Sequence<T>& view) { return view.rows(batch.begin(b), batch.length(b)).heads(H); };
      hgrn2<T>(rows(streams.query), rows(streams.key), rows(streams.value), std::pow(T(K), T(-0.5)),
               batch.state(b).memory, rows(mixed), workspace);
    }
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      rms_normalize(mixed.rows(begin, count).heads(1), config_.norm_eps, norm_);
    });
    output_.apply(mixed, y, workspace);
  }

 private:
  Index key_channels() const { return config_.heads * config_.key_dim; }
  Shape memory_shape() const { return {config_.heads, config_.key_dim, channels() / config_.heads}; }

  static Config completed(Config config) {
    expect(config.channels > 0 && config.key_dim > 0, name, "config.key_dim", "must be positive, as must channels");
    if (config.heads == 0) config.heads = config.channels / config.key_dim;
    expect_divides(name, "config.heads", config.heads, "channels", config.channels);
    return config;
  }

  Config config_;
  ConvolvedStreams<T> streams_;
  Linear<T> input_;
  Vector<T> lower_bound_, norm_;
  Linear<T> output_;
};

/// The authors' layer of HGRN2.
template <std::floating_point T>
class Hgru2 : public RecurrentMixerBase<Hgru2<T>, T> {
 public:
  static constexpr std::string_view name = "hgrn2";
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 0;
    Index head_dim = 128;  ///< K = V, the expansion of the state; divides channels
    bool bias = true;
    T norm_eps = T(1e-5);
  };

  struct Weights {
    Matrix<T> input;                   // [3 D, D]: values, queries, gates
    Vector<T> input_bias;              // [3 D], with biases
    Vector<T> lower_bound;             // [D], in [0, 1); empty: zeros
    Vector<T> norm_weight, norm_bias;  // [D]
    Matrix<T> output;                  // [D, D]
    Vector<T> output_bias;             // [D], with biases

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("in_proj.weight", self.input, Presence::required);
      visitor("in_proj.bias", self.input_bias, Presence::optional);
      visitor("lower_bound", self.lower_bound, Presence::optional);
      visitor("norm.weight", self.norm_weight, Presence::required);
      visitor("norm.bias", self.norm_bias, Presence::required);
      visitor("out_proj.weight", self.output, Presence::required);
      visitor("out_proj.bias", self.output_bias, Presence::optional);
    }
  };

  struct State {
    Tensor<T> memory;  // [H, K, K]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("memory", self.memory);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless head_dim divides channels and the shapes of `weights` follow
  /// from `config`.
  Hgru2(const Config& config, const Weights& weights)
      : config_(checked(config)),
        lower_bound_(weights.lower_bound),
        norm_weight_(weights.norm_weight),
        norm_bias_(weights.norm_bias) {
    const Index D = config.channels;
    expect_tensor(name, "in_proj.weight", {3 * D, D}, weights.input);
    expect_tensor(name, "out_proj.weight", {D, D}, weights.output);
    if (config.bias) expect_tensor(name, "in_proj.bias", {3 * D}, weights.input_bias);
    if (config.bias) expect_tensor(name, "out_proj.bias", {D}, weights.output_bias);
    if (weights.lower_bound.size() > 0) expect_tensor(name, "lower_bound", {D}, weights.lower_bound);
    expect_tensor(name, "norm.weight", {D}, weights.norm_weight);
    expect_tensor(name, "norm.bias", {D}, weights.norm_bias);
    input_ = Linear<T>(weights.input, config.bias ? weights.input_bias : Vector<T>());
    output_ = Linear<T>(weights.output, config.bias ? weights.output_bias : Vector<T>());
  }

  /// Projections and biases uniform in +-D^-1/2; no lower bounds; the norm's weight is 1.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Index D = checked(config).channels;
    const double limit = std::pow(double(D), -0.5);
    return {uniform_matrix<T>(3 * D, D, limit, rng),
            uniform_vector<T>(config.bias ? 3 * D : 0, -limit, limit, rng),
            {},
            Vector<T>::Ones(D),
            Vector<T>::Zero(D),
            uniform_matrix<T>(D, D, limit, rng),
            uniform_vector<T>(config.bias ? D : 0, -limit, limit, rng)};
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: K D zeros.
  State initial_state() const { return {Tensor<T>(memory_shape())}; }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    expect_shape(name, "state.memory", memory_shape(), state.memory.shape());
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index D = channels(), K = config_.head_dim, H = D / K;
    ColumnCutter<T> columns(input_.apply(x, workspace));
    const auto value = columns.next(D), query = columns.next(D), forget = columns.rest();
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      apply_silu(value.rows(begin, count));
      apply_sigmoid(query.rows(begin, count));
      apply_lower_bounded_gate<T>(forget.rows(begin, count), lower_bound_);
    });
    const auto mixed = workspace.sequence<T>(x.length(), D);
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const Sequence<T>& view) { return view.rows(batch.begin(b), batch.length(b)).heads(H); };
      hgrn2<T>(rows(query), rows(forget), rows(value), T(1), batch.state(b).memory, rows(mixed), workspace);
    }
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      const auto block = mixed.rows(begin, count);
      layer_normalize(block, block, config_.norm_eps, norm_weight_, norm_bias_);
    });
    output_.apply(mixed, y, workspace);
  }

 private:
  static const Config& checked(const Config& config) {
    expect_divides(name, "config.head_dim", config.head_dim, "channels", config.channels);
    return config;
  }

  Shape memory_shape() const { return {channels() / config_.head_dim, config_.head_dim, config_.head_dim}; }

  Config config_;
  Linear<T> input_;
  Vector<T> lower_bound_, norm_weight_, norm_bias_;
  Linear<T> output_;
};

static_assert(RecurrentMixer<Hgrn2<float>> && RecurrentMixer<Hgru2<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
