// Recurrent fast weight programmers: what the memory was last asked for decides what it is asked for next.
//
//   Source    Irie, Schlag, Csordas and Schmidhuber 2021, arXiv:2106.06295; IDSIA/recurrent-fwp, algorithmic/layers.py,
//             algorithmic/rec_update_fwm_tanh, algorithmic/fast_weight_rnn_v2,
//             language_modeling/src/utils/cuda_fast_weight_layer.py
//   Glossary  L length   D channels   H heads   d channels of a head, of its keys and of its values   F features
//   Engine    engine/recurrent_fast_weight.hpp; engine/linear_recurrence.hpp for what does not depend on outputs
//   Size      two cores, and the layers as variants of one
//
// Core, recurrent delta net:
//         s = tanh(h_{t-1}),   q_t = softmax(q + s R_q),   k_t = softmax(k + s R_k),   v_t = v + s R_v
//         W_t = W_{t-1} + k_t (sigmoid(beta + s . r_b) (v_t - W_{t-1}^T k_t))^T,   h_t = W_t^T q_t,   y_t = scale h_t
// Core, delta RNN:
//         z_t = fast_weight (linear/fast_weight.hpp) of q, k, v and beta, with memory W
//         R_t = R_{t-1} + rk_t (rec_beta (rec_v - R_{t-1}^T rk_t))^T,   rk_t = softmax(rec_k)
//         h_t = R_t^T softmax(h_{t-1}) + z_t,   y_t = scale h_t
// Layer:  these streams = slow net, the betas of a delta RNN through a sigmoid;   projection of what the heads read,
//         residual and layer norm in one of three forms (parts/fast_weight_layer.hpp)
//
// Differs   h_0 = 0 passes the softmax of a delta RNN too and becomes uniform, as in the authors' kernel. Their kernel
//           adds 1e-6 to the denominator of that softmax, their check in PyTorch nothing: an option.
//
// Two cores and their layer make the header longer than most.
#pragma once

#include <seqmix/core/mixer.hpp>
#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/engine/recurrent_fast_weight.hpp>
#include <seqmix/parts/delta_layer.hpp>
#include <seqmix/parts/fast_weight_features.hpp>
#include <seqmix/parts/fast_weight_layer.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// Options of delta RNNs.
template <std::floating_point T>
struct DeltaRnnOptions {
  FastWeightFeatures features{};  ///< of queries and keys of the memory W
  T state_epsilon = T(0);         ///< added to the denominator of softmax(h)
  T scale = T(1);
};

namespace detail {

/// What the cores write: memory [H, d, d], hidden [H, d], output [L, H, d].
template <class T>
struct RecurrentFastWeightResults {
  static constexpr std::string_view operation = "recurrent_fast_weight";
  MemoryView<T> memory;
  Sequence<T> hidden;
  HeadSequence<T> output;

  Index heads() const { return memory.heads(); }
  Index head_dim() const { return memory.value_dim(); }

  /// Throws std::invalid_argument unless they have these shapes and do not overlap.
  void check() const {
    expect_shape(operation, "memory", {heads(), head_dim(), head_dim()}, memory.shape());
    expect_shape(operation, "hidden", {heads(), head_dim()}, hidden);
    expect_shape(operation, "output", {output.length(), heads(), head_dim()}, output);
    expect_disjoint(operation, "output", output, "memory", memory);
    check_apart("hidden", hidden, false);
  }
  /// The same for something else that is read or written: it must be apart from all of them.
  template <class View>
  void check_apart(std::string_view name, const View& view, bool from_hidden = true) const {
    expect_disjoint(operation, "output", output, name, view);
    expect_disjoint(operation, "memory", memory, name, view);
    if (from_hidden) expect_disjoint(operation, "hidden", hidden, name, view);
  }
  /// The same for streams [L, H, d] and their betas [L, H].
  void check(std::string_view name, const HeadSequence<const T>& view) const {
    expect_shape(operation, name, output, view);
    check_apart(name, view);
  }
  void check(std::string_view name, const Sequence<const T>& view) const {
    expect_shape(operation, name, {output.length(), heads()}, view);
    check_apart(name, view);
  }
};

}  // namespace detail

/// A recurrent delta net from and into `memory` [H, d, d] and `hidden` [H, d], h above. query, key, value [L, H, d],
/// beta [L, H], all before their activations, output [L, H, d]. Stable for any L. O(L H d^2) time, one token after the
/// other, and O(H d^2) scratch. Allocates nothing once `workspace` is warm. Throws std::invalid_argument on shapes that
/// do not fit and on outputs that overlap.
template <std::floating_point T>
void recurrent_delta_net(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
                         ConstSequence<T> beta, const std::type_identity_t<RecurrentDeltaNetFeedback<T>>& feedback,
                         std::type_identity_t<T> scale, MemoryView<T> memory, Sequence<T> hidden,
                         HeadSequence<T> output, Workspace& workspace) {
  const detail::RecurrentFastWeightResults<T> results{memory, hidden, output};
  results.check();
  results.check("query", query), results.check("key", key), results.check("value", value), results.check("beta", beta);
  const Index H = results.heads(), d = results.head_dim();
  const auto check_feedback = [&](std::string_view name, Index rows, const Sequence<const T>& matrix) {
    expect_shape(results.operation, name, {rows, d}, matrix);
    results.check_apart(name, matrix);
  };
  check_feedback("feedback.query", H * d, feedback.query), check_feedback("feedback.key", H * d, feedback.key);
  check_feedback("feedback.value", H * d, feedback.value), check_feedback("feedback.beta", H, feedback.beta);
  const RecurrentDeltaNetProblem<T> problem{query, key, value, beta, feedback, scale, memory, hidden, output};
  run_sequential_heads(
      1, output.length(), [&](Index) { return problem; }, workspace);
}

/// A delta RNN from and into `memory` [H, F, d] (W), `recurrent_memory` [H, d, d] (R) and `hidden` [H, d] (h). query,
/// key, value, recurrent_key, recurrent_value [L, H, d], queries and keys before their activations, beta,
/// recurrent_beta [L, H] in (0, 1), output [L, H, d]. Otherwise as recurrent_delta_net; only the half with R is one
/// token after the other.
template <std::floating_point T>
void delta_rnn(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value, ConstSequence<T> beta,
               ConstHeadSequence<T> recurrent_key, ConstHeadSequence<T> recurrent_value,
               ConstSequence<T> recurrent_beta, const std::type_identity_t<DeltaRnnOptions<T>>& options,
               MemoryView<T> memory, MemoryView<T> recurrent_memory, Sequence<T> hidden, HeadSequence<T> output,
               Workspace& workspace) {
  const detail::RecurrentFastWeightResults<T> results{recurrent_memory, hidden, output};
  results.check();
  results.check("query", query), results.check("key", key), results.check("value", value), results.check("beta", beta);
  results.check("recurrent_key", recurrent_key), results.check("recurrent_value", recurrent_value);
  results.check("recurrent_beta", recurrent_beta);
  results.check_apart("memory", memory);
  expect(options.features.nu > 0, results.operation, "options.features.nu", "must be positive");
  const Index features = options.features.size(results.head_dim());
  expect_shape(results.operation, "memory", {results.heads(), features, results.head_dim()}, memory.shape());
  expect_recurrence_shapes<T>(results.operation, query, key, value, memory, output, results.head_dim());
  expect_shared_heads<T>(results.operation, "beta", beta, memory, output);
  const DeltaRnnProblem<T> problem{query,
                                   key,
                                   value,
                                   beta,
                                   fast_weight_map<T>(options.features),
                                   recurrent_key,
                                   recurrent_value,
                                   recurrent_beta,
                                   options.state_epsilon,
                                   options.scale,
                                   memory,
                                   recurrent_memory,
                                   hidden,
                                   output};
  run_sequential_heads(
      1, output.length(), [&](Index) { return problem; }, workspace);
}

/// What a recurrent fast weight programmer feeds back: into queries, keys, values and beta, or through a second memory.
enum class RecurrentFastWeightVariant { recurrent_delta_net, delta_rnn };

/// The layer of recurrent fast weight programmers.
template <std::floating_point T, RecurrentFastWeightVariant variant = RecurrentFastWeightVariant::recurrent_delta_net>
class RecurrentFastWeight : public RecurrentMixerBase<RecurrentFastWeight<T, variant>, T> {
  static constexpr bool delta_net = variant == RecurrentFastWeightVariant::recurrent_delta_net;

 public:
  static constexpr std::string_view name = "recurrent_fast_weight";
  static constexpr StateGrowth growth = StateGrowth::constant;

  struct Config {
    Index channels = 0;
    Index heads = 8;
    Index head_dim = 0;  ///< d; 0 means channels / heads
    FastWeightForm form = FastWeightForm::algorithmic;
    DeltaRnnOptions<T> options{};  ///< of a recurrent delta net, the scale: 1 if algorithmic, else d^-1/2, as published
    T norm_eps = T(1e-5);
  };

  struct Weights : FastWeightLayerWeights<T> {
    Matrix<T> query_feedback, key_feedback, value_feedback;  // [H d, d], R, of a recurrent delta net
    Matrix<T> beta_feedback;                                 // [H, d], r_b

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      FastWeightLayerWeights<T>::visit_shared(self, visitor, delta_net ? "slow_net.weight" : "qkvb_net.weight");
      if constexpr (delta_net) {
        visitor("R_q", self.query_feedback, Presence::required);
        visitor("R_k", self.key_feedback, Presence::required);
        visitor("R_v", self.value_feedback, Presence::required);
        visitor("r_b", self.beta_feedback, Presence::required);
      }
    }
  };

  struct State {
    Tensor<T> memory;            // [H, F, d], W
    Tensor<T> recurrent_memory;  // [H, d, d], R, of a delta RNN
    Tensor<T> hidden;            // [H, d], h

    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      visitor("memory", self.memory), visitor("recurrent_memory", self.recurrent_memory);
      visitor("hidden", self.hidden);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless the shapes of `weights` follow from `config`.
  RecurrentFastWeight(const Config& config, const Weights& weights)
      : config_(config), sizes_(sizes(config)), layer_(name, sizes_, config.form, config.norm_eps, weights) {
    if constexpr (delta_net) {
      const Index H = sizes_.heads, d = sizes_.head_dim;
      const auto copy = [&](std::string_view tensor, const Shape& shape, const Matrix<T>& from, Tensor<T>& to) {
        expect_tensor(name, tensor, shape, from);
        to = Tensor<T>(shape);
        std::copy_n(from.data(), from.size(), to.data());
      };
      copy("R_q", {H * d, d}, weights.query_feedback, query_feedback_);
      copy("R_k", {H * d, d}, weights.key_feedback, key_feedback_);
      copy("R_v", {H * d, d}, weights.value_feedback, value_feedback_);
      copy("r_b", {H, d}, weights.beta_feedback, beta_feedback_);
    }
  }

  /// Projections uniform in +-inputs^-1/2, R and r_b of deviation d^-1/2; the norm is the identity.
  static Weights random_weights(const Config& config, Rng& rng) {
    const FastWeightLayerSizes s = sizes(config);
    Weights weights{FastWeightLayerWeights<T>::random(s, config.form, rng), {}, {}, {}, {}};
    const double deviation = std::pow(double(s.head_dim), -0.5);
    if constexpr (delta_net) {
      for (auto* matrix : {&weights.query_feedback, &weights.key_feedback, &weights.value_feedback}) {
        *matrix = normal_matrix<T>(s.inner(), s.head_dim, deviation, rng);
      }
      weights.beta_feedback = normal_matrix<T>(s.heads, s.head_dim, deviation, rng);
    }
    return weights;
  }

  Index channels() const { return sizes_.channels; }
  const Config& config() const { return config_; }

  /// The empty state: H d (d + 1) zeros, and for a delta RNN with F features H d (F + d + 1).
  State initial_state() const {
    return {Tensor<T>(memory_shape()), Tensor<T>(recurrent_shape()), Tensor<T>(hidden_shape())};
  }

  /// Throws std::invalid_argument unless the state has this mixer's shapes.
  void check_state(const State& state) const {
    expect_shape(name, "state.memory", memory_shape(), state.memory.shape());
    expect_shape(name, "state.recurrent_memory", recurrent_shape(), state.recurrent_memory.shape());
    expect_shape(name, "state.hidden", hidden_shape(), state.hidden.shape());
  }

  void advance(const SequenceBatch<State>& batch, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    layer_.apply(x, y, workspace, [&](ColumnCutter<T> columns, const HeadSequence<T>& read) {
      const Index H = sizes_.heads, d = sizes_.head_dim, inner = sizes_.inner();
      const auto run = [&](auto&& problem_of) {
        run_sequential_heads(
            batch.size(), x.length(),
            [&](Index b) {
              State& state = batch.state(b);
              return problem_of([&](const auto& view) { return view.rows(batch.begin(b), batch.length(b)); }, state,
                                Sequence<T>(state.hidden.data(), H, d));
            },
            workspace);
      };
      const auto query = columns.next(inner).heads(H), key = columns.next(inner).heads(H);
      const auto value = columns.next(inner).heads(H);
      if constexpr (delta_net) {
        const auto beta = columns.rest();
        const auto matrix = [&](const Tensor<T>& from) { return ConstSequence<T>(from.data(), inner, d); };
        const RecurrentDeltaNetFeedback<T> feedback{
            matrix(query_feedback_), matrix(key_feedback_), matrix(value_feedback_), {beta_feedback_.data(), H, d}};
        run([&](const auto& rows, State& state, const Sequence<T>& hidden) {
          return RecurrentDeltaNetProblem<T>{rows(query),           rows(key),    rows(value), rows(beta), feedback,
                                             config_.options.scale, state.memory, hidden,      rows(read)};
        });
      } else {
        const auto recurrent_key = columns.next(inner).heads(H), recurrent_value = columns.next(inner).heads(H);
        const auto beta = columns.next(H), recurrent_beta = columns.rest();
        apply_beta_gate(beta, false);
        apply_beta_gate(recurrent_beta, false);
        const RowMap<T> map = fast_weight_map<T>(config_.options.features);
        run([&](const auto& rows, State& state, const Sequence<T>& hidden) {
          return DeltaRnnProblem<T>{rows(query),
                                    rows(key),
                                    rows(value),
                                    rows(beta),
                                    map,
                                    rows(recurrent_key),
                                    rows(recurrent_value),
                                    rows(recurrent_beta),
                                    config_.options.state_epsilon,
                                    config_.options.scale,
                                    state.memory,
                                    state.recurrent_memory,
                                    hidden,
                                    rows(read)};
        });
      }
    });
  }

 private:
  static FastWeightLayerSizes sizes(const Config& config) {
    expect(config.options.features.nu > 0, name, "config.options.features.nu", "must be positive");
    return FastWeightLayerSizes::completed(
        name, {config.channels, config.heads, config.head_dim, delta_net ? 3 : 5, delta_net ? 1 : 2});
  }
  Index features() const { return delta_net ? sizes_.head_dim : config_.options.features.size(sizes_.head_dim); }
  Shape memory_shape() const { return {sizes_.heads, features(), sizes_.head_dim}; }
  Shape recurrent_shape() const { return delta_net ? Shape{0} : Shape{sizes_.heads, sizes_.head_dim, sizes_.head_dim}; }
  Shape hidden_shape() const { return {sizes_.heads, sizes_.head_dim}; }

  Config config_;
  FastWeightLayerSizes sizes_;
  FastWeightLayer<T> layer_;
  Tensor<T> query_feedback_, key_feedback_, value_feedback_, beta_feedback_;  // aligned to vectors
};

static_assert(RecurrentMixer<RecurrentFastWeight<float>>);
static_assert(RecurrentMixer<RecurrentFastWeight<float, RecurrentFastWeightVariant::delta_rnn>>);

}  // namespace seqmix::inline SEQMIX_ARCH
