// Scores of the attention engine: how a logit is made from the inner product of a query and a key.
//
// Logits are in the log2 domain: the weight of a key is 2^logit / sum 2^logit. A score is a small value type with:
//
//   using Scalar = T
//   static constexpr bool plain       the logit is the inner product of the scaled query and the key, nothing more
//   T query_factor() const            queries are multiplied by this before the inner product
//   static constexpr bool may_exclude, bool excludes(Index key) const
//                                     whether the logit of this key is -infinity for every row and head
//   auto head(Index h) const          the score of query head h, anything with this member:
//   auto row(Index i) const           a functor (Batch<T> product, Index key) -> Batch<T> logit, of row i and the keys
//                                     key .. key + lanes - 1; may read at most lanes - 1 elements of padding beyond the
//                                     last key, and what it makes of them doesn't matter
//
// DotScore and SoftcapScore make logits of inner products; the others change the logits of the score that they wrap.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <limits>
#include <numbers>
#include <seqmix/core/view.hpp>
#include <seqmix/simd/batch.hpp>
#include <seqmix/simd/math.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// log2(e): natural logits times this are logits of the log2 domain.
template <std::floating_point T>
inline constexpr T log2_e = std::numbers::log2e_v<T>;

/// A natural logit in the log2 domain. Finite ones stay finite: the lowest number is a popular way to say "hardly", and a
/// row of nothing else still has weights.
template <std::floating_point T>
T to_log2_domain(T logit) {
  using Limits = std::numeric_limits<T>;
  const T result = logit * log2_e<T>;
  return std::isfinite(logit) ? std::clamp(result, Limits::lowest(), Limits::max()) : result;
}

/// A score of the attention engine; what its members mean stands at the top of this file.
template <class S>
concept AttentionScore = std::copyable<S> && requires(const S& score, Batch<typename S::Scalar> product, Index index) {
  { S::plain } -> std::convertible_to<bool>;
  { score.query_factor() } -> std::same_as<typename S::Scalar>;
  { S::may_exclude } -> std::convertible_to<bool>;
  { score.excludes(index) } -> std::same_as<bool>;
  { score.head(index).row(index)(product, index) } -> std::same_as<Batch<typename S::Scalar>>;
};

/// logit = scale * <query, key>.
template <std::floating_point T>
struct DotScore {
  using Scalar = T;
  static constexpr bool plain = true;
  static constexpr bool may_exclude = false;

  T scale = 1;

  T query_factor() const { return scale * log2_e<T>; }
  const DotScore& head(Index) const { return *this; }
  bool excludes(Index) const { return false; }
  auto row(Index) const {
    return [](Batch<T> product, Index) SEQMIX_INLINE_LAMBDA -> Batch<T> { return product; };
  }
};

/// logit = cap * tanh(scale * <query, key> / cap), cap > 0.
template <std::floating_point T>
struct SoftcapScore {
  using Scalar = T;
  static constexpr bool plain = false;
  static constexpr bool may_exclude = false;

  T scale = 1;
  T cap = 1;

  T query_factor() const { return scale / cap; }
  const SoftcapScore& head(Index) const { return *this; }
  bool excludes(Index) const { return false; }
  auto row(Index) const {
    return [height = cap * log2_e<T>](Batch<T> product, Index)
               SEQMIX_INLINE_LAMBDA -> Batch<T> { return broadcast(height) * tanh(product); };
  }
};

/// logit = base logit - slopes[h] * |row + offset - key| (ALiBi, Press et al. 2022, arXiv:2108.12409). The distance is
/// formed as an integer: a product slope * key would lose the small differences between large positions.
template <class Base>
struct AlibiScore {
  using Scalar = typename Base::Scalar;
  using T = Scalar;
  static constexpr bool plain = false;
  static constexpr bool may_exclude = Base::may_exclude;

  Base base;
  const T* slopes = nullptr;  // [heads]
  Index offset = 0;

  T query_factor() const { return base.query_factor(); }
  bool excludes(Index key) const { return base.excludes(key); }

  auto head(Index h) const {
    auto base_head = base.head(h);
    struct Head {
      decltype(base_head) base;
      T slope;
      Index offset;

      auto row(Index i) const {
        return [logit = base.row(i), slope = slope, aligned = i + offset](Batch<T> product, Index key)
                   SEQMIX_INLINE_LAMBDA -> Batch<T> {
                     const Batch<T> behind = broadcast(static_cast<T>(aligned - key)) - lane_index<T>();
                     return fnma(broadcast(slope), max_propagating(behind, -behind), logit(product, key));
                   };
      }
    };
    return Head{base_head, slopes[h] * log2_e<T>, offset};
  }
};

/// logit = base logit + biases[key]; any numbers, -infinity (a key that is never seen, whatever it and its value hold)
/// included. The biases must be followed by readable padding up to a multiple of the vector width.
template <class Base>
struct KeyBiasScore {
  using Scalar = typename Base::Scalar;
  using T = Scalar;
  static constexpr bool plain = false;
  static constexpr bool may_exclude = true;

  Base base;
  const T* biases = nullptr;  // [keys + padding], times log2(e)

  T query_factor() const { return base.query_factor(); }
  bool excludes(Index key) const { return biases[key] == -std::numeric_limits<T>::infinity() || base.excludes(key); }

  auto head(Index h) const {
    auto base_head = base.head(h);
    struct Head {
      decltype(base_head) base;
      const T* biases;

      auto row(Index i) const {
        return [logit = base.row(i), biases = biases](Batch<T> product, Index key) SEQMIX_INLINE_LAMBDA -> Batch<T> {
          const Batch<T> bias = load(biases + key);
          return select(bias == broadcast(-std::numeric_limits<T>::infinity()), bias, logit(product, key) + bias);
        };
      }
    };
    return Head{base_head, biases};
  }
};

/// Rows of numbers that repeat along the keys: that of key j and row i of head h is
/// data[i * row_stride + h * head_stride + j mod period]. Each row must be readable for a vector beyond its period, and go
/// on there as it begins, unless no key reaches the period.
template <std::floating_point T>
struct PeriodicRows {
  const T* data = nullptr;
  Index row_stride = 0, head_stride = 0;
  Index period = 1;

  Index place(Index key) const { return key < period ? key : key % period; }
};

/// logit = base logit + first * second, in the log2 domain together: a table of biases where `second` is 1.
template <class Base>
struct ProductBiasScore {
  using Scalar = typename Base::Scalar;
  using T = Scalar;
  static constexpr bool plain = false;
  static constexpr bool may_exclude = Base::may_exclude;

  Base base;
  PeriodicRows<T> first, second;

  T query_factor() const { return base.query_factor(); }
  bool excludes(Index key) const { return base.excludes(key); }

  auto head(Index h) const {
    auto base_head = base.head(h);
    struct Head {
      decltype(base_head) base;
      PeriodicRows<T> first, second;

      auto row(Index i) const {
        return [logit = base.row(i), *this, a = first.data + i * first.row_stride,
                b = second.data + i * second.row_stride](Batch<T> product, Index key) SEQMIX_INLINE_LAMBDA -> Batch<T> {
          return fma(load(a + first.place(key)), load(b + second.place(key)), logit(product, key));
        };
      }
    };
    const auto of_head = [h](PeriodicRows<T> rows) {
      rows.data += h * rows.head_stride;
      return rows;
    };
    return Head{base_head, of_head(first), of_head(second)};
  }
};

static_assert(AttentionScore<DotScore<float>> && AttentionScore<KeyBiasScore<AlibiScore<SoftcapScore<double>>>>);
static_assert(AttentionScore<ProductBiasScore<DotScore<float>>>);

}  // namespace seqmix::inline SEQMIX_ARCH
