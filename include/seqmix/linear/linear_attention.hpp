// Linear attention: softmax replaced by a feature map, so that the past fits a matrix.
//
//   Source    Katharopoulos et al. 2020, arXiv:2006.16236; idiap/fast-transformers, attention_layer.py;
//             fla-org/flash-linear-attention, fla/layers/linear_attn.py
//   Glossary  L length   D channels   H heads   K, V key and value width of one head   phi feature map
//   Engine    engine/linear_recurrence.hpp with decay::None, and engine/linear_attention_global.hpp without order
//   Size      cores of both directions, and a layer
//
// Core:   S_t = S_{t-1} + phi(k_t) v_t^T,   z_t = z_{t-1} + phi(k_t)
//         y_t = scale phi(q_t)^T S_t / (scale phi(q_t) . z_t + epsilon),   the denominator only when normalising
//         bidirectional: S and z are the sums over all tokens
// Layer:  projections, core, optional RMS norm of each head, projection
// ONNX's LinearAttention: see linear/gated_delta_rule.hpp.
#pragma once

#include <cmath>
#include <seqmix/core/parameters.hpp>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/linear_attention_global.hpp>
#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/engine/summed_memory.hpp>
#include <seqmix/parts/attention_layer.hpp>
#include <seqmix/parts/feature_map.hpp>
#include <seqmix/parts/norm.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// Options of linear attention.
template <std::floating_point T>
struct LinearAttentionOptions {
  T scale = T(1);
  bool normalize = true;
  T epsilon = T(1e-6);  ///< added to the denominator
};

/// Causal linear attention from and into `memory` [H, K, V] and `key_sum` [H, K] (left alone unless normalising). query
/// [L, Hq, K], key [L, Hk, K], value [L, Hv, V] with Hq, Hk and Hv dividing H, output [L, H, V]. Or, unless
/// normalising, query and output have a multiple of H heads: consecutive ones then read one memory, at the cost of as
/// many. Map is one of feature_map. With a compensation (see SummedMemory), memory and key_sum are only the greater
/// parts of S and z, and sums keep their digits over any number of pieces; else they are rounded after each piece, or
/// each of a few tokens. O(L H K V) time, O(H K V) scratch. Allocates nothing once `workspace` is warm. Throws
/// std::invalid_argument on shapes that do not fit and on outputs that overlap.
template <class Map = feature_map::Elu1, std::floating_point T>
void linear_attention(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
                      const std::type_identity_t<LinearAttentionOptions<T>>& options, MemoryView<T> memory,
                      Sequence<T> key_sum, HeadSequence<T> output, Workspace& workspace,
                      const std::type_identity_t<SumCompensation<T>>& compensation = {}) {
  constexpr std::string_view name = "linear_attention";
  if (options.normalize) {
    expect_recurrence_shapes<T>(name, query, key, value, memory, output);
  } else {
    expect_grouped_recurrence_shapes<T>(name, query, key, value, memory, output);
  }
  expect_compensation<T>(name, query, key, value, memory, key_sum, compensation, output);
  const decay::None<T> decay{compensation.memory, compensation.position};
  if (options.normalize) {
    expect_key_sum<T>(name, query, key, value, memory, key_sum, output);
    linear_recurrence(
        LinearRecurrenceProblem<T, decay::None<T>, readout::AfterUpdate<T>, normalizer::KeySum<T>>{
            query,
            key,
            value,
            decay,
            {},
            {key_sum, options.epsilon, compensation.key_sum},
            options.scale,
            memory,
            output,
            row_map<T, Map>,
            row_map<T, Map>},
        workspace);
  } else {
    linear_recurrence(
        LinearRecurrenceProblem<T, decay::None<T>, readout::AfterUpdate<T>, normalizer::None<T>>{
            query, key, value, decay, {}, {}, options.scale, memory, output, row_map<T, Map>, row_map<T, Map>},
        workspace);
  }
}

/// Linear attention of every token to all tokens. Shapes, cost and errors as for linear_attention, without a state.
template <class Map = feature_map::Elu1, std::floating_point T>
void linear_attention_bidirectional(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
                                    const std::type_identity_t<LinearAttentionOptions<T>>& options,
                                    HeadSequence<T> output, Workspace& workspace) {
  const MemoryView<T> memory(nullptr, output.heads(), query.head_dim(), output.head_dim());
  expect_recurrence_shapes<T>("linear_attention", query, key, value, memory, output);
  if (options.normalize) {
    linear_attention_global(
        LinearRecurrenceProblem<T, decay::None<T>, readout::AfterUpdate<T>, normalizer::KeySum<T>>{
            query,
            key,
            value,
            {},
            {},
            {{}, options.epsilon},
            options.scale,
            memory,
            output,
            row_map<T, Map>,
            row_map<T, Map>},
        workspace);
  } else {
    linear_attention_global(
        LinearRecurrenceProblem<T, decay::None<T>, readout::AfterUpdate<T>, normalizer::None<T>>{
            query, key, value, {}, {}, {}, options.scale, memory, output, row_map<T, Map>, row_map<T, Map>},
        workspace);
  }
}

/// The names of the layer's tensors in checkpoints.
enum class LinearAttentionNames {
  fast_transformers,      ///< query_projection.weight, ... with biases
  flash_linear_attention  ///< q_proj.weight, ... and norm.weight
};

/// The linear attention layer, causal or bidirectional. Map is one of feature_map.
template <std::floating_point T, class Map = feature_map::Elu1, Direction way = Direction::causal>
class LinearAttention : public AttentionLayer<LinearAttention<T, Map, way>, T, way, SummedMemory<T>> {
 public:
  static constexpr std::string_view name = "linear_attention";

  struct Config {
    Index channels = 0;
    Index heads = 1;
    Index key_value_heads = 0;  ///< 0 means heads; head h reads key and value head h / (heads / key_value_heads)
    Index key_dim = 0;          ///< K; 0 means channels / heads
    Index value_dim = 0;        ///< V; 0 means channels / heads
    LinearAttentionOptions<T> options = {};
    bool normalize_query = false;  ///< divide phi(q) by its sum over the head + feature_eps
    bool normalize_key = false;    ///< the same for phi(k)
    T feature_eps = T(1e-4);
    bool output_norm = false;  ///< RMS norm of each head before the output projection
    T norm_eps = T(1e-5);
  };

  struct Weights {
    Matrix<T> query;                                          // [H K, D]
    Matrix<T> key, value;                                     // [key_value_heads K, D], [key_value_heads V, D]
    Matrix<T> output;                                         // [D, H V]
    Vector<T> query_bias, key_bias, value_bias, output_bias;  // as the rows of their matrices, or absent
    Vector<T> norm;                                           // [V], with output_norm
    LinearAttentionNames names = LinearAttentionNames::fast_transformers;

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      const bool fla = self.names == LinearAttentionNames::flash_linear_attention;
      visitor(fla ? "q_proj.weight" : "query_projection.weight", self.query, Presence::required);
      visitor(fla ? "k_proj.weight" : "key_projection.weight", self.key, Presence::required);
      visitor(fla ? "v_proj.weight" : "value_projection.weight", self.value, Presence::required);
      visitor(fla ? "o_proj.weight" : "out_projection.weight", self.output, Presence::required);
      visitor(fla ? "q_proj.bias" : "query_projection.bias", self.query_bias, Presence::optional);
      visitor(fla ? "k_proj.bias" : "key_projection.bias", self.key_bias, Presence::optional);
      visitor(fla ? "v_proj.bias" : "value_projection.bias", self.value_bias, Presence::optional);
      visitor(fla ? "o_proj.bias" : "out_projection.bias", self.output_bias, Presence::optional);
      visitor("norm.weight", self.norm, Presence::optional);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless key_value_heads divides heads and the shapes of `weights`
  /// follow from `config`.
  LinearAttention(Config config, const Weights& weights) : config_(completed(config)), norm_(weights.norm) {
    const Index D = config_.channels, H = config_.heads, shared = config_.key_value_heads;
    expect_tensor(name, "query", {H * config_.key_dim, D}, weights.query);
    expect_tensor(name, "key", {shared * config_.key_dim, D}, weights.key);
    expect_tensor(name, "value", {shared * config_.value_dim, D}, weights.value);
    expect_tensor(name, "output", {D, H * config_.value_dim}, weights.output);
    if (config_.output_norm) expect_tensor(name, "norm.weight", {config_.value_dim}, weights.norm);
    this->input_ = Linear<T>({&weights.query, &weights.key, &weights.value},
                             {&weights.query_bias, &weights.key_bias, &weights.value_bias});
    this->output_ = Linear<T>(weights.output, weights.output_bias);
  }

  /// Uniform with bound D^-0.5, as linear layers begin by default; no biases; the norm's weight is 1.
  static Weights random_weights(const Config& config, Rng& rng) {
    const Config c = completed(config);
    const auto projection = [&](Index rows, Index columns) {
      return uniform_matrix<T>(rows, columns, std::pow(double(columns), -0.5), rng);
    };
    Weights weights;
    weights.query = projection(c.heads * c.key_dim, c.channels);
    weights.key = projection(c.key_value_heads * c.key_dim, c.channels);
    weights.value = projection(c.key_value_heads * c.value_dim, c.channels);
    weights.output = projection(c.channels, c.heads * c.value_dim);
    if (c.output_norm) weights.norm = Vector<T>::Ones(c.value_dim);
    return weights;
  }

  const Config& config() const { return config_; }

  // What AttentionLayer asks for.
  AttentionHeads heads() const { return {config_.heads, config_.key_value_heads, config_.key_dim, config_.value_dim}; }
  Shape memory_shape() const { return {config_.heads, config_.key_dim, config_.value_dim}; }
  void prepare(const HeadSequence<T>& query, const HeadSequence<T>& key) const {
    apply_feature_map(query, Map{});
    apply_feature_map(key, Map{});
    if (config_.normalize_query) sum_normalize(query, config_.feature_eps);
    if (config_.normalize_key) sum_normalize(key, config_.feature_eps);
  }
  void attend(SummedMemory<T>& state, const HeadSequence<T>& query, const HeadSequence<T>& key,
              const HeadSequence<T>& value, const HeadSequence<T>& output, Workspace& workspace) const {
    linear_attention<feature_map::Identity, T>(query, key, value, config_.options, state.memory, state.key_sum_view(),
                                               output, workspace, state.compensation_view());
    state.position += output.length();
  }
  void attend(const HeadSequence<T>& query, const HeadSequence<T>& key, const HeadSequence<T>& value,
              const HeadSequence<T>& output, Workspace& workspace) const {
    linear_attention_bidirectional<feature_map::Identity, T>(query, key, value, config_.options, output, workspace);
  }
  void finish(const HeadSequence<T>& output) const {
    if (config_.output_norm) rms_normalize(output, config_.norm_eps, norm_);
  }

 private:
  static Config completed(Config config) {
    expect(config.channels > 0, name, "config.channels", "must be positive");
    if (config.key_dim == 0 || config.value_dim == 0) {
      expect_divides(name, "config.heads", config.heads, "channels", config.channels);
    }
    if (config.key_value_heads == 0) config.key_value_heads = config.heads;
    expect_divides(name, "config.key_value_heads", config.key_value_heads, "heads", config.heads);
    if (config.key_dim == 0) config.key_dim = config.channels / config.heads;
    if (config.value_dim == 0) config.value_dim = config.channels / config.heads;
    return config;
  }

  Config config_;
  Vector<T> norm_;
};

static_assert(RecurrentMixer<LinearAttention<float>>);
static_assert(!CausalMixer<LinearAttention<float, feature_map::Elu1, Direction::bidirectional>>);

}  // namespace seqmix::inline SEQMIX_ARCH
