// Based: linear attention whose weights are those of softmax to second order, 1 + s + s^2 / 2.
//
//   Source    Arora et al. 2024, arXiv:2402.18668, section 4; fla-org/flash-linear-attention, fla/layers/based.py
//             (forward_reference), fla/ops/based/naive.py
//   Glossary  L length   D channels   H heads   f width of queries and keys of one head   V value width
//             K = f (f + 1) / 2 + f + 1 features
//   Engine    engine/linear_recurrence.hpp with decay::None, and engine/linear_attention_global.hpp without order
//   Differs   from the layer's other modes in the authors' code, which cut q by the value width and set epsilon to 1e-6
//
// Core:   w_ts = 1 + s + s^2 / 2,   s = scale q_t . k_s
//         y_t = sum_s w_ts v_s / (sum_s w_ts + epsilon),   the denominator only when normalising
//         causal: over s <= t; bidirectional: over all tokens
// Layer:  projections, core with scale f^-1/2 and epsilon 1e-12, projection
// Weights are at least 1/2, so the denominator is at least half the number of tokens.
#pragma once

#include <seqmix/parts/polynomial_attention.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// Causal Based attention from and into `memory` [H, K, V], the moments of the keys (parts/polynomial_features.hpp), and
/// `key_sum` [H, K], the same of a value that is always 1 (left alone unless normalising). query, key [L, H', f], value
/// [L, H', V] with every H' dividing H, output [L, H, V]. O(L H K V) time, O(H K V) scratch. Allocates nothing once
/// `workspace` is warm. Throws std::invalid_argument on shapes that do not fit and on outputs that overlap.
template <std::floating_point T>
void based(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
           const std::type_identity_t<PolynomialAttentionOptions<T>>& options, MemoryView<T> memory,
           Sequence<T> key_sum, HeadSequence<T> output, Workspace& workspace,
           const std::type_identity_t<SumCompensation<T>>& compensation = {}) {
  polynomial_attention<polynomial::Taylor, Direction::causal, T>("based", query, key, value, options, memory, key_sum,
                                                                 output, workspace, compensation);
}

/// Based attention of every token to all tokens. Shapes, cost and errors as for based, without a state.
template <std::floating_point T>
void based_bidirectional(ConstHeadSequence<T> query, ConstHeadSequence<T> key, ConstHeadSequence<T> value,
                         const std::type_identity_t<PolynomialAttentionOptions<T>>& options, HeadSequence<T> output,
                         Workspace& workspace) {
  polynomial_attention<polynomial::Taylor, Direction::bidirectional, T>("based", query, key, value, options, {}, {},
                                                                        output, workspace);
}

/// The layer of Based, causal or bidirectional.
template <std::floating_point T, Direction way = Direction::causal>
class Based : public PolynomialAttentionLayer<Based<T, way>, polynomial::Taylor, T, way> {
  using Layer = PolynomialAttentionLayer<Based<T, way>, polynomial::Taylor, T, way>;

 public:
  static constexpr std::string_view name = "based";

  struct Config {
    Index channels = 0;
    Index heads = 12;
    Index feature_dim = 16;  ///< f
    PolynomialAttentionOptions<T> options{.epsilon = T(1e-12)};
  };

  struct Weights : PolynomialAttentionWeights<T> {
    template <class Self, class Visitor>
    static void visit(Self& self, Visitor&& visitor) {
      Weights::visit_shared(self, visitor);
    }
  };

  /// Packs the weights. Throws std::invalid_argument unless heads divides channels and the shapes of `weights` follow from
  /// `config`.
  Based(const Config& config, const Weights& weights) : Layer(config, weights), config_(config) {}

  /// Projections uniform in +-D^-1/2.
  static Weights random_weights(const Config& config, Rng& rng) {
    return {PolynomialAttentionWeights<T>::random(Layer::checked(config), rng)};
  }

  const Config& config() const { return config_; }

 private:
  Config config_;
};

static_assert(RecurrentMixer<Based<float>>);
static_assert(!CausalMixer<Based<float, Direction::bidirectional>>);

}  // namespace seqmix::inline SEQMIX_ARCH
