// What a linear recurrence is given: sequences, policies and a memory; and how blocks of it are staged for the kernels.
#pragma once

#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/decay.hpp>
#include <seqmix/engine/delta.hpp>
#include <seqmix/engine/memory.hpp>
#include <seqmix/simd/batch.hpp>
#include <seqmix/simd/math.hpp>
#include <seqmix/simd/row_map.hpp>
#include <type_traits>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// `count` rounded up to whole vectors.
template <class T>
constexpr Index padded(Index count) {
  return (count + lanes<T> - 1) / lanes<T> * lanes<T>;
}

}  // namespace detail

/// What one head of the recurrence reads and writes: sequences over tokens, and its memory [key_dim, value_dim].
template <class T>
struct LinearRecurrenceHead {
  Sequence<const T> query, key, value, log_decay;
  Sequence<const T> beta, a, b;  // of the delta policy
  const T* bonus;
  Sequence<T> output, memory;
  Sequence<const T> weight, own;  // of a weighted readout
  T skip;
};

/// What becomes of outputs as soon as some tokens of a head have them, while they are in the first-level cache.
/// function(parameters, head, token, column, output) is given the value columns from `column` on of the tokens from
/// `token` on, and may change them; every output is given once. A pointer for the reason that a RowMap is one.
template <class T>
struct OutputMap {
  void (*function)(const void* parameters, Index head, Index token, Index column, const Sequence<T>& output) = nullptr;
  const void* parameters = nullptr;  ///< must outlive the call that the map is given to
  HeadSequence<const T> reads = {};  ///< [length, heads, value_dim], or empty: what it reads from far away
};

/// Everything that one evaluation of the recurrence reads and writes. Shapes: query, key [length, heads', key_dim or what
/// their maps take],
/// value [length, heads', value_dim], output [length, heads, value_dim], memory [heads, key_dim, value_dim], where each
/// heads' divides heads: consecutive heads of the output share one of theirs. query_map and key_map
/// are applied to the rows of the queries and of the keys as they are read. A delta policy excludes reading before the
/// update.
template <class T, class Decay, class Readout = readout::AfterUpdate<T>, class Normalizer = normalizer::None<T>,
          class Delta = delta::None<T>>
struct LinearRecurrenceProblem {
  HeadSequence<const T> query, key, value;
  Decay decay;
  Readout readout;
  Normalizer normalizer;
  T scale;
  MemoryView<T> memory;
  HeadSequence<T> output;
  RowMap<T> query_map = row_map<T>;
  RowMap<T> key_map = row_map<T>;
  Delta delta{};
  OutputMap<T> output_map{};

  static_assert(!(Delta::any && Readout::bonus));
  static_assert(!(Readout::weighted &&
                  (Delta::any || Normalizer::any || Decay::per_channel || Decay::per_value_channel)));
  /// Whether the memory is a sum over all tokens, to be held in two parts (see decay::None).
  static constexpr bool sums = requires(Decay policy) { policy.compensation; } && !Delta::any;
  static_assert(!(sums && Decay::any && (Readout::bonus || Normalizer::any)));
  static_assert(!(Decay::per_value_channel && (Delta::any || Readout::bonus || Normalizer::any)));

  Index length() const { return output.length(); }
  Index heads() const { return output.heads(); }
  Index key_dim() const { return memory.key_dim(); }
  Index value_dim() const { return memory.value_dim(); }

  /// What head h reads and writes.
  LinearRecurrenceHead<T> head(Index h) const {
    // Most often every stream has all heads, and a division takes as long as a row of the memory.
    const auto shared = [&](Index count) { return count == heads() ? h : h * count / heads(); };
    LinearRecurrenceHead<T> result{query.head(shared(query.heads())),
                                   key.head(shared(key.heads())),
                                   value.head(shared(value.heads())),
                                   decay.head(shared(decay.heads())),
                                   {},
                                   {},
                                   {},
                                   {},
                                   output.head(h),
                                   memory.head(h),
                                   {},
                                   {},
                                   {}};
    if constexpr (Delta::low_rank) {
      result.a = delta.a.head(shared(delta.a.heads()));
      result.b = delta.b.head(shared(delta.b.heads()));
    } else if constexpr (Delta::any) {
      result.beta = delta.beta.columns(shared(delta.heads()), 1);
    }
    if constexpr (Readout::bonus) result.bonus = readout.weight.row(shared(readout.weight.length()));
    if constexpr (Readout::weighted) {
      result.weight = readout.weight.columns(shared(readout.weight.channels()), 1);
      result.own = readout.own.columns(shared(readout.own.channels()), 1);
      result.skip = readout.skip.channels() > 0 ? readout.skip[h] : T(0);
    }
    return result;
  }
};

namespace detail {

template <class T>
inline constexpr T log2_e = T(1.4426950408889634073599246810018921L);

/// The log decays of key channels i .. i + lanes - 1 for token t, where they differ by channel.
template <class T>
SEQMIX_ALWAYS_INLINE Batch<T> channel_log(const Sequence<const T>& logs, Index t, Index i) {
  return load_some(logs.data() + t * logs.stride() + i, logs.channels() - i);
}

/// e^log for decays.
template <class T>
SEQMIX_ALWAYS_INLINE Batch<T> factor_of(const Batch<T>& log) {
  return exp2_decay(log * broadcast(log2_e<T>));
}

/// How the rows of a memory decay: not at all, where it is the columns that do.
template <class Decay, class T>
using RowDecay = std::conditional_t<Decay::per_value_channel, decay::None<T>, Decay>;

/// Numbers from one token's decay factors to the next's, where they differ by channel: whole vectors of key channels, or
/// whole pairs of vectors of value channels.
template <class Decay, class T>
constexpr Index factor_pitch(Index key_dim, Index value_dim) {
  return Decay::per_value_channel ? padded<T>((value_dim + 1) / 2) * 2 : padded<T>(key_dim);
}

/// Decay factors exp(log decay) of `count` tokens from `begin` on: [count][factor_pitch] if they differ by channel (padding
/// is 1), else [count, in whole
/// vectors]. Constant decays have one row.
template <class Decay, class T>
void load_factors(const LinearRecurrenceHead<T>& head, Index begin, Index count, T* factors) {
  if constexpr (!Decay::any) return;
  if constexpr (Decay::constant) count = 1;
  if constexpr (Decay::per_channel || Decay::per_value_channel) {
    const Index channels = head.log_decay.channels(), pitch = factor_pitch<Decay, T>(channels, channels);
    for (Index t = 0; t < count; ++t) {
      for (Index i = 0; i < channels; i += lanes<T>) {
        store(factors + t * pitch + i, factor_of(channel_log(head.log_decay, begin + t, i)));
      }
      if (Decay::per_value_channel && padded<T>(channels) < pitch)
        store(factors + (t + 1) * pitch - lanes<T>, broadcast(T(1)));
    }
  } else {
    for (Index t = 0; t < count; ++t) factors[t] = head.log_decay.data()[(begin + t) * head.log_decay.stride()];
    for (Index t = count; t < padded<T>(count); ++t) factors[t] = T(0);
    for (Index t = 0; t < count; t += lanes<T>) store(factors + t, factor_of(load(factors + t)));
  }
}

/// scale * map(x) of `count` tokens from `begin` on, [count][padded key_dim], zeros in the padding.
template <class T>
void stage_rows(const Sequence<const T>& x, const RowMap<T>& map, T scale, Index begin, Index count, Index key_dim,
                T* staged) {
  for (Index t = 0; t < count; ++t) {
    map.function(map.parameters, x.row(begin + t), x.channels(), scale, staged + t * padded<T>(key_dim));
  }
}

/// Rows of key channels of consecutive tokens, in whole vectors.
template <class T>
struct TokenRows {
  const T* data = nullptr;
  Index stride = 0;

  const T* row(Index t) const { return data + t * stride; }
};

/// The rows of some tokens of one head that the coefficients are made of: queries (scaled), keys, and, with a low-rank
/// delta policy, its vectors a and b. They are where the problem has them, or copies, where a map or a scale is applied
/// or the key channels do not fill whole vectors.
template <class T>
class StagedRows {
 public:
  TokenRows<T> queries, keys, a, b;

  StagedRows() = default;

  /// For `tokens` tokens of a problem with policy Delta.
  template <class Delta>
  StagedRows(const Delta&, Index tokens, Index key_dim, Workspace& workspace) {
    const Index size = tokens * padded<T>(key_dim);
    copies_[0] = workspace.take<T>((Delta::low_rank ? 4 : 2) * size).data();
    for (Index i = 1; i < (Delta::low_rank ? 4 : 2); ++i) copies_[i] = copies_[i - 1] + size;
  }

  /// Takes the rows of `count` tokens from `begin` on.
  template <class Problem>
  void load(const Problem& problem, const LinearRecurrenceHead<T>& head, Index begin, Index count) {
    const auto rows = [&](const Sequence<const T>& x, const RowMap<T>& map, T scale, T* copies) -> TokenRows<T> {
      const Index key_dim = problem.key_dim();
      if (map.function == row_map<T>.function && scale == T(1) && key_dim % lanes<T> == 0) {
        return {x.data() + begin * x.stride(), x.stride()};
      }
      stage_rows(x, map, scale, begin, count, key_dim, copies);
      return {copies, padded<T>(key_dim)};
    };
    queries = rows(head.query, problem.query_map, problem.scale, copies_[0]);
    keys = rows(head.key, problem.key_map, T(1), copies_[1]);
    if constexpr (decltype(problem.delta)::low_rank) {
      a = rows(head.a, row_map<T>, T(1), copies_[2]);
      b = rows(head.b, row_map<T>, T(1), copies_[3]);
    }
  }

  /// Those from token t on.
  StagedRows from(Index t) const {
    StagedRows result = *this;
    for (TokenRows<T>* rows : {&result.queries, &result.keys, &result.a, &result.b}) rows->data += t * rows->stride;
    return result;
  }

 private:
  T* copies_[4] = {};
};

/// Calls f(r, coefficient, row) for every row i of a panel [key_dim][2 vectors]: coefficient is the first of the Vectors
/// that a row has, lanes apart, in [padded key_dim / lanes][Vectors][lanes]; r, an integral constant, is even and odd in
/// turn. Calls meanwhile() every `lanes` rows.
template <Index Vectors, class T, class Meanwhile, class F>
SEQMIX_ALWAYS_INLINE void for_each_row(Index key_dim, const T* coefficients, T* panel, Meanwhile&& meanwhile, F&& f) {
  constexpr Index width = lanes<T>, columns = 2 * width;
  constexpr std::integral_constant<Index, 0> even;
  constexpr std::integral_constant<Index, 1> odd;
  Index i = 0;
  // Two rows to a turn of the loop: more gain nothing and take the compiler longer.
  for (; i + width <= key_dim; i += width, coefficients += Vectors * width) {
    meanwhile();
    for (Index r = 0; r < width; r += 2, panel += 2 * columns) {
      f(even, coefficients + r, panel);
      if constexpr (width > 1) f(odd, coefficients + r + 1, panel + columns);
    }
  }
  if (i == key_dim) return;
  meanwhile();
  for (Index r = 0; r < key_dim - i; ++r) f(even, coefficients + r, panel + r * columns);
}

}  // namespace detail

}  // namespace seqmix::inline SEQMIX_ARCH
