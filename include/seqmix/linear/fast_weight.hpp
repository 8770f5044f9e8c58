// Fast weight programmers: a slow net writes keys, values and rates by which a memory, the fast net, is reprogrammed at
// every token under the delta rule.
//
//   Source    Schlag, Irie and Schmidhuber 2021, arXiv:2102.11174; Irie et al. 2021, arXiv:2106.06295;
//             IDSIA/lmtool-fwp, src/utils/cuda_fast_weight_layer.py; IDSIA/recurrent-fwp, algorithmic/layers.py
//   Glossary  L length   D channels   H heads   d channels of a head   F features   V value width of one head
//   Engine    engine/linear_recurrence.hpp with delta::Rule and, where outputs are normalised, normalizer::KeySum
//   Size      a core with its checks of features and sums, and the layer
//
// Core:   k, q = features of the keys and queries, elu(x) + 1 or DPFP, over their sum (parts/fast_weight_features.hpp)
//         W_t = W_{t-1} + k_t (beta_t (v_t - W_{t-1}^T k_t))^T,   z_t = z_{t-1} + k_t
//         y_t = scale W_t^T q_t, or scale W_t^T q_t / (q_t . z_t + epsilon)
// Layer:  q, k, v, beta = slow net, beta through a sigmoid;   projection of what the heads read, residual and layer
//         norm in one of three forms (parts/fast_weight_layer.hpp)
#pragma once

#include <seqmix/core/mixer.hpp>
#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/parts/delta_layer.hpp>
#include <seqmix/parts/fast_weight_features.hpp>
#include <seqmix/parts/fast_weight_layer.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// Options of fast weight programmers.
template <std::floating_point T>
struct FastWeightOptions {
  FastWeightFeatures features{};
  T scale = T(1);
  bool normalize = false;  ///< divide by q . z + epsilon
  T epsilon = T(1e-5);
};

/// Fast weights from and into `memory` [H, F, V] and `key_sum` [H, F] (left alone unless normalising). query, key [L,
/// H', d], value [L, H', V], beta [L, H'] in (0, 1), output [L, H, V]; every H' divides H, and F follows from d. Stable
/// for any L where features are divided by their sum. With a `key_sum_compensation` [H, F], z_t is the sum of it and
/// key_sum, and keeps its digits over any number of pieces (see SummedMemory). O(L H F V) time, O(H F V) scratch.
/// Allocates nothing once `workspace` is warm. Throws std::invalid_argument on shapes that do not fit and on outputs that overlap.
template <std::floating_point T>
void fast_weight(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
                 ConstSequence<T> beta, const std::type_identity_t<FastWeightOptions<T>>& options, MemoryView<T> memory,
                 Sequence<T> key_sum, HeadSequence<T> output, Workspace& workspace,
                 const std::type_identity_t<Sequence<T>>& key_sum_compensation = {}) {
  constexpr std::string_view name = "fast_weight";
  expect(options.features.nu > 0, name, "options.features.nu", "must be positive");
  const Index features = options.features.size(query.head_dim());
  expect_shape(name, "memory", {memory.heads(), features, memory.value_dim()}, memory.shape());
  expect_recurrence_shapes<T>(name, query, key, value, memory, output, query.head_dim());
  expect_shared_heads<T>(name, "beta", beta, memory, output);
  const RowMap<T> map = fast_weight_map<T>(options.features);
  if (options.normalize) {
    expect_key_sum<T>(name, query, key, value, memory, key_sum, output);
    expect_disjoint(name, "key_sum", key_sum, "beta", beta);
    expect_compensation<T>(name, query, key, value, memory, key_sum, {.key_sum = key_sum_compensation}, output);
    linear_recurrence(
        LinearRecurrenceProblem<T, decay::None<T>, readout::AfterUpdate<T>, normalizer::KeySum<T>, delta::Rule<T>>{
            query,
            key,
            value,
            {},
            {},
            {key_sum, options.epsilon, key_sum_compensation, options.scale},
            T(1),
            memory,
            output,
            map,
            map,
            {beta}},
        workspace);
  } else {
    linear_recurrence(
        LinearRecurrenceProblem<T, decay::None<T>, readout::AfterUpdate<T>, normalizer::None<T>, delta::Rule<T>>{
            query, key, value, {}, {}, {}, options.scale, memory, output, map, map, {beta}},
        workspace);
  }
}

/// The layer of fast weight programmers.
template <std::floating_point T>
class FastWeight : public RecurrentMixerBase<FastWeight<T>, T> {
 public:
  static constexpr std::string_view name = "fast_weight";
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 0;
    Index heads = 8;
    Index head_dim = 0;  ///< d; 0 means channels / heads
    FastWeightForm form = FastWeightForm::algorithmic;
    FastWeightOptions<T> options{};  ///< with a scale of 1 in the algorithmic form, d^-1/2 in the others, as published
    T norm_eps = T(1e-5);
  };

  struct Weights : FastWeightLayerWeights<T> {
    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      FastWeightLayerWeights<T>::visit_shared(self, visitor, "qkvb_net.weight");
    }
  };

  struct State {
    Tensor<T> memory;                         // [H, F, d], W_t
    Tensor<T> key_sum, key_sum_compensation;  // [H, F], z_t is the sum of both, or nothing

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("memory", self.memory), visitor("key_sum", self.key_sum);
      visitor("key_sum_compensation", self.key_sum_compensation);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless the shapes of `weights` follow from `config`.
  FastWeight(const Config& config, const Weights& weights)
      : config_(config), sizes_(sizes(config)), layer_(name, sizes_, config.form, config.norm_eps, weights) {}

  /// Projections uniform in +-inputs^-1/2; the norm is the identity.
  static Weights random_weights(const Config& config, Rng& rng) {
    return {FastWeightLayerWeights<T>::random(sizes(config), config.form, rng)};
  }

  Index channels() const { return sizes_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: H F d zeros, and 2 H F more for the sum of the keys.
  State initial_state() const {
    return {Tensor<T>(memory_shape()), Tensor<T>(key_sum_shape()), Tensor<T>(key_sum_shape())};
  }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    expect_shape(name, "state.memory", memory_shape(), state.memory.shape());
    expect_shape(name, "state.key_sum", key_sum_shape(), state.key_sum.shape());
    expect_shape(name, "state.key_sum_compensation", key_sum_shape(), state.key_sum_compensation.shape());
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    layer_.apply(x, y, workspace, [&](ColumnCutter<T> columns, const HeadSequence<T>& read) {
      const Index H = sizes_.heads, inner = sizes_.inner();
      const auto query = columns.next(inner), key = columns.next(inner), value = columns.next(inner);
      const auto beta = columns.rest();
      apply_beta_gate(beta, false);
      for (Index b = 0; b < batch.size(); ++b) {
        const auto rows = [&](const auto& view) { return view.rows(batch.begin(b), batch.length(b)); };
        State& state = batch.state(b);
        fast_weight<T>(rows(query).heads(H), rows(key).heads(H), rows(value).heads(H), rows(beta), config_.options,
                       state.memory, {state.key_sum.data(), H, features()}, rows(read), workspace,
                       {state.key_sum_compensation.data(), H, features()});
      }
    });
  }

 private:
  static FastWeightLayerSizes sizes(const Config& config) {
    expect(config.options.features.nu > 0, name, "config.options.features.nu", "must be positive");
    return FastWeightLayerSizes::completed(name, {config.channels, config.heads, config.head_dim, 3, 1});
  }
  Index features() const { return config_.options.features.size(sizes_.head_dim); }
  Shape memory_shape() const { return {sizes_.heads, features(), sizes_.head_dim}; }
  Shape key_sum_shape() const { return config_.options.normalize ? Shape{sizes_.heads, features()} : Shape{0}; }

  Config config_;
  FastWeightLayerSizes sizes_;
  FastWeightLayer<T> layer_;
};

static_assert(RecurrentMixer<FastWeight<float>>);

}  // namespace seqmix::inline SEQMIX_ARCH
