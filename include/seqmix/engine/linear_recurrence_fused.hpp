// The fused order of the linear recurrence: one pass over the memory for every few tokens.
//
// Over M tokens 1 .. M the recurrence unrolls to
//     o_t = q'_t^T S_0 + sum_{s <= t} a[t, s] v_s,       S_M = diag(d) S_0 + sum_s k'_s v_s^T
// where q'_t, k'_s and d are q_t, k_s and 1 times the decays between the tokens and the ends of the block, and a[t, s] is
// q_t . k_s times those between s and t. All are products of factors <= 1, so nothing overflows however strong the
// decay. The memory is read and written once for M tokens: with M = 4, a vector of it costs one load, one store, one
// multiplication and eight fused multiply-adds, where a token at a time costs four loads, four stores, four
// multiplications and eight fused multiply-adds.
//
// The memory is held in panels of two vectors of value columns, [key_dim][2 vectors], copied on entry and exit. Blocks of
// tokens are the outer loop and heads the inner, so the coefficients and one panel stay in the first-level cache.
#pragma once

#include <algorithm>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/decay.hpp>
#include <seqmix/engine/memory.hpp>
#include <seqmix/simd/batch.hpp>
#include <seqmix/simd/math.hpp>
#include <seqmix/simd/microkernel.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// What one head of the recurrence reads and writes: sequences over tokens, and its memory [key_dim, value_dim].
template <class T>
struct LinearRecurrenceHead {
  Sequence<const T> query, key, value, log_decay;
  const T* bonus;
  Sequence<T> output, memory;
};

/// Queries and keys as they are.
struct IdentityMap {
  template <class Batch>
  SEQMIX_ALWAYS_INLINE Batch operator()(const Batch& x) const {
    return x;
  }
};

/// Everything that one evaluation of the recurrence reads and writes. Shapes: query, key [length, heads', key_dim],
/// value [length, heads', value_dim], output [length, heads, value_dim], memory [heads, key_dim, value_dim], where each
/// heads' divides heads: consecutive heads of the output share one of theirs. The maps apply to every element of the
/// queries and of the keys as they are read.
template <class T, class Decay, class Readout = readout::AfterUpdate<T>, class Normalizer = normalizer::None<T>,
          class QueryMap = IdentityMap, class KeyMap = IdentityMap>
struct LinearRecurrenceProblem {
  HeadSequence<const T> query, key, value;
  Decay decay;
  Readout readout;
  Normalizer normalizer;
  T scale;
  MemoryView<T> memory;
  HeadSequence<T> output;
  [[no_unique_address]] QueryMap query_map = {};
  [[no_unique_address]] KeyMap key_map = {};

  Index length() const { return output.length(); }
  Index heads() const { return output.heads(); }
  Index key_dim() const { return memory.key_dim(); }
  Index value_dim() const { return memory.value_dim(); }

  /// What head h reads and writes.
  LinearRecurrenceHead<T> head(Index h) const {
    const auto shared = [&](Index count) { return h * count / heads(); };
    LinearRecurrenceHead<T> result{query.head(shared(query.heads())),
                                   key.head(shared(key.heads())),
                                   value.head(shared(value.heads())),
                                   decay.head(shared(decay.heads())),
                                   {},
                                   output.head(h),
                                   {memory.row(h, 0), key_dim(), value_dim(), memory.row_stride()}};
    if constexpr (Readout::bonus) result.bonus = readout.weight.row(shared(readout.weight.length()));
    return result;
  }
};

namespace detail {

template <class T>
inline constexpr T log2_e = T(1.4426950408889634073599246810018921L);

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

/// Decay factors exp(log decay) of `count` tokens from `begin` on: [count][padded key_dim] if they differ by channel
/// (padding is 1), else [count]. Constant decays have one row.
template <class Decay, class T>
void load_factors(const LinearRecurrenceHead<T>& head, Index begin, Index count, T* factors) {
  const Batch<T> to_base_2 = broadcast(log2_e<T>);
  if constexpr (!Decay::any) return;
  if constexpr (Decay::constant) count = 1;
  if constexpr (Decay::per_channel) {
    const Index key_dim = head.key.channels(), pitch = padded<T>(key_dim);
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

/// scale * query_map(q) and key_map(k) of `count` tokens from `begin` on, [count][padded key_dim] each, zeros in the
/// padding: what the coefficients are made of.
template <class T, class Problem>
void stage_queries_and_keys(const Problem& problem, const LinearRecurrenceHead<T>& head, Index begin, Index count,
                            T* queries, T* keys) {
  const Index key_dim = problem.key_dim(), pitch = padded<T>(key_dim), whole = key_dim / lanes<T> * lanes<T>;
  const Batch<T> scale = broadcast(problem.scale);
  for (Index t = 0; t < count; ++t) {
    const T* query = head.query.row(begin + t);
    const T* key = head.key.row(begin + t);
    for (Index i = 0; i < whole; i += lanes<T>) {
      store(queries + t * pitch + i, problem.query_map(load(query + i)) * scale);
      store(keys + t * pitch + i, problem.key_map(load(key + i)));
    }
    if (whole < key_dim) {
      const Index tail = key_dim - whole;
      const Batch<T> zero = broadcast(T(0));
      store(queries + t * pitch + whole, zero);
      store(keys + t * pitch + whole, zero);
      store_partial(queries + t * pitch + whole, problem.query_map(load_partial(query + whole, tail)) * scale, tail);
      store_partial(keys + t * pitch + whole, problem.key_map(load_partial(key + whole, tail)), tail);
    }
  }
}

/// The coefficients of Tokens consecutive tokens of one head, in the order in which the sweep reads them.
///   rows   [padded key_dim / lanes][1 + 2 Tokens][lanes]: for each vector of key channels d, k'_1 .. k'_M, q'_1 .. q'_M
///   mix    a[t, s] at t (t + 1) / 2 + s
///   inverse_denominator  [Tokens], with a normalizer
template <class T, Index Tokens>
struct RecurrenceCoefficients {
  static constexpr Index token_count = Tokens;
  static constexpr Index row_vectors = 1 + 2 * Tokens;
  static constexpr Index pairs = Tokens * (Tokens + 1) / 2;

  T* rows = nullptr;
  T mix[pairs];
  T inverse_denominator[Tokens];

  static constexpr Index size(Index key_dim) { return row_vectors * padded<T>(key_dim); }
};

/// Computes the coefficients of Tokens tokens from their staged queries and keys (see stage_queries_and_keys) and factors
/// (see load_factors). `key_sum` [padded key_dim] is z, with a normalizer.
template <Index Tokens, class T, class Problem>
void prepare_coefficients(const Problem& problem, const LinearRecurrenceHead<T>& head, const T* queries, const T* keys,
                          const T* factors, T* key_sum, RecurrenceCoefficients<T, Tokens>& result) {
  using Decay = decltype(problem.decay);
  using Readout = decltype(problem.readout);
  using Normalizer = decltype(problem.normalizer);
  constexpr Index width = lanes<T>;
  constexpr Index row_vectors = RecurrenceCoefficients<T, Tokens>::row_vectors;
  constexpr Index pairs = RecurrenceCoefficients<T, Tokens>::pairs;
  // Reading before the update, token t sees the decays of the tokens before it only.
  constexpr Index lag = Readout::bonus ? 1 : 0;
  const Index key_dim = problem.key_dim(), pitch = padded<T>(key_dim);
  const Index factor_stride = Decay::constant ? 0 : Decay::per_channel ? pitch : 1;
  const auto factor = [&](Index t, Index i) SEQMIX_INLINE_LAMBDA -> Batch<T> {
    if constexpr (Decay::per_channel) {
      return load(factors + t * factor_stride + i);
    } else {
      return broadcast(factors[t * factor_stride]);
    }
  };

  for (Index i = 0; i < key_dim; i += width) {
    T* rows = result.rows + i * row_vectors;
    Batch<T> decay_after = broadcast(T(1));
    unroll<Tokens>([&](auto back) SEQMIX_INLINE_LAMBDA {
      constexpr Index s = Tokens - 1 - back;
      const Batch<T> k = load(keys + s * pitch + i);
      if constexpr (Decay::any) {
        store(rows + (1 + s) * width, s == Tokens - 1 ? k : k * decay_after);
        decay_after = s == Tokens - 1 ? factor(s, i) : decay_after * factor(s, i);
      } else {
        store(rows + (1 + s) * width, k);
      }
    });
    store(rows, decay_after);
    Batch<T> decay_before = broadcast(T(1));
    unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA {
      const Batch<T> q = load(queries + t * pitch + i);
      if constexpr (Decay::any && t - lag >= 0) {
        decay_before = t == lag ? factor(t - lag, i) : decay_before * factor(t - lag, i);
        store(rows + (1 + Tokens + t) * width, q * decay_before);
      } else {
        store(rows + (1 + Tokens + t) * width, q);
      }
    });
  }

  Batch<T> dot[pairs];
  unroll<pairs>([&](auto pair) SEQMIX_INLINE_LAMBDA { dot[pair] = broadcast(T(0)); });
  for (Index i = 0; i < key_dim; i += width) {
    unroll<Tokens>([&](auto s) SEQMIX_INLINE_LAMBDA {
      Batch<T> k = load(keys + s * pitch + i);
      unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA {
        if constexpr (t >= s) {
          constexpr Index pair = t * (t + 1) / 2 + s;
          const Batch<T> q = load(queries + t * pitch + i);
          if constexpr (Decay::any && Decay::per_channel && t - lag > s) k *= factor(t - lag, i);
          if constexpr (t == s && Readout::bonus) {
            dot[pair] = fma(q * load_some(head.bonus + i, key_dim - i), k, dot[pair]);
          } else {
            dot[pair] = fma(q, k, dot[pair]);
          }
        }
      });
    });
  }
  unroll<pairs>([&](auto pair) SEQMIX_INLINE_LAMBDA { result.mix[pair] = reduce_add(dot[pair]); });
  if constexpr (Decay::any && !Decay::per_channel) {
    for (Index s = 0; s < Tokens; ++s) {
      T between = T(1);
      for (Index t = s + 1; t < Tokens; ++t) {
        if (t - lag > s) between *= factors[(t - lag) * factor_stride];
        result.mix[t * (t + 1) / 2 + s] *= between;
      }
    }
  }

  if constexpr (Normalizer::any) {
    Batch<T> sum[Tokens];
    unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA { sum[t] = broadcast(T(0)); });
    for (Index i = 0; i < key_dim; i += width) {
      const T* rows = result.rows + i * row_vectors;
      Batch<T> z = load(key_sum + i);
      unroll<Tokens>([&](auto t)
                         SEQMIX_INLINE_LAMBDA { sum[t] = fma(load(rows + (1 + Tokens + t) * width), z, sum[t]); });
      if constexpr (Decay::any) z *= load(rows);
      unroll<Tokens>([&](auto s) SEQMIX_INLINE_LAMBDA { z += load(rows + (1 + s) * width); });
      store(key_sum + i, z);
    }
    for (Index t = 0; t < Tokens; ++t) {
      T denominator = reduce_add(sum[t]);
      for (Index s = 0; s <= t; ++s) denominator += result.mix[t * (t + 1) / 2 + s];
      result.inverse_denominator[t] = T(1) / (denominator + problem.normalizer.epsilon);
    }
  }
}

/// Takes one panel of the memory, [key_dim][2 vectors], over Tokens tokens, and writes their outputs. `columns` of the
/// panel's value columns exist. value and output are the panel's part of the first token's row.
template <Index Tokens, bool decays, bool normalizes, class T>
SEQMIX_ALWAYS_INLINE void sweep_panel(const RecurrenceCoefficients<T, Tokens>& coefficients, Index key_dim, T* panel,
                                      const T* value, Index value_stride, T* output, Index output_stride,
                                      Index columns) {
  constexpr Index width = lanes<T>;
  constexpr Index row_vectors = RecurrenceCoefficients<T, Tokens>::row_vectors;
  const bool full = columns >= 2 * width;
  const Index tail[2] = {std::min(columns, width), std::max(columns - width, Index(0))};

  Batch<T> v[Tokens][2], o[Tokens][2];
  unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA {
    unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA {
      const T* source = value + t * value_stride + b * width;
      v[t][b] = full ? load(source) : load_partial(source, tail[b]);
    });
    unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA {
      o[t][b] = broadcast(coefficients.mix[t * (t + 1) / 2]) * v[0][b];
      unroll<t>([&](auto s) SEQMIX_INLINE_LAMBDA {
        o[t][b] = fma(broadcast(coefficients.mix[t * (t + 1) / 2 + s + 1]), v[s + 1][b], o[t][b]);
      });
    });
  });

  const auto sweep_row = [&](const T* coefficient, T* row) SEQMIX_INLINE_LAMBDA {
    Batch<T> memory[2] = {load(row), load(row + width)};
    unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA {
      const Batch<T> q = broadcast(coefficient[(1 + Tokens + t) * width]);
      unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA { o[t][b] = fma(q, memory[b], o[t][b]); });
    });
    if constexpr (decays) {
      const Batch<T> d = broadcast(coefficient[0]);
      unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA { memory[b] *= d; });
    }
    unroll<Tokens>([&](auto s) SEQMIX_INLINE_LAMBDA {
      const Batch<T> k = broadcast(coefficient[(1 + s) * width]);
      unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA { memory[b] = fma(k, v[s][b], memory[b]); });
    });
    unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA { store(row + b * width, memory[b]); });
  };
  const T* rows = coefficients.rows;
  const Index whole = key_dim / width;
  for (Index j = 0; j < whole; ++j) {
    unroll<width>([&](auto r) SEQMIX_INLINE_LAMBDA { sweep_row(rows + r, panel + r * 2 * width); });
    rows += row_vectors * width;
    panel += width * 2 * width;
  }
  for (Index r = 0; r < key_dim - whole * width; ++r) sweep_row(rows + r, panel + r * 2 * width);

  unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA {
    unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA {
      if constexpr (normalizes) o[t][b] *= broadcast(coefficients.inverse_denominator[t]);
      T* destination = output + t * output_stride + b * width;
      if (full) {
        store(destination, o[t][b]);
      } else {
        store_partial(destination, o[t][b], tail[b]);
      }
    });
  });
}

/// Takes `Vectors` vectors of every row of a memory in place over one token. With columns >= 0, Vectors is 1 and only that
/// many columns exist.
template <Index Vectors, bool decays, class T>
SEQMIX_ALWAYS_INLINE void sweep_in_place(const RecurrenceCoefficients<T, 1>& coefficients, Index key_dim, T* memory,
                                         Index row_stride, const T* value, T* output, T output_scale, Index columns) {
  constexpr Index width = lanes<T>;
  const auto read = [&](const T* source) SEQMIX_INLINE_LAMBDA -> Batch<T> {
    return columns < 0 ? load(source) : load_partial(source, columns);
  };
  const auto write = [&](T* destination, const Batch<T>& x) SEQMIX_INLINE_LAMBDA {
    if (columns < 0) {
      store(destination, x);
    } else {
      store_partial(destination, x, columns);
    }
  };
  Batch<T> v[Vectors], o[Vectors];
  unroll<Vectors>([&](auto b) SEQMIX_INLINE_LAMBDA {
    v[b] = read(value + b * width);
    o[b] = broadcast(coefficients.mix[0]) * v[b];
  });
  const T* rows = coefficients.rows;
  for (Index i = 0; i < key_dim; ++i) {
    const T* coefficient = rows + (i / width) * 3 * width + i % width;
    const Batch<T> d = broadcast(coefficient[0]), k = broadcast(coefficient[width]),
                   q = broadcast(coefficient[2 * width]);
    T* row = memory + i * row_stride;
    unroll<Vectors>([&](auto b) SEQMIX_INLINE_LAMBDA {
      Batch<T> x = read(row + b * width);
      o[b] = fma(q, x, o[b]);
      if constexpr (decays) x *= d;
      write(row + b * width, fma(k, v[b], x));
    });
  }
  unroll<Vectors>([&](auto b) SEQMIX_INLINE_LAMBDA { write(output + b * width, o[b] * broadcast(output_scale)); });
}

/// The recurrence token by token on the memory where it is: for single steps and a few tokens. Serial.
template <class T, class Problem>
void linear_recurrence_in_place(const Problem& problem, Workspace& workspace) {
  using Decay = decltype(problem.decay);
  using Normalizer = decltype(problem.normalizer);
  constexpr Index width = lanes<T>;
  const Index key_dim = problem.key_dim(), value_dim = problem.value_dim(), pitch = padded<T>(key_dim);
  const auto frame = workspace.frame();
  RecurrenceCoefficients<T, 1> coefficients;
  coefficients.rows = workspace.take<T>(RecurrenceCoefficients<T, 1>::size(key_dim)).data();
  T* queries = workspace.take<T>(pitch).data();
  T* keys = workspace.take<T>(pitch).data();
  T* factors = workspace.take<T>(pitch).data();
  T* key_sum = workspace.take<T>(Normalizer::any ? pitch : 0).data();
  for (Index h = 0; h < problem.heads(); ++h) {
    const auto head = problem.head(h);
    if constexpr (Normalizer::any) {
      std::fill_n(key_sum, pitch, T(0));
      std::copy_n(problem.normalizer.sum.row(h), key_dim, key_sum);
    }
    if constexpr (Decay::constant) load_factors<Decay>(head, 0, 1, factors);
    for (Index t = 0; t < problem.length(); ++t) {
      if constexpr (!Decay::constant) load_factors<Decay>(head, t, 1, factors);
      stage_queries_and_keys(problem, head, t, 1, queries, keys);
      prepare_coefficients<1>(problem, head, queries, keys, factors, key_sum, coefficients);
      T output_scale = T(1);
      if constexpr (Normalizer::any) output_scale = coefficients.inverse_denominator[0];
      const auto sweep = [&](auto vectors, Index column, Index columns) SEQMIX_INLINE_LAMBDA {
        sweep_in_place<vectors, Decay::any>(coefficients, key_dim, head.memory.data() + column, head.memory.stride(),
                                            head.value.row(t) + column, head.output.row(t) + column, output_scale,
                                            columns);
      };
      Index column = 0;
      for (; column + 8 * width <= value_dim; column += 8 * width) {
        sweep(std::integral_constant<Index, 8>{}, column, Index(-1));
      }
      for (; column + 2 * width <= value_dim; column += 2 * width) {
        sweep(std::integral_constant<Index, 2>{}, column, Index(-1));
      }
      for (; column < value_dim; column += width) {
        const Index columns = std::min(width, value_dim - column);
        sweep(std::integral_constant<Index, 1>{}, column, columns == width ? Index(-1) : columns);
      }
    }
    if constexpr (Normalizer::any) std::copy_n(key_sum, key_dim, problem.normalizer.sum.row(h));
  }
}

/// The work of one thread in the fused order: panels first .. last - 1, counted over heads and the panels of each.
template <class T, class Problem>
void linear_recurrence_fused_panels(const Problem& problem, Sequence<const T> initial_key_sum, Index first, Index last,
                                    Workspace& workspace) {
  using Decay = decltype(problem.decay);
  using Normalizer = decltype(problem.normalizer);
  constexpr Index width = lanes<T>, panel_columns = 2 * width;
  constexpr Index tokens = 4, block = 16;  // tokens per sweep, and per block of coefficients
  const Index length = problem.length(), key_dim = problem.key_dim(), value_dim = problem.value_dim();
  const Index panels = (value_dim + panel_columns - 1) / panel_columns, pitch = padded<T>(key_dim);
  const Index first_head = first / panels, last_head = (last - 1) / panels, heads = last_head - first_head + 1;

  // Scratch: the panels, the coefficients of one block (and of up to 3 single tokens), factors, sums of keys.
  const Index panel_size = key_dim * panel_columns;
  T* memory = workspace.take<T>((last - first) * panel_size).data();
  RecurrenceCoefficients<T, tokens> quads[block / tokens];
  for (auto& quad : quads) quad.rows = workspace.take<T>(RecurrenceCoefficients<T, tokens>::size(key_dim)).data();
  RecurrenceCoefficients<T, 1> singles[tokens - 1];
  for (auto& single : singles) single.rows = workspace.take<T>(RecurrenceCoefficients<T, 1>::size(key_dim)).data();
  T* queries = workspace.take<T>(block * pitch).data();
  T* keys = workspace.take<T>(block * pitch).data();
  const Index factor_size = Decay::constant ? heads * pitch : block * pitch;
  T* factors = workspace.take<T>(factor_size).data();
  T* key_sums = workspace.take<T>(Normalizer::any ? heads * pitch : 0).data();

  const auto columns_of = [&](Index panel) { return std::min(panel_columns, value_dim - panel * panel_columns); };
  for (Index unit = first; unit < last; ++unit) {
    const Index head = unit / panels, panel = unit % panels, columns = columns_of(panel);
    T* destination = memory + (unit - first) * panel_size;
    for (Index i = 0; i < key_dim; ++i) {
      T* row =
          std::copy_n(problem.memory.row(head, i) + panel * panel_columns, columns, destination + i * panel_columns);
      std::fill(row, destination + (i + 1) * panel_columns, T(0));
    }
  }
  for (Index h = first_head; h <= last_head; ++h) {
    if constexpr (Normalizer::any) {
      T* sum = key_sums + (h - first_head) * pitch;
      std::fill_n(sum, pitch, T(0));
      std::copy_n(initial_key_sum.row(h), key_dim, sum);
    }
    if constexpr (Decay::constant) load_factors<Decay>(problem.head(h), 0, 1, factors + (h - first_head) * pitch);
  }

  for (Index begin = 0; begin < length; begin += block) {
    const Index count = std::min(block, length - begin), quad_count = count / tokens, single_count = count % tokens;
    for (Index h = first_head; h <= last_head; ++h) {
      const auto head = problem.head(h);
      T* key_sum = key_sums + (Normalizer::any ? (h - first_head) * pitch : 0);
      T* head_factors = factors + (Decay::constant ? (h - first_head) * pitch : 0);
      if constexpr (!Decay::constant) load_factors<Decay>(head, begin, count, head_factors);
      stage_queries_and_keys(problem, head, begin, count, queries, keys);
      const auto factors_at = [&](Index t) {
        return head_factors + (Decay::constant ? 0 : Decay::per_channel ? t * pitch : t);
      };
      for (Index quad = 0; quad < quad_count; ++quad) {
        const Index t = quad * tokens;
        prepare_coefficients<tokens>(problem, head, queries + t * pitch, keys + t * pitch, factors_at(t), key_sum,
                                     quads[quad]);
      }
      for (Index single = 0; single < single_count; ++single) {
        const Index t = quad_count * tokens + single;
        prepare_coefficients<1>(problem, head, queries + t * pitch, keys + t * pitch, factors_at(t), key_sum,
                                singles[single]);
      }

      // The rows of a sequence lie far apart, which defeats the hardware's prefetcher: ask for those that come next, the
      // same tokens of the next head or the next tokens of the first one, a few lines before each sweep.
      const bool wraps = h == last_head;
      const auto next = problem.head(wraps ? first_head : h + 1);
      const Index next_begin = wraps ? begin + block : begin;
      const auto prefetch = [&](Index t, Index panel) SEQMIX_INLINE_LAMBDA {
        constexpr Index line = Index(memory_alignment / sizeof(T));
        t = std::min(next_begin + t, length - 1);
        for (Index i = panel * line; i < key_dim; i += panels * line) {
          prefetch_read(next.query.row(t) + i);
          prefetch_read(next.key.row(t) + i);
          if constexpr (!Decay::constant && Decay::per_channel) prefetch_read(next.log_decay.row(t) + i);
        }
        for (Index j = panel * panel_columns; j < std::min(value_dim, (panel + 1) * panel_columns); j += line) {
          prefetch_read(next.value.row(t) + j);
          prefetch_write(next.output.row(t) + j);
        }
      };

      const Index first_unit = std::max(first, h * panels), last_unit = std::min(last, (h + 1) * panels);
      for (Index unit = first_unit; unit < last_unit; ++unit) {
        const Index panel = unit - h * panels, columns = columns_of(panel);
        T* panel_memory = memory + (unit - first) * panel_size;
        const auto sweep = [&](const auto& coefficients, Index t) SEQMIX_INLINE_LAMBDA {
          sweep_panel<std::remove_cvref_t<decltype(coefficients)>::token_count, Decay::any, Normalizer::any>(
              coefficients, key_dim, panel_memory, head.value.row(begin + t) + panel * panel_columns,
              head.value.stride(), head.output.row(begin + t) + panel * panel_columns, head.output.stride(), columns);
        };
        for (Index quad = 0; quad < quad_count; ++quad) {
          for (Index t = quad * tokens; t < (quad + 1) * tokens; ++t) prefetch(t, panel);
          sweep(quads[quad], quad * tokens);
        }
        for (Index single = 0; single < single_count; ++single) sweep(singles[single], quad_count * tokens + single);
      }
    }
  }

  for (Index unit = first; unit < last; ++unit) {
    const Index head = unit / panels, panel = unit % panels;
    const T* source = memory + (unit - first) * panel_size;
    for (Index i = 0; i < key_dim; ++i) {
      std::copy_n(source + i * panel_columns, columns_of(panel), problem.memory.row(head, i) + panel * panel_columns);
    }
    if constexpr (Normalizer::any) {
      if (panel == 0) std::copy_n(key_sums + (head - first_head) * pitch, key_dim, problem.normalizer.sum.row(head));
    }
  }
}

}  // namespace detail

/// The recurrence in the fused order, split between threads by value columns. O(heads key_dim value_dim) per token.
template <class T, class Decay, class Readout, class Normalizer, class QueryMap, class KeyMap>
void linear_recurrence_fused(const LinearRecurrenceProblem<T, Decay, Readout, Normalizer, QueryMap, KeyMap>& problem,
                             Workspace& workspace) {
  const Index panels = (problem.value_dim() + 2 * lanes<T> - 1) / (2 * lanes<T>), units = problem.heads() * panels;
  const Index workers = std::min(workspace.concurrency(), units);
  if (workers == 0) return;
  const auto frame = workspace.frame();
  Sequence<T> initial_key_sum;
  if constexpr (Normalizer::any) {
    // Threads that share a head all start from its sum, so none may overwrite it before the others have read it.
    initial_key_sum = workspace.sequence<T>(problem.heads(), problem.key_dim());
    for (Index head = 0; head < problem.heads(); ++head) {
      std::copy_n(problem.normalizer.sum.row(head), problem.key_dim(), initial_key_sum.row(head));
    }
  }
  workspace.parallel_for(workers, [&](Index worker, Workspace& local) {
    detail::linear_recurrence_fused_panels<T>(problem, initial_key_sum, units * worker / workers,
                                              units * (worker + 1) / workers, local);
  });
}

}  // namespace seqmix::inline SEQMIX_ARCH
