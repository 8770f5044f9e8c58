// Decays so weak that a factor does not express them.
//
// Near 1 a factor is off by up to half a unit in its last place, 2^-25 in float, and at every token by the same where the
// decay is: a memory that fades by e^-1e-7 a token is 2% off after a million tokens, and one that fades by e^-2e-8 does not
// fade at all. Nor does a product tell where a number of the memory, times the factor, is rounded back to the same number every
// time. Logarithms have all their digits, and what tokens add makes the rounding of the memory a random one. So,
//   over several tokens  logarithms are added up, and rows of the memory wait, as they are, for a decay worth a multiplication
//                        (least_decay). Meanwhile what the rows lack is multiplied into the queries that read them, and taken
//                        out of the keys that are added. What a rounded factor is off is left to the next one;
//   at a single token    there is nothing to wait in: the factor is rounded up or down at random, in proportion, and the
//                        memory once, with what the token adds. So is the memory at the end of a piece, with what it still
//                        waits for.
// What is left of the error is that of the memory, which is rounded at every few tokens, or every one: half a unit in the last
// place of either sign, so that it grows with the root of the number of tokens, or of those that the memory reaches back to
// if these are fewer. It stays below 2^-23 sqrt(tokens) of the largest output in float (tests/limits/weak_decays_test.cpp). Where
// all tokens are alike, or add nothing, roundings may all have the same sign: then a number of the memory may be off by 2^-25 of
// itself for each of them, as any sum may.
// A memory with a row that reaches back further than 2^16 tokens outgrows what tokens add nearly as a sum does, and is summed in
// two parts as one (linear_recurrence_sums.hpp), where it pays: in the fused order, in float. Its error no longer grows with the
// number of tokens, but with that of the pieces that a sequence comes in, since it is rounded, at random, at the end of each.
// That takes 15% longer, while such decays last. Left in one part, with the errors above, are memories
//   in place           single tokens and other short pieces: a memory in two is more to read and write at each of them, and
//                      the state has no place for the other part;
//   of a delta policy  what tokens take out of the memory keeps it small, as a rule;
//   with a normalizer  whose sum of keys would have to be in two parts as well;
//   of weighted tokens (Mamba-2 and 3) which take time: no head of a model reaches back that far;
//   in chunks          which read a memory in one part.
// Single tokens whose decay is not weak enough to be rounded at random (weak_decay), but the same at every one, may be off by
// 2^-13 of the output; so may decays of value columns, which are taken as they round, by more (decay::PerTokenValueChannel).
#pragma once

#include <limits>
#include <seqmix/engine/linear_recurrence_problem.hpp>
#include <seqmix/simd/batch.hpp>
#include <seqmix/simd/math.hpp>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// A memory is multiplied by no factor nearer to 1 than by this. Its square is nothing beside 1: to an error of half of it,
/// e^x is 1 + x and e^-x is 1 - x. Factors are rounded to as many units in the last place of 1 again, so that what they leave
/// of a number has any last digits, not always the same.
template <class T>
inline constexpr T least_decay = T(1) / T(Index(1) << (std::numeric_limits<T>::digits / 2 + 2));

/// Where a product of a few factors is as good as any: its error is 2^-15 of the decay in float. Larger, and groups that
/// decay weakly by chance alone would take time.
template <class T>
inline constexpr T strong_decay = T(1) / T(256);

/// Where a single factor is: its error is 2^-13 of the decay in float.
template <class T>
inline constexpr T weak_decay = T(1) / T(4096);

/// What a kernel keeps of the decays that the rows of a head's memory wait for: [lanes] numbers, 1 somewhere if a row may be
/// waiting or did not decay, else 0, then their logarithms, [padded key_dim], or [lanes] where all channels decay alike.
template <class Decay, class T>
constexpr Index pending_pitch(Index key_dim) {
  return !Decay::any ? 0 : lanes<T> + (Decay::per_channel ? padded<T>(key_dim) : lanes<T>);
}

/// Of row i of the memory.
template <class Decay, class T>
T pending_log(const T* pending, Index i) {
  return pending[lanes<T> + (Decay::per_channel ? i : 0)];
}

/// Some rows of coefficients, in vectors of key channels.
template <class T>
struct CoefficientRows {
  T* data = nullptr;
  Index vector_stride = 0;  ///< from one vector of key channels to the next
  Index row_stride = 0, rows = 0;

  /// Multiplies those of key channels i .. i + lanes - 1 by `factor`.
  void scale(Index i, const Batch<T>& factor) const {
    if (all(factor == broadcast(T(1)))) return;
    for (Index r = 0; r < rows; ++r) {
      T* const x = data + i / lanes<T> * vector_stride + r * row_stride;
      store(x, load(x) * factor);
    }
  }
};

/// Whether take_weak_decays has something to do, where `most` is the largest, by lane, of pending[0 .. lanes) and the
/// products of the factors of a group's tokens.
template <class T>
SEQMIX_ALWAYS_INLINE bool some_weak(const Batch<T>& most) {
  return any(most > broadcast(1 - strong_decay<T>));
}

// These get the sequence of logarithms, by value: a reference to a head would keep all of it out of registers, in kernels that
// hardly ever call them.

/// What a group of tokens multiplies by, for one vector of key channels.
template <class T>
struct GroupDecay {
  Batch<T> memory;   ///< the rows of the memory, after they are read
  Batch<T> read;     ///< queries that read the memory before that, beside the decays of the group
  Batch<T> written;  ///< keys that are added to it after that, likewise
};

/// That of key channels whose logarithms add up to `logs` and whose factors multiply up to `product`. `waits_for`, in `pending`,
/// are those of the tokens before, and then of these; `waiting` gathers whether there may be any.
template <class T, class Mask>
SEQMIX_ALWAYS_INLINE GroupDecay<T> group_decay(const Batch<T>& logs, const Batch<T>& product, T* waits_for,
                                               Mask& waiting) {
  const Batch<T> zero = broadcast(T(0)), one = broadcast(T(1)), rest = load(waits_for);
  const Batch<T> total = rest + logs, size = abs(total);
  const auto weak = size < broadcast(strong_decay<T>), waits = size < broadcast(least_decay<T>);
  const Batch<T> loss = expm1_fraction(total), rounded = one + loss, before = one + rest;
  const Batch<T> left = select(waits, total, select(weak, loss - (rounded - one), zero));
  waiting = waiting || weak;
  store(waits_for, left);
  return {select(waits, one, select(weak, rounded, product * before)), before, one - left};
}

/// That of a group of `tokens` tokens, those from token `first` on, where all key channels decay alike and by `product` in all.
template <class Decay, class T>
[[gnu::noinline]] GroupDecay<T> weak_decay_of_all(Sequence<const T> log_decay, Index first, Index tokens,
                                                  const Batch<T>& product, T* pending) {
  T logs = *log_decay.row(Decay::constant ? 0 : first);
  for (Index t = first + 1; !Decay::constant && t < first + tokens; ++t) logs += *log_decay.row(t);
  if constexpr (Decay::constant) logs *= T(tokens);
  auto waiting = broadcast(T(1)) < broadcast(T(0));
  const GroupDecay<T> result = group_decay(broadcast(logs), product, pending + lanes<T>, waiting);
  store(pending, select(waiting, broadcast(T(1)), broadcast(T(0))));
  return result;
}

/// Goes on with rows that wait, or that decay weakly, to behind a group of `tokens` tokens, those from token `first` on.
/// `decay` is the row that the memory is multiplied by, products of the tokens' factors before; `written` are those that are
/// added to it after that, `read` and `probing` those that read it before.
template <class Decay, class T>
[[gnu::noinline]] void take_weak_decays(Sequence<const T> log_decay, Index first, Index tokens, Index key_dim,
                                        T* pending, const CoefficientRows<T>& decay, const CoefficientRows<T>& written,
                                        const CoefficientRows<T>& read, const CoefficientRows<T>& probing = {}) {
  const Batch<T> zero = broadcast(T(0)), one = broadcast(T(1));
  GroupDecay<T> group{one, one, one};
  if constexpr (!Decay::per_channel) {
    group = weak_decay_of_all<Decay>(log_decay, first, tokens, load(decay.data), pending);
  }
  auto waiting = one < zero;
  for (Index i = 0; i < key_dim; i += lanes<T>) {
    T* const product = decay.data + i / lanes<T> * decay.vector_stride;
    if constexpr (Decay::per_channel) {
      Batch<T> logs = channel_log(log_decay, Decay::constant ? 0 : first, i);
      for (Index t = first + 1; !Decay::constant && t < first + tokens; ++t) logs += channel_log(log_decay, t, i);
      if constexpr (Decay::constant) logs *= broadcast(T(tokens));
      group = group_decay(logs, load(product), pending + lanes<T> + i, waiting);
    }
    store(product, group.memory);
    written.scale(i, group.written);
    read.scale(i, group.read);
    probing.scale(i, group.read);
  }
  if constexpr (Decay::per_channel) store(pending, select(waiting, one, zero));
}

/// Numbers of [-1/2, 1/2) that look random, from the bits of three others.
template <class T>
SEQMIX_ALWAYS_INLINE Batch<T> noise_of(const Batch<T>& a, const Batch<T>& b, const Batch<T>& c) {
  using Format = FloatFormat<T>;
  using Bits = typename Format::Bits;
  constexpr int size = int(8 * sizeof(T));
  auto bits = to_bits(a) + to_bits(b) * Bits(0x9E3779B1u) + to_bits(c) * Bits(0x85EBCA6Bu);
  bits = (bits ^ (bits >> (size / 2))) * Bits(0xC2B2AE35u);
  bits = bits ^ (bits >> (size / 2 - 1));
  const auto fraction = bits >> (size - Format::mantissa_bits);
  return from_bits<T>(fraction | to_bits(broadcast(T(1)))) - broadcast(T(1.5));
}

/// e^log for weak decays, rounded up or down at random, in proportion. `noise` as of noise_of.
template <class T>
SEQMIX_ALWAYS_INLINE Batch<T> dithered_factor(const Batch<T>& log, const Batch<T>& noise) {
  constexpr T last_place = std::numeric_limits<T>::epsilon() / 2;  // of numbers just below 1
  return broadcast(T(1)) + fma(noise, broadcast(last_place), expm1_fraction(log));
}

/// Replaces the factors of token t in `decay` by dithered ones, for the key channels where they are weak. What looks random comes from
/// the token itself: its staged rows, and a number of its value.
template <class T>
[[gnu::noinline]] void dither_weak_decays(Sequence<const T> log_decay, Index t, Index key_dim, const T* query,
                                          const T* key, T value, const CoefficientRows<T>& decay) {
  for (Index i = 0; i < key_dim; i += lanes<T>) {
    const Batch<T> log = channel_log(log_decay, t, i);
    const auto weak = abs(log) < broadcast(weak_decay<T>);
    if (!any(weak)) continue;
    const Batch<T> noise = noise_of(load(key + i), load(query + i), broadcast(value));
    T* const d = decay.data + i / lanes<T> * decay.vector_stride;
    store(d, select(weak, dithered_factor(log, noise), load(d)));
  }
}

/// Whether a single factor may be weak enough to be dithered. Double has digits enough.
template <class T>
inline constexpr bool dithers = std::numeric_limits<T>::digits < 53;

/// x e^log for a decay that rows no longer wait for, rounded up or down at random, in proportion: for most numbers it is less
/// than half a unit in the last place, and would be nothing every time. What looks random comes from the numbers themselves
/// and from `salt`. `rest` is what rounding took from x before, and is rounded with it.
template <class T>
SEQMIX_ALWAYS_INLINE Batch<T> decayed(const Batch<T>& x, const Batch<T>& log, T salt,
                                      const Batch<T>& rest = broadcast(T(0))) {
  if constexpr (!dithers<T>) return fma(x, log, x);
  using Bits = typename FloatFormat<T>::Bits;
  constexpr Bits exponent = ~Bits(0) >> (FloatFormat<T>::mantissa_bits + 1) << FloatFormat<T>::mantissa_bits;
  const Batch<T> last_place = from_bits<T>(to_bits(x) & exponent) * broadcast(std::numeric_limits<T>::epsilon());
  const Batch<T> change = fma(x, log, rest);
  const Batch<T> decayed =
      x + select(change == broadcast(T(0)), change, fma(noise_of(x, log, broadcast(salt)), last_place, change));
  return select(abs(x) == broadcast(std::numeric_limits<T>::infinity()), x, decayed);
}

}  // namespace detail

}  // namespace seqmix::inline SEQMIX_ARCH
