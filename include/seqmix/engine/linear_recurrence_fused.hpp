// The fused order of the linear recurrence: one pass over the memory for every few tokens.
//
// Over M tokens 1 .. M the recurrence unrolls to
//     o_t = q'_t^T S_0 + sum_{s <= t} a[t, s] v_s,       S_M = diag(d) S_0 + sum_s k'_s v_s^T
// where q'_t, k'_s and d are q_t, k_s and 1 times the decays between the tokens and the ends of the block, and a[t, s] is
// q_t . k_s times those between s and t. All are products of factors <= 1, so nothing overflows however strong the
// decay. The memory is read and written once for M tokens: with M = 3, a vector of it costs one load, one store, one
// multiplication and six fused multiply-adds, where a token at a time costs three loads, three stores, three
// multiplications and six fused multiply-adds.
#pragma once

#include <algorithm>
#include <cmath>
#include <iterator>
#include <seqmix/engine/linear_recurrence_fading.hpp>
#include <seqmix/engine/linear_recurrence_problem.hpp>
#include <seqmix/engine/linear_recurrence_sums.hpp>
#include <seqmix/simd/batch.hpp>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

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
  T mix[padded<T>(pairs)];
  T inverse_denominator[Tokens];

  RecurrenceCoefficients() = default;
  RecurrenceCoefficients(Index key_dim, Workspace& workspace)
      : rows(workspace.take<T>(row_vectors * padded<T>(key_dim)).data()) {}
};

/// a[t, s] where all channels decay alike, with the decays and the key's weight multiplied into the key before the query
/// is: for the rare product q_t . k_s that is beyond the largest number, or was before the decays.
template <Index lag, class T>
[[gnu::noinline]] T decay_then_multiply(const TokenRows<T>& queries, const TokenRows<T>& keys, Index pitch,
                                        const T* factors, Index factor_stride, Index s, Index t, T weight = T(1)) {
  Batch<T> sum = broadcast(T(0));
  for (Index i = 0; i < pitch; i += lanes<T>) {
    Batch<T> k = load(keys.row(s) + i) * broadcast(weight);
    for (Index r = s + 1; r <= t - lag; ++r) k *= broadcast(factors[r * factor_stride]);
    sum = fma(load(queries.row(t) + i), k, sum);
  }
  return reduce_add(sum);
}

/// The decay factors of Tokens tokens from token `first` on, for key channels i .. i + lanes - 1, from `factors` [.. or
/// Tokens][padded key_dim] (see load_factors). Where they differ by token and channel they are computed, and left
/// there.
template <class Decay, Index Tokens, class T>
SEQMIX_ALWAYS_INLINE void take_factors(const LinearRecurrenceHead<T>& head, Index first, Index i, Index pitch,
                                       T* factors, Batch<T> (&result)[Tokens]) {
  unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA {
    if constexpr (!Decay::any) {
      result[t] = broadcast(T(1));
    } else if constexpr (!Decay::per_channel) {
      result[t] = broadcast(factors[Decay::constant ? 0 : t]);
    } else if constexpr (Decay::constant) {
      result[t] = load(factors + i);
    } else {
      result[t] = factor_of(channel_log(head.log_decay, first + t, i));
      store(factors + t * pitch + i, result[t]);
    }
  });
}

/// Computes the coefficients of Tokens tokens, those from token `first` of the head's sequences on, from their rows and
/// factors. `factors` is what load_factors left of them, or, where they differ by token and channel, scratch
/// [Tokens][padded key_dim]. `pending` is what the memory waits for (see pending_pitch), as of the tokens before and then after
/// these; `key_sum` (see load_key_sum) is z, with a normalizer, which waits likewise.
template <class T, Index Tokens, class Problem>
void prepare_coefficients(const Problem& problem, const LinearRecurrenceHead<T>& head, Index first,
                          const StagedRows<T>& staged, T* factors, T* pending, T* key_sum,
                          RecurrenceCoefficients<T, Tokens>& result) {
  using Decay = RowDecay<decltype(problem.decay), T>;
  using Readout = decltype(problem.readout);
  using Normalizer = decltype(problem.normalizer);
  constexpr Index width = lanes<T>;
  constexpr Index row_vectors = RecurrenceCoefficients<T, Tokens>::row_vectors;
  constexpr Index pairs = RecurrenceCoefficients<T, Tokens>::pairs;
  // Reading before the update, token t sees the decays of the tokens before it only.
  constexpr Index lag = Readout::bonus ? 1 : 0;
  const Index key_dim = problem.key_dim(), pitch = padded<T>(key_dim);
  const TokenRows<T> queries = staged.queries, keys = staged.keys;
  const Index factor_stride = Decay::constant ? 0 : Decay::per_channel ? pitch : 1;

  Batch<T> weight[Tokens];
  unroll<Tokens>([&](auto s) SEQMIX_INLINE_LAMBDA {
    if constexpr (Readout::weighted) weight[s] = broadcast(*head.weight.row(first + s));
  });
  if constexpr (Decay::any && !Decay::per_channel) {
    // Where all channels decay alike, what the memory waits for is known before the rows are read.
    Batch<T> factor[Tokens], written[Tokens], read[Tokens];
    take_factors<Decay>(head, first, Index(0), pitch, factors, factor);
    Batch<T> product = factor[0];
    unroll<Tokens - 1>([&](auto t) SEQMIX_INLINE_LAMBDA { product *= factor[t + 1]; });
    GroupDecay<T> group{product, broadcast(T(1)), broadcast(T(1))};
    if (some_weak(max(product, load(pending)))) {
      group = weak_decay_of_all<Decay>(head.log_decay, first, Tokens, product, pending);
    }
    written[Tokens - 1] = group.written;
    read[0] = lag == 0 ? group.read * factor[0] : group.read;
    unroll<Tokens - 1>([&](auto t) SEQMIX_INLINE_LAMBDA {
      written[Tokens - 2 - t] = written[Tokens - 1 - t] * factor[Tokens - 1 - t];
      read[t + 1] = read[t] * factor[t + 1 - lag];
    });
    for (Index i = 0; i < key_dim; i += width) {
      T* rows = result.rows + i * row_vectors;
      store(rows, group.memory);
      unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA {
        Batch<T> k = load(keys.row(t) + i);
        if constexpr (Readout::weighted) k *= weight[t];
        store(rows + (1 + t) * width, k * written[t]);
        store(rows + (1 + Tokens + t) * width, load(queries.row(t) + i) * read[t]);
      });
    }
  } else {
    Batch<T> most = Decay::any ? load(pending) : broadcast(T(0));
    for (Index i = 0; i < key_dim; i += width) {
      T* rows = result.rows + i * row_vectors;
      Batch<T> factor[Tokens];
      take_factors<Decay>(head, first, i, pitch, factors, factor);
      Batch<T> decay_after = factor[Tokens - 1];
      unroll<Tokens>([&](auto back) SEQMIX_INLINE_LAMBDA {
        constexpr Index s = Tokens - 1 - back;
        Batch<T> k = load(keys.row(s) + i);
        if constexpr (Readout::weighted) k *= weight[s];
        if constexpr (!Decay::any || back == 0) {
          store(rows + (1 + s) * width, k);
        } else {
          store(rows + (1 + s) * width, k * decay_after);
          decay_after *= factor[s];
        }
      });
      store(rows, decay_after);
      most = max(decay_after, most);
      Batch<T> decay_before = factor[0];
      unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA {
        const Batch<T> q = load(queries.row(t) + i);
        if constexpr (!Decay::any || t < lag) {
          store(rows + (1 + Tokens + t) * width, q);
        } else {
          if constexpr (t > lag) decay_before *= factor[t - lag];
          store(rows + (1 + Tokens + t) * width, q * decay_before);
        }
      });
    }
    if constexpr (Decay::any) {
      if (some_weak(most)) [[unlikely]] {
        const auto rows = [&](Index begin, Index count) -> CoefficientRows<T> {
          return {result.rows + begin * width, row_vectors * width, width, count};
        };
        take_weak_decays<Decay>(head.log_decay, first, Tokens, key_dim, pending, rows(0, 1), rows(1, Tokens),
                                rows(1 + Tokens, Tokens));
      }
    }
  }

  Batch<T> dot[pairs];
  unroll<pairs>([&](auto pair) SEQMIX_INLINE_LAMBDA { dot[pair] = broadcast(T(0)); });
  for (Index i = 0; i < key_dim; i += width) {
    unroll<Tokens>([&](auto s) SEQMIX_INLINE_LAMBDA {
      Batch<T> k = load(keys.row(s) + i);
      unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA {
        if constexpr (t >= s) {
          constexpr Index pair = t * (t + 1) / 2 + s;
          const Batch<T> q = load(queries.row(t) + i);
          if constexpr (Decay::any && Decay::per_channel && t - lag > s) {
            k *= load(factors + (t - lag) * factor_stride + i);
          }
          if constexpr (t == s && Readout::bonus) {
            dot[pair] = fma(q * load_some(head.bonus + i, key_dim - i), k, dot[pair]);
          } else {
            dot[pair] = fma(q, k, dot[pair]);
          }
        }
      });
    });
  }
  reduce_add_each(dot, result.mix);
  if constexpr ((Decay::any && !Decay::per_channel) || Readout::weighted) {
    for (Index s = 0; s < Tokens; ++s) {
      T between = T(1);
      for (Index t = Readout::weighted ? s : s + 1; t < Tokens; ++t) {
        if constexpr (Decay::any) {
          if (t - lag > s) between *= factors[(t - lag) * factor_stride];
        }
        T& mix = result.mix[t * (t + 1) / 2 + s];
        T written = T(1);
        if constexpr (Readout::weighted) written = *(t == s ? head.own : head.weight).row(first + s);
        mix *= between * written;
        if (!std::isfinite(mix)) [[unlikely]] {
          mix = decay_then_multiply<lag, T>(queries, keys, pitch, factors, factor_stride, s, t, written);
        }
        if constexpr (Readout::weighted) {
          if (t == s) mix += head.skip;
        }
      }
    }
  }

  if constexpr (Normalizer::any) {
    Batch<T> sum[Tokens];
    unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA { sum[t] = broadcast(T(0)); });
    for (Index i = 0; i < key_dim; i += width) {
      const T* rows = result.rows + i * row_vectors;
      Batch<T> z = load(key_sum + i);
      const Batch<T> whole = whole_key_sum<Decay>(z, key_sum, pitch, i);
      unroll<Tokens>([&](auto t)
                         SEQMIX_INLINE_LAMBDA { sum[t] = fma(load(rows + (1 + Tokens + t) * width), whole, sum[t]); });
      if constexpr (Decay::any) z *= load(rows);
      unroll<Tokens>([&](auto s) SEQMIX_INLINE_LAMBDA { z += load(rows + (1 + s) * width); });
      store(key_sum + i, z);
    }
    for (Index t = 0; t < Tokens; ++t) {
      T denominator = reduce_add(sum[t]);
      for (Index s = 0; s <= t; ++s) denominator += result.mix[t * (t + 1) / 2 + s];
      result.inverse_denominator[t] = problem.normalizer.output_scale / (denominator + problem.normalizer.epsilon);
    }
  }
}

/// What the tokens of a block contribute to those whose products q_t . k_s are not all numbers, where columns fade: own
/// [Tokens][2 vectors], with the decays multiplied into the value and the key before the query is, because a product may be
/// beyond the largest number before the decays only. column_factors as in sweep_panel.
template <class T, Index Tokens>
[[gnu::noinline]] void fade_then_multiply(const RecurrenceCoefficients<T, Tokens>& coefficients, Index key_dim,
                                          const T* value, Index value_stride, const T* column_factors,
                                          Index factor_pitch, Index columns, T* own) {
  constexpr Index width = lanes<T>, row_vectors = RecurrenceCoefficients<T, Tokens>::row_vectors;
  for (Index t = 0; t < Tokens; ++t) {
    const T* mix = coefficients.mix + t * (t + 1) / 2;
    if (std::all_of(mix, mix + t + 1, [](T product) { return std::isfinite(product); })) continue;
    for (Index j = 0; j < columns; ++j) {
      T sum = T(0);
      for (Index s = 0; s <= t; ++s) {
        T faded = value[s * value_stride + j];
        for (Index r = s + 1; r <= t; ++r) faded *= column_factors[r * factor_pitch + j];
        for (Index i = 0; i < key_dim; ++i) {
          const T* coefficient = coefficients.rows + i / width * width * row_vectors + i % width;
          sum += coefficient[(1 + Tokens + t) * width] * (coefficient[(1 + s) * width] * faded);
        }
      }
      own[t * 2 * width + j] = sum;
    }
  }
}

/// Takes one panel of the memory, [key_dim][2 vectors], over Tokens tokens, and writes their outputs. `columns` of the
/// panel's value columns exist. value and output are the panel's part of the first token's row. In two parts, the panel is
/// the recent one, and the settled one is `settled` numbers from it, or, where that is 0, right behind it. `decays` says
/// whether rows of the memory do. Where columns fade, column_factors is the panel's part of the first token's factors,
/// factor_pitch apart from token to token. Calls meanwhile() every `lanes` rows of the memory.
template <bool decays, bool normalizes, bool two_parts, bool columns_fade = false, class T, Index Tokens,
          class Meanwhile>
SEQMIX_ALWAYS_INLINE void sweep_panel(const RecurrenceCoefficients<T, Tokens>& coefficients, Index key_dim, T* panel,
                                      const T* value, Index value_stride, T* output, Index output_stride, Index columns,
                                      T* /*values*/, const Meanwhile& meanwhile, Index settled = 0,
                                      const T* column_factors = nullptr, Index factor_pitch = 0) {
  constexpr Index width = lanes<T>;
  constexpr Index row_vectors = RecurrenceCoefficients<T, Tokens>::row_vectors;
  const bool full = columns >= 2 * width;
  const Index tail[2] = {std::min(columns, width), std::max(columns - width, Index(0))};
  if (settled == 0) settled = key_dim * 2 * width;

  Batch<T> v[Tokens][2], o[Tokens][2], fade[2];
  // What the tokens contribute to one another waits in memory, where columns fade, until what they read has faded.
  T own[columns_fade ? Tokens * 2 * width : 1];
  unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA {
    unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA {
      const T* source = value + t * value_stride + b * width;
      v[t][b] = full ? load(source) : load_partial(source, tail[b]);
    });
    unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA {
      if constexpr (columns_fade) {
        const Batch<T> factor = load(column_factors + t * factor_pitch + b * width);
        unroll<t>([&](auto s) SEQMIX_INLINE_LAMBDA { v[s][b] *= factor; });
        fade[b] = t == 0 ? factor : fade[b] * factor;
      }
      o[t][b] = broadcast(coefficients.mix[t * (t + 1) / 2]) * v[0][b];
      unroll<t>([&](auto s) SEQMIX_INLINE_LAMBDA {
        o[t][b] = fma(broadcast(coefficients.mix[t * (t + 1) / 2 + s + 1]), v[s + 1][b], o[t][b]);
      });
      if constexpr (columns_fade) {
        store(own + (2 * t + b) * width, o[t][b]);
        o[t][b] = broadcast(T(0));
      }
    });
  });
  if constexpr (columns_fade) {
    if (!std::all_of(std::begin(coefficients.mix), std::end(coefficients.mix),
                     [](T product) { return std::isfinite(product); })) [[unlikely]] {
      fade_then_multiply(coefficients, key_dim, value, value_stride, column_factors, factor_pitch, columns, own);
    }
  }

  const auto sweep_row = [&](auto, const T* coefficient, T* row) SEQMIX_INLINE_LAMBDA {
    Batch<T> memory[2] = {load(row), load(row + width)};
    unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA { keep_in_register<T>(memory[b]); });
    Batch<T> whole[2] = {memory[0], memory[1]};
    if constexpr (two_parts) {
      unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA { whole[b] += load(row + settled + b * width); });
    }
    unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA {
      const Batch<T> q = broadcast(coefficient[(1 + Tokens + t) * width]);
      unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA { o[t][b] = fma(q, whole[b], o[t][b]); });
    });
    if constexpr (decays) {
      const Batch<T> d = broadcast(coefficient[0]);
      unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA { memory[b] *= d; });
    }
    if constexpr (columns_fade) unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA { memory[b] *= fade[b]; });
    unroll<Tokens>([&](auto s) SEQMIX_INLINE_LAMBDA {
      const Batch<T> k = broadcast(coefficient[(1 + s) * width]);
      unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA { memory[b] = fma(k, v[s][b], memory[b]); });
    });
    unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA { store(row + b * width, memory[b]); });
  };
  for_each_row<row_vectors>(key_dim, static_cast<const T*>(coefficients.rows), panel, meanwhile, sweep_row);

  unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA {
    unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA {
      if constexpr (columns_fade) {
        const Batch<T> factor = load(column_factors + t * factor_pitch + b * width);
        fade[b] = t == 0 ? factor : fade[b] * factor;
        o[t][b] = fma(o[t][b], fade[b], load(own + (2 * t + b) * width));
      }
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

}  // namespace detail

}  // namespace seqmix::inline SEQMIX_ARCH
