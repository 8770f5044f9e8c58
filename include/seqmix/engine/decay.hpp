// Decay policies of the linear recurrence: by how much the memory fades from token to token.
//
// A policy gives the natural logarithm of the factor by which row i (or column j) of a head's memory is multiplied when a
// token is added. Logarithms are <= 0; -infinity (the row is forgotten) is legal. Policies with fewer heads than the
// recurrence are shared by groups of consecutive heads. head(h) is [length, key_dim], [length, value_dim] or [length, 1],
// with stride 0 where the decay is the same at every token.
#pragma once

#include <seqmix/core/view.hpp>
#include <seqmix/engine/memory.hpp>

namespace seqmix::decay {

/// No decay: the memory is a sum over all tokens, and loses digits as it outgrows what tokens add. So it is summed in two
/// parts: S_t = memory + compensation, the latter far smaller. Without a compensation to read and leave (an empty view) it
/// is 0 at first and, with its digits, dropped in the end: that rounds once for each piece of the sequence, or, in a piece
/// of a few tokens, once for each of these. Who multiplies the memory by a number does the same to the compensation.
template <class T>
struct None {
  static constexpr bool any = false;
  static constexpr bool per_channel = false;        ///< one factor for each key channel, else one for the whole head
  static constexpr bool per_value_channel = false;  ///< or one for each value channel
  static constexpr bool constant = true;            ///< the same at every token
  Index heads() const { return 1; }
  Sequence<const T> head(Index) const { return {}; }

  MemoryView<T> compensation =
      {};              ///< [heads, key_dim, value_dim] of the recurrence, or empty; not with a delta policy
  Index position = 0;  ///< tokens before this piece: where to go on moving digits into the memory
};

/// log_decay [heads], the same at every token (RetNet, lightning attention, RWKV-5.0 and 5.1).
template <class T>
struct PerHead {
  static constexpr bool any = true;
  static constexpr bool per_channel = false;
  static constexpr bool per_value_channel = false;
  static constexpr bool constant = true;
  ConstToken<T> log_decay;
  Index heads() const { return log_decay.channels(); }
  Sequence<const T> head(Index h) const { return {log_decay.data() + h, 1, 1, 0}; }
};

/// log_decay [heads, key_dim], the same at every token (RWKV-5.2).
template <class T>
struct PerChannel {
  static constexpr bool any = true;
  static constexpr bool per_channel = true;
  static constexpr bool per_value_channel = false;
  static constexpr bool constant = true;
  ConstSequence<T> log_decay;
  Index heads() const { return log_decay.length(); }
  Sequence<const T> head(Index h) const { return {log_decay.row(h), 1, log_decay.channels(), 0}; }
};

/// log_decay [length, heads] (Mamba-2, simple gated linear attention).
template <class T>
struct PerToken {
  static constexpr bool any = true;
  static constexpr bool per_channel = false;
  static constexpr bool per_value_channel = false;
  static constexpr bool constant = false;
  ConstSequence<T> log_decay;
  Index heads() const { return log_decay.channels(); }
  Sequence<const T> head(Index h) const { return log_decay.columns(h, 1); }
};

/// log_decay [length, heads], 0 at nearly every token: the memory is a sum over all tokens whose unit changes now and then,
/// as with weights relative to the largest so far (FAVOR+). It is summed in two parts, as that of None.
template <class T>
struct Rescaled {
  static constexpr bool any = true;
  static constexpr bool per_channel = false;
  static constexpr bool per_value_channel = false;
  static constexpr bool constant = false;
  ConstSequence<T> log_decay;
  Index heads() const { return log_decay.channels(); }
  Sequence<const T> head(Index h) const { return log_decay.columns(h, 1); }

  MemoryView<T> compensation = {};  ///< as of None, and for the same problems; without a normalizer
  Index position = 0;
};

/// log_decay [length, heads, key_dim] (gated linear attention, RWKV-6).
template <class T>
struct PerTokenChannel {
  static constexpr bool any = true;
  static constexpr bool per_channel = true;
  static constexpr bool per_value_channel = false;
  static constexpr bool constant = false;
  ConstHeadSequence<T> log_decay;
  Index heads() const { return log_decay.heads(); }
  Sequence<const T> head(Index h) const { return log_decay.head(h); }
};

/// log_decay [length, heads, value_dim]: columns of the memory fade, not rows (the keys of gated slot attention). Without
/// bonus, normalizer and delta rule. Factors are taken as they round: near 1, each is off by up to 2^-25 in float, and always
/// the same way where the decay is the same (other policies are exact there: linear_recurrence_fading.hpp).
template <class T>
struct PerTokenValueChannel {
  static constexpr bool any = true;
  static constexpr bool per_channel = false;
  static constexpr bool per_value_channel = true;
  static constexpr bool constant = false;
  ConstHeadSequence<T> log_decay;
  Index heads() const { return log_decay.heads(); }
  Sequence<const T> head(Index h) const { return log_decay.head(h); }
};

}  // namespace seqmix::decay

namespace seqmix::readout {

/// y_t = scale * q_t^T S_t: the token is in the memory that it reads.
template <class T>
struct AfterUpdate {
  static constexpr bool bonus = false;
  static constexpr bool weighted = false;
};

/// y_t = scale * q_t^T (S_{t-1} + diag(bonus) k_t v_t^T), bonus [heads, key_dim]: the token reads the memory left by the
/// one before, undecayed, and sees itself with a weight of its own (RWKV-5 and 6).
template <class T>
struct BeforeUpdate {
  static constexpr bool bonus = true;
  static constexpr bool weighted = false;
  ConstSequence<T> weight;
};

/// S_t = d_t S_{t-1} + weight_t k_t v_t^T,   y_t = scale * (q_t^T d_t S_{t-1} + own_t (q_t . k_t) v_t^T) + skip * v_t:
/// a token is written with one weight, sees itself with another (Mamba-2: the same; Mamba-3), and passes by the memory with
/// a third. Where all channels of a memory decay alike; without normalizer and delta rule.
template <class T>
struct Weighted {
  static constexpr bool bonus = false;
  static constexpr bool weighted = true;
  ConstSequence<T> weight, own;  ///< [length, heads']
  ConstToken<T> skip = {};       ///< [heads], or empty: 0
};

}  // namespace seqmix::readout

namespace seqmix::normalizer {

/// y_t as it is.
template <class T>
struct None {
  static constexpr bool any = false;
};

/// output_scale * y_t / (scale * q_t^T z_t + epsilon), where z_t = diag(decay) z_{t-1} + k_t: the memory of a value that
/// is always 1. sum [heads, key_dim] is read as z_0 and left as z after the last token. Without decay the sum is that of `sum`
/// and `compensation` [heads, key_dim], or an empty view, as for decay::None; `sum` is z rounded.
template <class T>
struct KeySum {
  static constexpr bool any = true;
  Sequence<T> sum;
  T epsilon;
  Sequence<T> compensation = {};
  T output_scale = T(1);  ///< beside the scale of the recurrence, which does nothing but weigh epsilon
};

}  // namespace seqmix::normalizer
