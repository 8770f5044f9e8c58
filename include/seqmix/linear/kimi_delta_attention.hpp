// Kimi delta attention (KDA): the gated delta rule with a decay for each key channel.
//
//   Source    Kimi Team 2025, arXiv:2510.26692; fla-org/flash-linear-attention, fla/layers/kda.py, fla/ops/kda/naive.py
//   Glossary  L length   D channels   H heads of queries and keys   Hv heads of values, gates and the memory
//             K, V key and value width of one head
//   Engine    engine/linear_recurrence.hpp with decay::PerTokenChannel and delta::Rule
//   Size      a core, and a layer with convolutions and low-rank gates
//
// Core:   S' = diag(exp(g_t)) S_{t-1},   S_t = S' + k_t (beta_t (v_t - S'^T k_t))^T,   y_t = scale * q_t^T S_t
// Layer:  q, k, v = projections of x, convolved, silu, q and k of length 1;   f = W_f1 W_f0 x
//         g = -exp(A) softplus(f + b), or lower_bound * sigmoid(exp(A) (f + b))
//         beta = sigmoid(W_b x), doubled where negative eigenvalues are allowed
//         y = W_o (rms(o) * w * sigmoid(W_g1 W_g0 x + b_g)),   o from the core with scale K^-0.5
// ONNX's LinearAttention: see linear/gated_delta_rule.hpp.
#pragma once

#include <optional>
#include <seqmix/core/mixer.hpp>
#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/parts/delta_layer.hpp>
#include <seqmix/parts/query_key_norm.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// The delta rule with decays of channels from and into `memory` [Hv, K, V]. query, key [L, H', K], value [L, H', V],
/// log_decay (<= 0, -infinity allowed) [L, H', K], beta [L, H'], output [L, Hv, V]; every H' divides Hv. Or query and
/// output have a multiple of Hv heads: consecutive ones then read one memory, at the cost of as many. Queries and keys
/// are normalised by `norm` as they are read; stable for any L where |k|^2 beta <= 2. O(L Hv K V) time, O(Hv K V)
/// scratch. Allocates nothing once `workspace` is warm. Throws std::invalid_argument on shapes that do not fit and on
/// outputs that overlap.
template <std::floating_point T>
void kimi_delta_attention(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
                          ConstHeadSequence<T> log_decay, ConstSequence<T> beta, std::type_identity_t<T> scale,
                          const QueryKeyNorm& norm, MemoryView<T> memory, HeadSequence<T> output,
                          Workspace& workspace) {
  constexpr std::string_view name = "kimi_delta_attention";
  expect_grouped_recurrence_shapes<T>(name, query, key, value, memory, output);
  expect_shared_heads<T>(name, "log_decay", log_decay, memory.key_dim(), memory, output);
  expect_shared_heads<T>(name, "beta", beta, memory, output);
  const RowMap<T> map = query_key_norm_map<T>(norm);
  linear_recurrence(
      LinearRecurrenceProblem<T, decay::PerTokenChannel<T>, readout::AfterUpdate<T>, normalizer::None<T>,
                              delta::Rule<T>>{
          query, key, value, {log_decay}, {}, {}, scale, memory, output, map, map, {beta}},
      workspace);
}

/// The layer of Kimi delta attention.
template <std::floating_point T>
class KimiDeltaAttention : public RecurrentMixerBase<KimiDeltaAttention<T>, T> {
 public:
  static constexpr std::string_view name = "kimi_delta_attention";
  static constexpr StateGrowth growth = StateGrowth::constant;
  using State = ConvolvedMemoryState<T>;

  struct Config {
    Index channels = 0;
    Index heads = 16;
    Index value_heads = 0;  ///< Hv; 0 means heads
    Index key_dim = 128;    ///< K
    Index value_dim = 0;    ///< V; 0 means key_dim
    ConvolvedStreamsConfig convolution{};
    bool negative_eigenvalues = false;  ///< beta up to 2
    std::optional<T> lower_bound{};     ///< least log decay, < 0
    T norm_eps = T(1e-5);
    double l2_eps = 1e-6;  ///< in the norm of queries and keys
  };

  struct Weights : DeltaLayerWeights<T> {
    Matrix<T> decay_down, decay_up;  // [V, D], [Hv K, V]
    Vector<T> log_rate, rate_bias;   // [Hv], [Hv K], A and b above
    Matrix<T> gate_down, gate_up;    // [V, D], [Hv V, V]
    Vector<T> gate_bias;             // [Hv V]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      DeltaLayerWeights<T>::visit_shared(self, visitor);
      visitor("f_proj.0.weight", self.decay_down, Presence::required);
      visitor("f_proj.1.weight", self.decay_up, Presence::required);
      visitor("A_log", self.log_rate, Presence::required);
      visitor("dt_bias", self.rate_bias, Presence::required);
      visitor("g_proj.0.weight", self.gate_down, Presence::required);
      visitor("g_proj.1.weight", self.gate_up, Presence::required);
      visitor("g_proj.1.bias", self.gate_bias, Presence::required);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless heads divides value_heads, the lower bound is negative and the
  /// shapes of `weights` follow from `config`.
  KimiDeltaAttention(const Config& config, const Weights& weights)
      : config_(config), sizes_(sizes(config)), streams_(weights.streams(name, sizes_)) {
    const Index D = sizes_.channels, H = sizes_.value_heads, K = sizes_.key_dim, V = sizes_.value_dim;
    weights.check(name, sizes_);
    expect_tensor(name, "f_proj.0.weight", {V, D}, weights.decay_down);
    expect_tensor(name, "f_proj.1.weight", {H * K, V}, weights.decay_up);
    expect_tensor(name, "A_log", {H}, weights.log_rate);
    expect_tensor(name, "dt_bias", {H * K}, weights.rate_bias);
    expect_tensor(name, "g_proj.0.weight", {V, D}, weights.gate_down);
    expect_tensor(name, "g_proj.1.weight", {H * V, V}, weights.gate_up);
    expect_tensor(name, "g_proj.1.bias", {H * V}, weights.gate_bias);
    input_ = Linear<T>(
        {&weights.query, &weights.key, &weights.value, &weights.decay_down, &weights.beta, &weights.gate_down});
    decay_up_ = Linear<T>(weights.decay_up);
    gate_up_ = Linear<T>(weights.gate_up, weights.gate_bias);
    decay_ = DecayGate<T>(weights.log_rate, weights.rate_bias, config.lower_bound);
    output_ = GatedOutput<T>(weights.output, weights.norm, config.norm_eps, GateActivation::logistic);
  }

  /// Projections uniform in +-inputs^-1/2, exp(A) uniform in (1, 16), softplus(b) log-uniform in [0.001, 0.1].
  static Weights random_weights(const Config& config, Rng& rng) {
    const DeltaLayerSizes s = sizes(config);
    const Index H = s.value_heads, V = s.value_dim;
    const double limit = std::pow(double(V), -0.5);
    return {DeltaLayerWeights<T>::random(s, rng),          random_projection<T>(V, s.channels, rng),
            random_projection<T>(H * s.key_dim, V, rng),   DecayGate<T>::random_log_rate(H, 1, 16, rng),
            DecayGate<T>::random_bias(H * s.key_dim, rng), random_projection<T>(V, s.channels, rng),
            random_projection<T>(H * V, V, rng),           uniform_vector<T>(H * V, -limit, limit, rng)};
  }

  Index channels() const { return sizes_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: Hv K V zeros, and those of the convolutions.
  State initial_state() const { return streams_.initial_state(sizes_.memory_shape()); }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const { streams_.check_state(state, sizes_.memory_shape()); }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index H = sizes_.heads, Hv = sizes_.value_heads, K = sizes_.key_dim, V = sizes_.value_dim;
    ColumnCutter<T> columns(input_.apply(x, workspace));
    const auto query = columns.next(sizes_.key_channels()), key = columns.next(sizes_.key_channels());
    const auto value = columns.next(sizes_.value_channels());
    const auto low_rank_decay = columns.next(V), beta = columns.next(Hv), low_rank_gate = columns.rest();
    const auto log_decay = decay_up_.apply(low_rank_decay, workspace);
    const auto gate = gate_up_.apply(low_rank_gate, workspace);
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) { decay_.apply(log_decay.rows(begin, count)); });
    apply_beta_gate(beta, config_.negative_eigenvalues);
    const auto streams = streams_.apply(batch, {query, key, value}, workspace);
    const auto mixed = workspace.heads<T>(x.length(), Hv, V);
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const auto& view) { return view.rows(batch.begin(b), batch.length(b)); };
      kimi_delta_attention<T>(rows(streams.query).heads(H), rows(streams.key).heads(H), rows(streams.value).heads(Hv),
                              rows(log_decay).heads(Hv), rows(beta), std::pow(T(K), T(-0.5)),
                              QueryKeyNorm{QueryKeyNorm::Kind::l2, config_.l2_eps}, batch.state(b).memory, rows(mixed),
                              workspace);
    }
    output_.apply(mixed, gate, y, workspace);
  }

 private:
  static DeltaLayerSizes sizes(const Config& config) {
    const DeltaLayerSizes result{config.channels,
                                 config.heads,
                                 config.value_heads == 0 ? config.heads : config.value_heads,
                                 config.key_dim,
                                 config.value_dim == 0 ? config.key_dim : config.value_dim,
                                 config.convolution};
    result.check(name);
    expect(!config.lower_bound || *config.lower_bound < T(0), name, "config.lower_bound", "must be negative");
    return result;
  }

  Config config_;
  DeltaLayerSizes sizes_;
  ConvolvedStreams<T> streams_;
  Linear<T> input_, decay_up_, gate_up_;
  DecayGate<T> decay_;
  GatedOutput<T> output_;
};

static_assert(RecurrentMixer<KimiDeltaAttention<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
