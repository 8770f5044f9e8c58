// Gated slot attention (GSA): softmax attention over a fixed number of slots, which keep what the tokens write into them.
//
//   Source    Zhang et al. 2024, arXiv:2409.07146; fla-org/flash-linear-attention, fla/layers/gsa.py, fla/ops/gsa/naive.py
//   Glossary  L length   D channels   H heads   Hk heads of keys, values, slots and gates   K, V key and value width of one
//             head   M slots of one head
//   Engine    engine/linear_recurrence.hpp, twice: with decay::PerTokenValueChannel, then with decay::PerTokenChannel
//   Size      two memories, which the core's queries may share, and a layer
//   Rounding  In float a factor of Sk near 1 is taken as it rounds, off by up to 2^-25 and the same way at every token that has
//             it; those of Sv are not (decay::PerTokenValueChannel, engine/linear_recurrence_fading.hpp).
//   Differs   The layer's norm_eps is 1e-5 whatever its configuration says, as in the authors' code.
//
// Core:   Sk_t = Sk_{t-1} diag(exp(g_t)) + k_t s_t^T,   p_t = softmax over slots of scale * q_t^T Sk_t
//         Sv_t = diag(exp(g_t)) Sv_{t-1} + s_t v_t^T,   y_t = p_t^T Sv_t
// Layer:  q, k, v = projections of x, convolved and passed through silu where asked for; then the feature map on q and k, silu
//         on v;   g = logsigmoid(W_f x) / gate_logit_normalizer,   s = 1 - exp(g)
//         y = W_o (rms(silu(o)) * w), rms over all heads together,   o from the core with scale 1
#pragma once

#include <algorithm>
#include <cmath>
#include <seqmix/core/mixer.hpp>
#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/parts/convolved_streams.hpp>
#include <seqmix/parts/linear.hpp>
#include <seqmix/parts/norm.hpp>
#include <seqmix/parts/softmax.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// Gated slot attention from and into `key_memory` [Hm, K, M] and `value_memory` [Hm, M, V]. query [L, H, K], key [L, H', K],
/// value [L, H', V], slot and log_decay (<= 0, -infinity allowed) [L, H', M], output [L, H, V]; every H' divides Hm, and Hm
/// divides H: consecutive heads of the queries share memories. O(L H M (K + V)) time, O(H M (K + V)) scratch. Allocates
/// nothing once `workspace` is warm. Throws std::invalid_argument on shapes that do not fit and on outputs that overlap.
template <std::floating_point T>
void gated_slot_attention(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
                          ConstHeadSequence<T> slot, ConstHeadSequence<T> log_decay, std::type_identity_t<T> scale,
                          MemoryView<T> key_memory, MemoryView<T> value_memory, HeadSequence<T> output,
                          Workspace& workspace) {
  constexpr std::string_view name = "gated_slot_attention";
  constexpr Index block = 256;  // tokens between whose passes the logits stay in the second-level cache
  const Index heads = output.heads(), memories = value_memory.heads(), slots = value_memory.key_dim();
  expect_divides(name, "heads of value_memory", memories, "heads of output", heads);
  expect_shape(name, "key_memory", {memories, query.head_dim(), slots}, key_memory.shape());
  expect_shape(name, "query", {output.length(), heads, query.head_dim()}, query);
  expect_shape(name, "output", {output.length(), heads, value_memory.value_dim()}, output);
  const auto expect_stream = [&](std::string_view stream, const HeadSequence<const T>& view, Index channels) {
    expect_shared_heads<T>(name, stream, view, channels, value_memory, output);
    expect_disjoint(name, "key_memory", key_memory, stream, view);
  };
  expect_stream("key", key, query.head_dim());
  expect_stream("value", value, value_memory.value_dim());
  expect_stream("slot", slot, slots);
  expect_stream("log_decay", log_decay, slots);
  expect_apart_from_results(name, "query", query, value_memory, output);
  expect_apart_from_results(name, "key_memory", key_memory, value_memory, output);
  expect_disjoint(name, "key_memory", key_memory, "query", query);
  expect_disjoint(name, "output", output, "value_memory", value_memory);
  for (Index begin = 0; begin < output.length(); begin += block) {
    const Index count = std::min(block, output.length() - begin);
    const auto rows = [&](const auto& view) { return view.rows(begin, count); };
    const auto frame = workspace.frame();
    const auto logits = workspace.heads<T>(count, heads, slots);
    linear_recurrence(
        LinearRecurrenceProblem<T, decay::PerTokenValueChannel<T>>{
            rows(query), rows(key), rows(slot), {rows(log_decay)}, {}, {}, scale, key_memory, logits},
        workspace);
    linear_recurrence(LinearRecurrenceProblem<T, decay::PerTokenChannel<T>>{logits,
                                                                            rows(slot),
                                                                            rows(value),
                                                                            {rows(log_decay)},
                                                                            {},
                                                                            {},
                                                                            T(1),
                                                                            value_memory,
                                                                            rows(output),
                                                                            softmax_map<T>},
                      workspace);
  }
}

/// The layer of gated slot attention.
template <std::floating_point T>
class GatedSlotAttention : public RecurrentMixerBase<GatedSlotAttention<T>, T> {
 public:
  static constexpr std::string_view name = "gated_slot_attention";
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 0;
    Index heads = 4;
    Index key_value_heads = 0;  ///< Hk; 0 means heads
    Index slots = 0;            ///< M; 0 means K
    Index key_channels = 0;     ///< K H; 0 means channels
    Index value_channels = 0;   ///< V H; 0 means channels
    ConvolvedStreamsConfig convolution{.convolve = false};
    StreamActivation feature_map = StreamActivation::swish;  ///< of queries and keys, after the convolution's own silu
    T gate_logit_normalizer = T(8);
    T scale = T(1);  ///< of the queries
  };

  struct Weights {
    Matrix<T> query, key, value;  // [H K, D], [Hk K, D], [Hk V, D]
    ConvolvedStreamsWeights<T> convolution;
    Matrix<T> forget;  // [Hk M, D]
    Vector<T> norm;    // [H V]
    Matrix<T> output;  // [D, H V]

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("q_proj.weight", self.query, Presence::required);
      visitor("k_proj.weight", self.key, Presence::required);
      visitor("v_proj.weight", self.value, Presence::required);
      ConvolvedStreamsWeights<T>::visit_all(self.convolution, visitor);
      visitor("f_proj.weight", self.forget, Presence::required);
      visitor("g_norm.weight", self.norm, Presence::required);
      visitor("o_proj.weight", self.output, Presence::required);
    }
  };

  struct State {
    Tensor<T> key_memory, value_memory;  // [H, K, M], [H, M, V]
    Tensor<T> query, key, value;         // [width, channels], the last inputs of the convolutions, oldest first

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("key_memory", self.key_memory), visitor("value_memory", self.value_memory);
      visitor("query", self.query), visitor("key", self.key), visitor("value", self.value);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless the head counts divide what they must and the shapes of
  /// `weights` follow from `config`.
  GatedSlotAttention(const Config& config, const Weights& weights)
      : config_(completed(config)),
        streams_(name, config_.convolution, config_.key_channels, shared() * key_dim(), shared() * value_dim(),
                 weights.convolution, activation(), activation()),
        input_({&weights.query, &weights.key, &weights.value, &weights.forget}),
        norm_(weights.norm),
        output_(weights.output) {
    const Index D = config_.channels;
    expect_tensor(name, "q_proj.weight", {config_.key_channels, D}, weights.query);
    expect_tensor(name, "k_proj.weight", {shared() * key_dim(), D}, weights.key);
    expect_tensor(name, "v_proj.weight", {shared() * value_dim(), D}, weights.value);
    expect_tensor(name, "f_proj.weight", {shared() * config_.slots, D}, weights.forget);
    expect_tensor(name, "g_norm.weight", {config_.value_channels}, weights.norm);
    expect_tensor(name, "o_proj.weight", {D, config_.value_channels}, weights.output);
  }

  /// Projections uniform in +-inputs^-1/2; the norm's weight is 1.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Config c = completed(config);
    const Index D = c.channels, shared = c.key_value_heads;
    const Index keys = shared * c.key_channels / c.heads, values = shared * c.value_channels / c.heads;
    const auto linear = [&](Index outputs, Index inputs) {
      return uniform_matrix<T>(outputs, inputs, std::pow(double(inputs), -0.5), rng);
    };
    return {linear(c.key_channels, D),
            linear(keys, D),
            linear(values, D),
            ConvolvedStreams<T>::random_weights(c.convolution, c.key_channels, keys, values, rng),
            linear(shared * c.slots, D),
            Vector<T>::Ones(c.value_channels),
            linear(D, c.value_channels)};
  }

  Index channels() const { return config_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: H M (K + V) zeros, and those of the convolutions.
  State initial_state() const {
    auto [memory, query, key, value] = streams_.initial_state(key_memory_shape());
    return {std::move(memory), Tensor<T>(value_memory_shape()), std::move(query), std::move(key), std::move(value)};
  }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    expect_shape(name, "state.key_memory", key_memory_shape(), state.key_memory.shape());
    expect_shape(name, "state.value_memory", value_memory_shape(), state.value_memory.shape());
    streams_.check_histories(state);
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    const Index H = config_.heads;
    ColumnCutter<T> columns(input_.apply(x, workspace));
    const auto query = columns.next(config_.key_channels), key = columns.next(shared() * key_dim());
    const auto value = columns.next(shared() * value_dim()), log_decay = columns.rest();
    const auto slot = workspace.sequence<T>(x.length(), log_decay.channels());
    const auto streams = streams_.apply(batch, {query, key, value}, workspace);
    const Batch<T> factor = broadcast(T(1) / config_.gate_logit_normalizer);
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      apply_stream_activation(streams.query.rows(begin, count), config_.feature_map);
      apply_stream_activation(streams.key.rows(begin, count), config_.feature_map);
      apply_silu(streams.value.rows(begin, count));
      for (Index t = begin; t < begin + count; ++t) {
        T* const gates = log_decay.row(t);
        map_row(
            log_decay.channels(), gates, [&](const Batch<T>& f) SEQMIX_INLINE_LAMBDA { return logsigmoid(f) * factor; },
            gates);
        map_row(
            log_decay.channels(), slot.row(t), [](const Batch<T>& g) SEQMIX_INLINE_LAMBDA { return -expm1(g); }, gates);
      }
    });
    const auto mixed = workspace.sequence<T>(x.length(), config_.value_channels);
    for (Index b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const Sequence<T>& view, Index heads) {
        return view.rows(batch.begin(b), batch.length(b)).heads(heads);
      };
      gated_slot_attention<T>(rows(streams.query, H), rows(streams.key, shared()), rows(streams.value, shared()),
                              rows(slot, shared()), rows(log_decay, shared()), config_.scale, batch.state(b).key_memory,
                              batch.state(b).value_memory, rows(mixed, H), workspace);
    }
    workspace.for_row_blocks(x.length(), [&](Index begin, Index count) {
      apply_silu(mixed.rows(begin, count));
      rms_normalize(mixed.rows(begin, count).heads(1), norm_eps, norm_);
    });
    output_.apply(mixed, y, workspace);
  }

 private:
  static constexpr T norm_eps = T(1e-5);

  Index key_dim() const { return config_.key_channels / config_.heads; }
  Index value_dim() const { return config_.value_channels / config_.heads; }
  Index shared() const { return config_.key_value_heads; }
  Shape key_memory_shape() const { return {config_.heads, key_dim(), config_.slots}; }
  Shape value_memory_shape() const { return {config_.heads, config_.slots, value_dim()}; }
  StreamActivation activation() const {
    return config_.convolution.convolve ? StreamActivation::swish : StreamActivation::none;
  }

  static Config completed(Config config) {
    if (config.key_value_heads == 0) config.key_value_heads = config.heads;
    if (config.key_channels == 0) config.key_channels = config.channels;
    if (config.value_channels == 0) config.value_channels = config.channels;
    expect(config.channels > 0, name, "config.channels", "must be positive");
    expect_divides(name, "config.heads", config.heads, "key_channels", config.key_channels);
    expect_divides(name, "config.heads", config.heads, "value_channels", config.value_channels);
    expect_divides(name, "config.key_value_heads", config.key_value_heads, "heads", config.heads);
    if (config.slots == 0) config.slots = config.key_channels / config.heads;
    expect(config.slots > 0, name, "config.slots", "must be positive");
    return config;
  }

  Config config_;
  ConvolvedStreams<T> streams_;
  Linear<T> input_;
  Vector<T> norm_;
  Linear<T> output_;
};

static_assert(RecurrentMixer<GatedSlotAttention<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
