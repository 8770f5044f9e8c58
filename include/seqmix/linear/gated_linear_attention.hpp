// Gated linear attention (GLA): a matrix memory that each key channel forgets at its own pace.
//
//   Source    Yang et al. 2023, arXiv:2312.06635; fla-org/flash-linear-attention, fla/layers/gla.py, fla/ops/gla/naive.py
//   Glossary  L length   D channels   H heads   Hk heads of keys, values and gates   K, V key and value width of one head
//   Engine    engine/linear_recurrence.hpp with decay::PerTokenChannel
//   Size      a core, and a layer with optional convolutions, gates and norms
//
// Core:   S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,   y_t = scale * q_t^T S_t
// Layer:  q, k, v = projections of x, convolved and passed through silu where asked for
//         g = max(logsigmoid(W_2 W_1 x + b) / gate_logit_normalizer, clamp_min)
//         y = W_o (rms(o) * w * silu(W_g x)),   o from the core with scale K^-0.5
// ONNX's LinearAttention: see linear/gated_delta_rule.hpp.
#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <seqmix/core/mixer.hpp>
#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/parts/convolved_streams.hpp>
#include <seqmix/parts/gated_output.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// Gated linear attention from and into `memory` [H, K, V]. query [L, H, K], key, log_decay (<= 0, -infinity allowed)
/// [L, Hk, K], value [L, Hk, V], output [L, H, V]; Hk divides H. Or query and output have a multiple of the memory's
/// heads: consecutive ones then read one memory, at the cost of as many. O(L H K V) time, O(H K V) scratch. Allocates
/// nothing once `workspace` is warm. Throws std::invalid_argument on shapes that do not fit and on outputs that
/// overlap.
template <std::floating_point T>
void gated_linear_attention(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
                            ConstHeadSequence<T> log_decay, std::type_identity_t<T> scale, MemoryView<T> memory,
                            HeadSequence<T> output, Workspace& workspace) {
  constexpr std::string_view name = "gated_linear_attention";
  expect_grouped_recurrence_shapes<T>(name, query, key, value, memory, output);
  expect_shared_heads<T>(name, "log_decay", log_decay, memory.key_dim(), memory, output);
  linear_recurrence(
      LinearRecurrenceProblem<T, decay::PerTokenChannel<T>>{
          query, key, value, {log_decay}, {}, {}, scale, memory, output},
      workspace);
}

/// The layer of gated linear attention.
template <std::floating_point T>
class GatedLinearAttention : public RecurrentMixerBase<GatedLinearAttention<T>, T> {
 public:
  static constexpr std::string_view name = "gated_linear_attention";
  static constexpr StateGrowth growth = StateGrowth::constant;
  using State = ConvolvedMemoryState<T>;

  struct Config {
    Index channels = 0;
    Index heads = 4;
    Index key_value_heads = 0;  ///< Hk; 0 means heads
    Index key_channels = 0;     ///< K H; 0 means channels / 2
    Index value_channels = 0;   ///< V H; 0 means channels
    ConvolvedStreamsConfig convolution{.convolve = false};
    Index gate_rank = 16;
    T gate_logit_normalizer = T(16);
    std::optional<T> clamp_min{};  ///< least log decay
    bool output_gate = true;
    T norm_eps = T(1e-5);
  };

  struct Weights {
    Matrix<T> query, key, value;  // [H K, D], [Hk K, D], [Hk V, D]
    ConvolvedStreamsWeights<T> convolution;
    Matrix<T> decay_down, decay_up;  // [gate_rank, D], [Hk K, gate_rank]
    Vector<T> decay_bias;            // [Hk K]
    Matrix<T> gate;                  // [H V, D], with an output gate
    Vector<T> norm;                  // [V]
    Matrix<T> output;                // [D, H V]
    bool output_gate = true;         // as in Config: checkpoints name the norm after it

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("q_proj.weight", self.query, Presence::required);
      visitor("k_proj.weight", self.key, Presence::required);
      visitor("v_proj.weight", self.value, Presence::required);
      ConvolvedStreamsWeights<T>::visit_all(self.convolution, visitor);
      visitor("gk_proj.0.weight", self.decay_down, Presence::required);
      visitor("gk_proj.1.weight", self.decay_up, Presence::required);
      visitor("gk_proj.1.bias", self.decay_bias, Presence::required);
      visitor("g_proj.weight", self.gate, Presence::optional);
      visitor(self.output_gate ? "g_norm_swish_gate.weight" : "g_norm.weight", self.norm, Presence::required);
      visitor("o_proj.weight", self.output, Presence::required);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless the head counts divide what they must and the shapes of
  /// `weights` follow from `config`.
  GatedLinearAttention(Config config, const Weights& weights)
      : config_(completed(config)),
        streams_(name, config_.convolution, config_.key_channels, shared() * key_dim(), shared() * value_dim(),
                 weights.convolution, activation(), activation()) {
    const Index D = config_.channels, H = config_.heads, K = key_dim(), V = value_dim();
    expect_tensor(name, "q_proj.weight", {H * K, D}, weights.query);
    expect_tensor(name, "k_proj.weight", {shared() * K, D}, weights.key);
    expect_tensor(name, "v_proj.weight", {shared() * V, D}, weights.value);
    expect_tensor(name, "gk_proj.0.weight", {config_.gate_rank, D}, weights.decay_down);
    expect_tensor(name, "gk_proj.1.weight", {shared() * K, config_.gate_rank}, weights.decay_up);
    expect_tensor(name, "gk_proj.1.bias", {shared() * K}, weights.decay_bias);
    if (config_.output_gate) expect_tensor(name, "g_proj.weight", {H * V, D}, weights.gate);
    expect_tensor(name, "g_norm.weight", {V}, weights.norm);
    expect_tensor(name, "o_proj.weight", {D, H * V}, weights.output);
    const Matrix<T> gate = config_.output_gate ? weights.gate : Matrix<T>(0, D);
    input_ = Linear<T>({&weights.query, &weights.key, &weights.value, &weights.decay_down, &gate});
    decay_up_ = Linear<T>(weights.decay_up, weights.decay_bias);
    output_ = GatedOutput<T>(weights.output, weights.norm, config_.norm_eps,
                             config_.output_gate ? GateActivation::swish : GateActivation::none);
  }

  /// Projections uniform in +-inputs^-1/2; the norm's weight is 1.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Config c = completed(config);
    const Index D = c.channels, K = c.key_channels / c.heads, V = c.value_channels / c.heads,
                shared = c.key_value_heads;
    const auto linear = [&](Index outputs, Index inputs) {
      return uniform_matrix<T>(outputs, inputs, std::pow(double(inputs), -0.5), rng);
    };
    const double limit = std::pow(double(c.gate_rank), -0.5);
    return {linear(c.key_channels, D),
            linear(shared * K, D),
            linear(shared * V, D),
            ConvolvedStreams<T>::random_weights(c.convolution, c.key_channels, shared * K, shared * V, rng),
            linear(c.gate_rank, D),
            linear(shared * K, c.gate_rank),
            uniform_vector<T>(shared * K, -limit, limit, rng),
            c.output_gate ? linear(c.value_channels, D) : Matrix<T>(),
            Vector<T>::Ones(V),
            linear(D, c.value_channels),
            c.output_gate};
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: H K V zeros, and those of the convolutions.
  State initial_state() const { return streams_.initial_state(memory_shape()); }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const { streams_.check_state(state, memory_shape()); }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index H = config_.heads;
    ColumnCutter<T> columns(input_.apply(x, workspace));
    const auto query = columns.next(H * key_dim()), key = columns.next(shared() * key_dim());
    const auto value = columns.next(shared() * value_dim()), low_rank = columns.next(config_.gate_rank);
    const auto gate = columns.rest();
    const auto log_decay = decay_up_.apply(low_rank, workspace);
    const Batch<T> factor = broadcast(T(1) / config_.gate_logit_normalizer);
    const Batch<T> least = broadcast(config_.clamp_min.value_or(-std::numeric_limits<T>::infinity()));
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      apply_activation(log_decay.rows(begin, count), [&](const Batch<T>& g) SEQMIX_INLINE_LAMBDA {
        return max_propagating(logsigmoid(g) * factor, least);
      });
    });
    const auto streams = streams_.apply(batch, {query, key, value}, workspace);
    const auto mixed = workspace.heads<T>(x.length(), H, value_dim());
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const Sequence<T>& view, Index heads) {
        return view.rows(batch.begin(b), batch.length(b)).heads(heads);
      };
      gated_linear_attention<T>(rows(streams.query, H), rows(streams.key, shared()), rows(streams.value, shared()),
                                rows(log_decay, shared()), std::pow(T(key_dim()), T(-0.5)), batch.state(b).memory,
                                rows(mixed.flat(), H), workspace);
    }
    output_.apply(mixed, gate, y, workspace);
  }

 private:
  Index key_dim() const { return config_.key_channels / config_.heads; }
  Index value_dim() const { return config_.value_channels / config_.heads; }
  Index shared() const { return config_.key_value_heads; }
  Shape memory_shape() const { return {config_.heads, key_dim(), value_dim()}; }
  StreamActivation activation() const {
    return config_.convolution.convolve ? StreamActivation::swish : StreamActivation::none;
  }

  static Config completed(Config config) {
    if (config.key_value_heads == 0) config.key_value_heads = config.heads;
    if (config.key_channels == 0) config.key_channels = config.channels / 2;
    if (config.value_channels == 0) config.value_channels = config.channels;
    expect(config.channels > 0, name, "config.channels", "must be positive");
    expect_divides(name, "config.heads", config.heads, "key_channels", config.key_channels);
    expect_divides(name, "config.heads", config.heads, "value_channels", config.value_channels);
    expect_divides(name, "config.key_value_heads", config.key_value_heads, "heads", config.heads);
    expect(config.gate_rank > 0, name, "config.gate_rank", "must be positive");
    return config;
  }

  Config config_;
  ConvolvedStreams<T> streams_;
  Linear<T> input_, decay_up_;
  GatedOutput<T> output_;
};

static_assert(RecurrentMixer<GatedLinearAttention<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
