// What a linear recurrence is given: sequences, policies and a memory; and how blocks of it are staged for the kernels.
#pragma once

#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/decay.hpp>
#include <seqmix/engine/delta.hpp>
#include <seqmix/engine/memory.hpp>
#include <seqmix/simd/batch.hpp>
#include <seqmix/simd/math.hpp>
#include <seqmix/simd/row_map.hpp>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// source[0 .. lanes) as far as `count` goes, zeros beyond.
template <class T>
SEQMIX_ALWAYS_INLINE Batch<T> load_some(const T* source, Index count) {
  return count >= lanes<T> ? load(source) : load_partial(source, count);
}

template <class T>
SEQMIX_ALWAYS_INLINE void store_some(T* destination, const Batch<T>& value, Index count) {
  if (count >= lanes<T>) {
    store(destination, value);
  } else {
    store_partial(destination, value, count);
  }
}

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

  static_assert(!(Delta::any && Readout::bonus));

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
                                   {memory.row(h, 0), key_dim(), value_dim(), memory.row_stride()}};
    if constexpr (Delta::low_rank) {
      result.a = delta.a.head(shared(delta.a.heads()));
      result.b = delta.b.head(shared(delta.b.heads()));
    } else if constexpr (Delta::any) {
      result.beta = delta.beta.columns(shared(delta.heads()), 1);
    }
    if constexpr (Readout::bonus) result.bonus = readout.weight.row(shared(readout.weight.length()));
    return result;
  }
};

namespace detail {

template <class T>
inline constexpr T log2_e = T(1.4426950408889634073599246810018921L);

/// Decay factors exp(log decay) of `count` tokens from `begin` on: [count][padded key_dim] if they differ by channel
/// (padding is 1), else [count]. Constant decays have one row.
template <class Decay, class T>
void load_factors(const LinearRecurrenceHead<T>& head, Index begin, Index count, T* factors) {
  const Batch<T> to_base_2 = broadcast(log2_e<T>);
  if constexpr (!Decay::any) return;
  if constexpr (Decay::constant) count = 1;
  if constexpr (Decay::per_channel) {
    const Index key_dim = head.log_decay.channels(), pitch = padded<T>(key_dim);
    for (Index t = 0; t < count; ++t) {
      const T* log_decay = head.log_decay.data() + (begin + t) * head.log_decay.stride();
      for (Index i = 0; i < key_dim; i += lanes<T>) {
        store(factors + t * pitch + i, exp2_decay(load_some(log_decay + i, key_dim - i) * to_base_2));
      }
    }
  } else {
    for (Index t = 0; t < count; ++t) factors[t] = head.log_decay.data()[(begin + t) * head.log_decay.stride()];
    for (Index t = 0; t < count; t += lanes<T>) {
      store_some(factors + t, exp2_decay(load_some(factors + t, count - t) * to_base_2), count - t);
    }
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

/// The rows of some tokens of one head, [tokens][padded key_dim], that the coefficients are made of: queries (scaled),
/// keys, and, with a low-rank delta policy, its vectors a and b.
template <class T>
struct StagedRows {
  T *queries = nullptr, *keys = nullptr, *a = nullptr, *b = nullptr;

  StagedRows() = default;

  /// For `tokens` tokens of a problem with policy Delta.
  template <class Delta>
  StagedRows(const Delta&, Index tokens, Index key_dim, Workspace& workspace) {
    const Index size = tokens * padded<T>(key_dim);
    queries = workspace.take<T>(size).data();
    keys = workspace.take<T>(size).data();
    if constexpr (Delta::low_rank) {
      a = workspace.take<T>(size).data();
      b = workspace.take<T>(size).data();
    }
  }

  /// Takes the rows of `count` tokens from `begin` on.
  template <class Problem>
  void load(const Problem& problem, const LinearRecurrenceHead<T>& head, Index begin, Index count) const {
    const Index key_dim = problem.key_dim();
    stage_rows(head.query, problem.query_map, problem.scale, begin, count, key_dim, queries);
    stage_rows(head.key, problem.key_map, T(1), begin, count, key_dim, keys);
    if constexpr (decltype(problem.delta)::low_rank) {
      stage_rows(head.a, row_map<T>, T(1), begin, count, key_dim, a);
      stage_rows(head.b, row_map<T>, T(1), begin, count, key_dim, b);
    }
  }

  /// Those from the token on that lies `offset` numbers further.
  StagedRows from(Index offset) const {
    StagedRows result = *this;
    result.queries += offset;
    result.keys += offset;
    if (a) result.a += offset;
    if (b) result.b += offset;
    return result;
  }
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
