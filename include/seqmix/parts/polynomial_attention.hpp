// Linear attention whose weights are a polynomial of the product of query and key: what Based and ReBased share.
//
//   Glossary  L length   D channels   H heads   f feature_dim, width of queries and keys of one head   V value width
//             K number of features of f numbers
//   Engine    engine/linear_recurrence.hpp with decay::None, and engine/linear_attention_global.hpp without order
//
// y_t = sum_s w(scale q_t . k_s) v_s / (sum_s w(scale q_t . k_s) + epsilon),   the denominator only when normalising
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <seqmix/core/random.hpp>
#include <seqmix/engine/linear_attention_global.hpp>
#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/parts/attention_layer.hpp>
#include <seqmix/parts/polynomial_features.hpp>
#include <string>
#include <string_view>
#include <type_traits>

namespace seqmix::inline SEQMIX_ARCH {

/// Options of attention by a polynomial.
template <std::floating_point T>
struct PolynomialAttentionOptions {
  std::optional<T> scale{};  ///< of the product of query and key; without it f^-1/2
  bool normalize = true;
  T epsilon = T(1e-6);  ///< added to the denominator
};

namespace detail {

/// The first rows of a sequence that has nothing before it, from the products of queries and keys themselves. Features know a
/// weight up to a rounding error of the largest one that such vectors can have. That is much of the sum as long as this
/// consists of a few weights that all nearly vanish.
template <class Polynomial, Direction way, class T>
void attend_directly(const ConstHeadSequence<T>& query, const ConstHeadSequence<T>& key,
                     const ConstHeadSequence<T>& value, T scale, const PolynomialAttentionOptions<T>& options,
                     const HeadSequence<T>& output) {
  const auto head_of = [&](const ConstHeadSequence<T>& streams, Index h) {
    return streams.head(h / (output.heads() / streams.heads()));
  };
  const Index rows = output.length();
  for (Index h = 0; h < output.heads(); ++h) {
    const auto q = head_of(query, h), k = head_of(key, h), v = head_of(value, h);
    for (Index t = 0; t < rows; ++t) {
      T* const y = output.row(t, h);
      std::fill_n(y, output.head_dim(), T(0));
      T total = options.epsilon;
      for (Index j = 0; j < (way == Direction::causal ? t + 1 : rows); ++j) {
        const T s = scale * std::inner_product(q.row(t), q.row(t) + q.channels(), k.row(j), T(0));
        const T weight = T(Polynomial::square) * s * s + (Polynomial::lower_terms ? s + 1 : T(0));
        total += weight;
        for (Index i = 0; i < output.head_dim(); ++i) y[i] += weight * v.row(j)[i];
      }
      for (Index i = 0; options.normalize && i < output.head_dim(); ++i) y[i] /= total;
    }
  }
}

/// Whether all numbers are 0. Costs nothing where the first isn't.
template <class T>
bool is_zero(const Sequence<T>& rows) {
  for (Index t = 0; t < rows.length(); ++t) {
    if (!std::all_of(rows.row(t), rows.row(t) + rows.channels(), [](T x) { return x == T(0); })) return false;
  }
  return true;
}
template <class T>
bool is_zero(const MemoryView<T>& memory) {
  for (Index h = 0; h < memory.heads(); ++h) {
    if (!is_zero(memory.head(h))) return false;
  }
  return true;
}

}  // namespace detail

/// The core of Polynomial (see parts/polynomial_features.hpp) in the name of `operation`: causal from and into `memory`
/// [H, K, V] and `key_sum` [H, K] (left alone unless normalising), which with a compensation (see SummedMemory) keep their
/// digits over any number of pieces, or bidirectional, where all of these are ignored. query, key [L, H', f], value
/// [L, H', V] with every H' dividing H, output [L, H, V]. O(L H K V) time, O(H K V) scratch. Allocates nothing once
/// `workspace` is warm. Throws std::invalid_argument on shapes that do not fit and on outputs that overlap.
template <class Polynomial, Direction way, std::floating_point T>
void polynomial_attention(std::string_view operation, const ConstHeadSequence<T>& query,
                          const ConstHeadSequence<T>& key, const ConstHeadSequence<T>& value,
                          const PolynomialAttentionOptions<T>& options, MemoryView<T> memory,
                          const Sequence<T>& key_sum, const HeadSequence<T>& output, Workspace& workspace,
                          const SumCompensation<T>& compensation = {}) {
  const Index width = query.head_dim();
  expect(width > 0 && width <= most_symmetric_numbers, operation, "query", "has heads that are empty or too wide");
  const Shape shape{output.heads(), Polynomial::features(width), output.head_dim()};
  if constexpr (way == Direction::bidirectional) memory = {nullptr, shape[0], shape[1], shape[2]};
  expect_shape(operation, "memory", shape, memory.shape());
  expect_recurrence_shapes<T>(operation, query, key, value, memory, output, width);
  if constexpr (way == Direction::causal) {
    expect_compensation<T>(operation, query, key, value, memory, key_sum, compensation, output);
  }
  const T scale = options.scale.value_or(std::pow(T(width), T(-0.5)));
  constexpr Index first_rows = 16;
  const auto attend_first = [&](Index count) {
    const auto rows = [&](const auto& stream) { return stream.rows(0, count); };
    detail::attend_directly<Polynomial, way, T>(rows(query), rows(key), rows(value), scale, options, rows(output));
  };
  Index direct = 0;
  if constexpr (Polynomial::vanishes && way == Direction::causal) {
    // Tokens whose values are all 0 leave something in the sum of keys only.
    const bool first = detail::is_zero(memory) && detail::is_zero(compensation.memory) &&
                       (!options.normalize || (detail::is_zero(key_sum) && detail::is_zero(compensation.key_sum)));
    direct = first ? std::min(output.length(), first_rows) : 0;
  } else if constexpr (Polynomial::vanishes) {
    if (output.length() <= first_rows) return attend_first(output.length());
  }
  const auto run = [&](const auto& normalizer) {
    const LinearRecurrenceProblem<T, decay::None<T>, readout::AfterUpdate<T>, std::remove_cvref_t<decltype(normalizer)>>
        problem{query,
                key,
                value,
                {compensation.memory, compensation.position},
                {},
                normalizer,
                T(1),
                memory,
                output,
                polynomial_query_map<Polynomial, T>(scale),
                polynomial_key_map<T, Polynomial>};
    if constexpr (way == Direction::causal) {
      linear_recurrence(problem, workspace);
    } else {
      linear_attention_global(problem, workspace);
    }
  };
  if (!options.normalize) {
    run(normalizer::None<T>{});
  } else {
    if constexpr (way == Direction::causal) expect_key_sum<T>(operation, query, key, value, memory, key_sum, output);
    run(normalizer::KeySum<T>{key_sum, options.epsilon, compensation.key_sum});
  }
  if (direct > 0) attend_first(direct);
}

/// The weights that layers around attention by a polynomial have.
template <std::floating_point T>
struct PolynomialAttentionWeights {
  Matrix<T> query, key;     // [H f, D]
  Matrix<T> value, output;  // [D, D]

  /// Throws std::invalid_argument, in the name of `operation`, unless the shapes follow from `config`.
  template <class Config>
  void check(std::string_view operation, const Config& config) const {
    const Index D = config.channels, features = config.heads * config.feature_dim;
    expect_tensor(operation, "q_proj.weight", {features, D}, query);
    expect_tensor(operation, "k_proj.weight", {features, D}, key);
    expect_tensor(operation, "v_proj.weight", {D, D}, value);
    expect_tensor(operation, "o_proj.weight", {D, D}, output);
  }

  /// Uniform in +-D^-1/2, as linear layers begin by default.
  template <class Config>
  static PolynomialAttentionWeights random(const Config& config, Rng& rng) {
    const Index D = config.channels, features = config.heads * config.feature_dim;
    const auto projection = [&](Index outputs) {
      return uniform_matrix<T>(outputs, D, std::pow(double(D), -0.5), rng);
    };
    return {projection(features), projection(features), projection(D), projection(D)};
  }

 protected:
  /// Calls visitor for all of them.
  template <class Self, class Visitor>
  static void visit_shared(Self& self, Visitor& visitor) {
    visitor("q_proj.weight", self.query, Presence::required);
    visitor("k_proj.weight", self.key, Presence::required);
    visitor("v_proj.weight", self.value, Presence::required);
    visitor("o_proj.weight", self.output, Presence::required);
  }
};

/// Base of the layers around attention by a polynomial, with what AttentionLayer takes from them. Derived::Config has
/// channels, heads, feature_dim and options.
template <class Derived, class Polynomial, std::floating_point T, Direction way>
class PolynomialAttentionLayer : public AttentionLayer<Derived, T, way, SummedMemory<T>> {
 public:
  AttentionHeads heads() const {
    const auto& of = config();
    return {of.heads, of.heads, of.feature_dim, of.channels / of.heads};
  }
  Shape memory_shape() const { return {heads().heads, Polynomial::features(heads().key_dim), heads().value_dim}; }

  void attend(SummedMemory<T>& state, const HeadSequence<T>& query, const HeadSequence<T>& key,
              const HeadSequence<T>& value, const HeadSequence<T>& output, Workspace& workspace) const {
    polynomial_attention<Polynomial, way, T>(Derived::name, query, key, value, config().options, state.memory,
                                             state.key_sum_view(), output, workspace, state.compensation_view());
    state.position += output.length();
  }
  void attend(const HeadSequence<T>& query, const HeadSequence<T>& key, const HeadSequence<T>& value,
              const HeadSequence<T>& output, Workspace& workspace) const {
    polynomial_attention<Polynomial, way, T>(Derived::name, query, key, value, config().options, {}, {}, output,
                                             workspace);
  }

 protected:
  /// Packs the weights. Throws std::invalid_argument unless their shapes follow from `config`.
  template <class Config>
  PolynomialAttentionLayer(const Config& config, const PolynomialAttentionWeights<T>& weights) {
    weights.check(Derived::name, checked(config));
    this->input_ = Linear<T>({&weights.query, &weights.key, &weights.value});
    this->output_ = Linear<T>(weights.output);
  }

  /// Throws std::invalid_argument unless the sizes fit each other.
  template <class Config>
  static const Config& checked(const Config& config) {
    expect_divides(Derived::name, "config.heads", config.heads, "channels", config.channels);
    expect(config.feature_dim > 0 && config.feature_dim <= most_symmetric_numbers, Derived::name, "config.feature_dim",
           "must be from 1 to " + std::to_string(most_symmetric_numbers));
    return config;
  }

 private:
  const auto& config() const { return static_cast<const Derived&>(*this).config(); }
};

}  // namespace seqmix::inline SEQMIX_ARCH
