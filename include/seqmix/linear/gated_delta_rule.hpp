// Gated DeltaNet: a matrix memory that fades and, before it takes in a value, gives up what it holds for the same key.
//
//   Source    Yang et al. 2024, arXiv:2412.06464; fla-org/flash-linear-attention, fla/layers/gated_deltanet.py,
//             fla/ops/gated_delta_rule/naive.py
//   Glossary  L length   D channels   H heads of queries and keys   Hv heads of values, gates and the memory
//             K, V key and value width of one head
//   Engine    engine/linear_recurrence.hpp with decay::PerToken and delta::Rule
//   Size      a core, and a layer with convolutions and two gates
//
// Core:   S' = exp(g_t) S_{t-1},   S_t = S' + k_t (beta_t (v_t - S'^T k_t))^T,   y_t = scale * q_t^T S_t
// Layer:  q, k, v = projections of x, convolved, silu, q and k of length 1
//         g = -exp(A) softplus(W_a x + b),   beta = sigmoid(W_b x), doubled where negative eigenvalues are allowed
//         y = W_o (rms(o) * w * silu(W_g x)),   o from the core with scale K^-0.5
//
// The operator LinearAttention of ONNX (opset 27) is these core functions, by its update_rule and decay:
//   linear                            linear_attention, with the identity as feature map and without normalisation
//   gated        decay [B, T, G]      simple_gated_linear_attention, G = kv_num_heads
//   gated        decay [B, T, G K]    gated_linear_attention
//   delta                             delta_rule
//   gated_delta  decay [B, T, G]      gated_delta_rule
//   gated_delta  decay [B, T, G K]    kimi_delta_attention
// One call for each sequence of the batch. query, key, value [T, heads * width] are Sequences: .heads(q_num_heads) and
// .heads(kv_num_heads) view them as [T, heads, width] without a copy. decay and beta [T, kv_num_heads] are Sequences as
// they are; a beta [T, 1] is one head shared by all. Decays are logarithms in both. The state [kv_num_heads, K, V] is
// `memory`, which the query heads of a group share as there. It is updated in place: past_state and present_state may be one
// buffer, otherwise copy past_state into present_state, or fill that with zeros, and call with present_state. A scale of 0
// there stands for K^-0.5. Keys come as they are to be used: QueryKeyNorm::none. chunk_size is a hint for other machines:
// nothing depends on it, and results depend on how a sequence is cut into calls by their rounding only. The input erase_gate
// that drafts add is not served.
#pragma once

#include <seqmix/core/mixer.hpp>
#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/parts/delta_layer.hpp>
#include <seqmix/parts/query_key_norm.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// The gated delta rule from and into `memory` [Hv, K, V]. query, key [L, H, K], value [L, H', V], log_decay (<= 0,
/// -infinity allowed) and beta [L, H'], output [L, Hv, V]; every number of heads divides Hv. Or query and output have a
/// multiple of Hv heads: consecutive ones then read one memory, at the cost of as many. Queries and keys are normalised
/// by `norm` as they are read; stable for any L where |k|^2 beta <= 2. O(L Hv K V) time, O(Hv K V) scratch. Allocates
/// nothing once `workspace` is warm. Throws std::invalid_argument on shapes that do not fit and on outputs that
/// overlap.
template <std::floating_point T>
void gated_delta_rule(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
                      ConstSequence<T> log_decay, ConstSequence<T> beta, std::type_identity_t<T> scale,
                      const QueryKeyNorm& norm, MemoryView<T> memory, HeadSequence<T> output, Workspace& workspace) {
  constexpr std::string_view name = "gated_delta_rule";
  expect_grouped_recurrence_shapes<T>(name, query, key, value, memory, output);
  expect_shared_heads<T>(name, "log_decay", log_decay, memory, output);
  expect_shared_heads<T>(name, "beta", beta, memory, output);
  const RowMap<T> map = query_key_norm_map<T>(norm);
  linear_recurrence(
      LinearRecurrenceProblem<T, decay::PerToken<T>, readout::AfterUpdate<T>, normalizer::None<T>, delta::Rule<T>>{
          query, key, value, {log_decay}, {}, {}, scale, memory, output, map, map, {beta}},
      workspace);
}

/// The layer of Gated DeltaNet.
template <std::floating_point T>
class GatedDeltaRule : public RecurrentMixerBase<GatedDeltaRule<T>, T> {
 public:
  static constexpr std::string_view name = "gated_delta_rule";
  static constexpr StateGrowth growth = StateGrowth::constant;
  using State = ConvolvedMemoryState<T>;

  struct Config {
    Index channels = 0;
    Index heads = 6;
    Index value_heads = 0;  ///< Hv; 0 means heads
    Index key_dim = 256;    ///< K
    Index value_dim = 0;    ///< V; 0 means 2 key_dim
    ConvolvedStreamsConfig convolution{};
    bool output_gate = true;
    bool negative_eigenvalues = false;  ///< beta up to 2
    T norm_eps = T(1e-5);
    double l2_eps = 1e-6;  ///< in the norm of queries and keys
  };

  struct Weights : DeltaLayerWeights<T> {
    Matrix<T> decay;                // [Hv, D]
    Vector<T> log_rate, rate_bias;  // [Hv], A and b above
    Matrix<T> gate;                 // [Hv V, D], with an output gate

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      DeltaLayerWeights<T>::visit_shared(self, visitor);
      visitor("a_proj.weight", self.decay, Presence::required);
      visitor("A_log", self.log_rate, Presence::required);
      visitor("dt_bias", self.rate_bias, Presence::required);
      visitor("g_proj.weight", self.gate, Presence::optional);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless heads divides value_heads and the shapes of `weights` follow
  /// from `config`.
  GatedDeltaRule(const Config& config, const Weights& weights)
      : config_(config), sizes_(sizes(config)), streams_(weights.streams(name, sizes_)) {
    const Index D = sizes_.channels, H = sizes_.value_heads;
    weights.check(name, sizes_);
    expect_tensor(name, "a_proj.weight", {H, D}, weights.decay);
    expect_tensor(name, "A_log", {H}, weights.log_rate);
    expect_tensor(name, "dt_bias", {H}, weights.rate_bias);
    if (config.output_gate) expect_tensor(name, "g_proj.weight", {sizes_.value_channels(), D}, weights.gate);
    const Matrix<T> gate = config.output_gate ? weights.gate : Matrix<T>(0, D);
    input_ = Linear<T>({&weights.query, &weights.key, &weights.value, &weights.decay, &weights.beta, &gate});
    decay_ = DecayGate<T>(weights.log_rate, weights.rate_bias);
    output_ = GatedOutput<T>(weights.output, weights.norm, config.norm_eps,
                             config.output_gate ? GateActivation::swish : GateActivation::none);
  }

  /// Projections uniform in +-inputs^-1/2, exp(A) uniform in (0, 16), softplus(b) log-uniform in [0.001, 0.1].
  static Weights random_weights(const Config& config, Rng& rng) {
    const DeltaLayerSizes s = sizes(config);
    return {DeltaLayerWeights<T>::random(s, rng), random_projection<T>(s.value_heads, s.channels, rng),
            DecayGate<T>::random_log_rate(s.value_heads, 1e-4, 16, rng), DecayGate<T>::random_bias(s.value_heads, rng),
            random_projection<T>(config.output_gate ? s.value_channels() : 0, s.channels, rng)};
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
    const auto log_decay = columns.next(Hv), beta = columns.next(Hv), gate = columns.rest();
    decay_.apply(log_decay);
    apply_beta_gate(beta, config_.negative_eigenvalues);
    const auto streams = streams_.apply(batch, {query, key, value}, workspace);
    const auto mixed = workspace.heads<T>(x.length(), Hv, V);
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const auto& view) { return view.rows(batch.begin(b), batch.length(b)); };
      gated_delta_rule<T>(rows(streams.query).heads(H), rows(streams.key).heads(H), rows(streams.value).heads(Hv),
                          rows(log_decay), rows(beta), std::pow(T(K), T(-0.5)),
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
                                 config.value_dim == 0 ? 2 * config.key_dim : config.value_dim,
                                 config.convolution};
    result.check(name);
    return result;
  }

  Config config_;
  DeltaLayerSizes sizes_;
  ConvolvedStreams<T> streams_;
  Linear<T> input_;
  DecayGate<T> decay_;
  GatedOutput<T> output_;
};

static_assert(RecurrentMixer<GatedDeltaRule<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
