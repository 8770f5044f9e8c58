// Delta policies of the linear recurrence: what a token takes out of the memory before it adds its value.
#pragma once

#include <seqmix/core/view.hpp>

namespace seqmix::delta {

/// Nothing: S_t = diag(d_t) S_{t-1} + k_t v_t^T.
template <class T>
struct None {
  static constexpr bool any = false;
  static constexpr bool low_rank = false;
};

/// What the decayed memory already holds under the token's key, in part: the delta rule.
///   S' = diag(d_t) S_{t-1},   S_t = S' + k_t (beta_t (v_t - S'^T k_t))^T
/// beta [length, heads'], in [0, 2] for unit keys. Consecutive heads of the output share one of its heads.
template <class T>
struct Rule {
  static constexpr bool any = true;
  static constexpr bool low_rank = false;
  ConstSequence<T> beta;
  Index heads() const { return beta.channels(); }
};

/// A rank-one part of the memory as it was, before the decay (RWKV-7).
///   S_t = diag(d_t) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T
/// a, b [length, heads', key_dim].
template <class T>
struct LowRank {
  static constexpr bool any = true;
  static constexpr bool low_rank = true;
  ConstHeadSequence<T> a, b;
  Index heads() const { return a.heads(); }
};

}  // namespace seqmix::delta
