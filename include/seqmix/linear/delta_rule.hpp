// DeltaNet: a matrix memory that gives up what it holds for a key before it takes in a new value for it.
//
//   Source    Schlag et al. 2021, arXiv:2102.11174; Yang et al. 2024, arXiv:2406.06484;
//             fla-org/flash-linear-attention, fla/layers/delta_net.py, fla/ops/delta_rule/naive.py
//   Glossary  L length   D channels   H heads   K, V key and value width of one head
//   Engine    engine/linear_recurrence.hpp with delta::Rule
//
// Core:   S_t = S_{t-1} + k_t (beta_t (v_t - S_{t-1}^T k_t))^T,   y_t = scale * q_t^T S_t
// Layer:  q, k, v = projections of x, convolved; v passes silu, q and k an activation and a norm of their own
//         beta = sigmoid(W_b x), doubled where negative eigenvalues are allowed, or 1
//         y = W_o (rms(o) * w * silu(W_g x)),   o from the core with scale K^-0.5
// ONNX's LinearAttention: see linear/gated_delta_rule.hpp.
#pragma once

#include <seqmix/core/mixer.hpp>
#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/parts/delta_layer.hpp>
#include <seqmix/parts/query_key_norm.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// The delta rule from and into `memory` [H, K, V]. query, key [L, H', K], value [L, H', V], beta [L, H'], output [L,
/// H, V]; every H' divides H. Or query and output have a multiple of H heads: consecutive ones then read one memory, at
/// the cost of as many. Queries and keys are normalised by `norm` as they are read; stable for any L where |k|^2 beta
/// <= 2. O(L H K V) time, O(H K V) scratch. Allocates nothing once `workspace` is warm. Throws std::invalid_argument on
/// shapes that do not fit and on outputs that overlap.
template <std::floating_point T>
void delta_rule(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value, ConstSequence<T> beta,
                std::type_identity_t<T> scale, const QueryKeyNorm& norm, MemoryView<T> memory, HeadSequence<T> output,
                Workspace& workspace) {
  constexpr std::string_view name = "delta_rule";
  expect_grouped_recurrence_shapes<T>(name, query, key, value, memory, output);
  expect_shared_heads<T>(name, "beta", beta, memory, output);
  const RowMap<T> map = query_key_norm_map<T>(norm);
  linear_recurrence(
      LinearRecurrenceProblem<T, decay::None<T>, readout::AfterUpdate<T>, normalizer::None<T>, delta::Rule<T>>{
          query, key, value, {}, {}, {}, scale, memory, output, map, map, {beta}},
      workspace);
}

/// The layer of DeltaNet.
template <std::floating_point T>
class DeltaRule : public RecurrentMixerBase<DeltaRule<T>, T> {
 public:
  static constexpr std::string_view name = "delta_rule";
  static constexpr StateGrowth growth = StateGrowth::constant;
  using State = ConvolvedMemoryState<T>;

  struct Config {
    Index channels = 0;
    Index heads = 4;
    Index key_channels = 0;    ///< K H; 0 means channels
    Index value_channels = 0;  ///< V H; 0 means channels
    ConvolvedStreamsConfig convolution{};
    StreamActivation activation = StreamActivation::swish;  ///< of queries and keys
    QueryKeyNorm norm = QueryKeyNorm::l2;
    bool learned_beta = true;           ///< else beta is 1
    bool negative_eigenvalues = false;  ///< beta doubled
    bool output_gate = false;
    T norm_eps = T(1e-5);
  };

  struct Weights : DeltaLayerWeights<T> {
    Matrix<T> gate;  // [H V, D], with an output gate

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      DeltaLayerWeights<T>::visit_shared(self, visitor);
      visitor("g_proj.weight", self.gate, Presence::optional);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless heads divides key_channels and value_channels and the shapes
  /// of `weights` follow from `config`.
  DeltaRule(const Config& config, const Weights& weights)
      : config_(config), sizes_(sizes(config)), streams_(weights.streams(name, sizes_, config.activation)) {
    const Index D = sizes_.channels;
    weights.check(name, sizes_, config.learned_beta);
    if (config.output_gate) expect_tensor(name, "g_proj.weight", {sizes_.value_channels(), D}, weights.gate);
    const Matrix<T> none(0, D);
    const Matrix<T>& beta = config.learned_beta ? weights.beta : none;
    input_ =
        Linear<T>({&weights.query, &weights.key, &weights.value, &beta, config.output_gate ? &weights.gate : &none});
    output_ = GatedOutput<T>(weights.output, weights.norm, config.norm_eps,
                             config.output_gate ? GateActivation::swish : GateActivation::none);
  }

  /// Projections uniform in +-inputs^-1/2; the norm's weight is 1.
  static Weights random_weights(const Config& config, Rng& rng) {
    const DeltaLayerSizes s = sizes(config);
    return {DeltaLayerWeights<T>::random(s, rng, config.learned_beta),
            random_projection<T>(config.output_gate ? s.value_channels() : 0, s.channels, rng)};
  }

  Index channels() const { return sizes_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: H K V zeros, and those of the convolutions.
  State initial_state() const { return streams_.initial_state(sizes_.memory_shape()); }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const { streams_.check_state(state, sizes_.memory_shape()); }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index H = sizes_.heads, K = sizes_.key_dim, V = sizes_.value_dim;
    ColumnCutter<T> columns(input_.apply(x, workspace));
    const auto query = columns.next(sizes_.key_channels()), key = columns.next(sizes_.key_channels());
    const auto value = columns.next(sizes_.value_channels());
    const auto logits = columns.next(config_.learned_beta ? H : 0), gate = columns.rest();
    apply_beta_gate(logits, config_.negative_eigenvalues);
    const T constant = config_.negative_eigenvalues ? T(2) : T(1);
    const ConstSequence<T> beta = config_.learned_beta ? logits : ConstSequence<T>(&constant, x.length(), 1, 0);
    const auto streams = streams_.apply(batch, {query, key, value}, workspace);
    const auto mixed = workspace.heads<T>(x.length(), H, V);
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const auto& view) { return view.rows(batch.begin(b), batch.length(b)); };
      delta_rule<T>(rows(streams.query).heads(H), rows(streams.key).heads(H), rows(streams.value).heads(H), rows(beta),
                    std::pow(T(K), T(-0.5)), config_.norm, batch.state(b).memory, rows(mixed), workspace);
    }
    output_.apply(mixed, gate, y, workspace);
  }

 private:
  static DeltaLayerSizes sizes(const Config& config) {
    const Index H = config.heads, keys = config.key_channels == 0 ? config.channels : config.key_channels;
    const Index values = config.value_channels == 0 ? config.channels : config.value_channels;
    expect_divides(name, "config.heads", H, "key_channels", keys);
    expect_divides(name, "config.heads", H, "value_channels", values);
    const DeltaLayerSizes result{config.channels, H, H, keys / H, values / H, config.convolution};
    result.check(name);
    return result;
  }

  Config config_;
  DeltaLayerSizes sizes_;
  ConvolvedStreams<T> streams_;
  Linear<T> input_;
  GatedOutput<T> output_;
};

static_assert(RecurrentMixer<DeltaRule<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
