// Feature maps of linear attention: elementwise functions that make queries and keys positive, or not.
//
//   Source    Katharopoulos et al. 2020, arXiv:2006.16236 (elu(x) + 1); So et al. 2021, arXiv:2109.08668 (squared relu)
//
// A feature map is a policy type whose call operator maps a Batch<T> to a Batch<T>. NaN stays NaN.
#pragma once

#include <seqmix/core/view.hpp>
#include <seqmix/parts/row.hpp>
#include <seqmix/simd/arch.hpp>
#include <seqmix/simd/math.hpp>
#include <type_traits>

namespace seqmix::inline SEQMIX_ARCH {

namespace feature_map {

/// elu(x) + 1: x + 1 for x > 0, e^x else.
struct Elu1 {
  template <class B>
  SEQMIX_ALWAYS_INLINE B operator()(const B& x) const {
    return select(x > B(0), x + B(1), exp(x));
  }
};

/// max(x, 0).
struct Relu {
  template <class B>
  SEQMIX_ALWAYS_INLINE B operator()(const B& x) const {
    return max_propagating(x, B(0));
  }
};

/// e^x.
struct Exp {
  template <class B>
  SEQMIX_ALWAYS_INLINE B operator()(const B& x) const {
    return exp(x);
  }
};

/// x.
struct Identity {
  template <class B>
  SEQMIX_ALWAYS_INLINE B operator()(const B& x) const {
    return x;
  }
};

/// max(x, 0)^2.
struct SquaredRelu {
  template <class B>
  SEQMIX_ALWAYS_INLINE B operator()(const B& x) const {
    const B positive = max_propagating(x, B(0));
    return positive * positive;
  }
};

}  // namespace feature_map

/// x = map(x) for every element, in place. x [length, heads, head_dim]. O(length * heads * head_dim), allocates nothing.
template <class T, class Map>
void apply_feature_map(HeadSequence<T> x, Map map) {
  if constexpr (std::is_same_v<Map, feature_map::Identity>) return;
  for (Index t = 0; t < x.length(); ++t) {
    for (Index h = 0; h < x.heads(); ++h) map_row(x.head_dim(), x.row(t, h), map, x.row(t, h));
  }
}

}  // namespace seqmix::inline SEQMIX_ARCH
