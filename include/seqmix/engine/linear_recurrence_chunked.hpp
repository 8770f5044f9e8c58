// The chunked order of the linear recurrence: matrix products over chunks of tokens.
//
// Over a chunk of C tokens, with the decays between the tokens and the ends of the chunk multiplied into Q', K' and d,
//     O = Q' S_0 + A V,       S_C = diag(d) S_0 + K'^T V
// where A [C, C] is lower triangular (see engine/linear_recurrence_fused.hpp; the coefficients are the same, only more of
// them). Both products run on register tiles of 6 rows, which touch the memory once for 6 tokens or 6 key channels. C is
// small, so that A stays a small part of the work, and its decays stay products of factors <= 1.
#pragma once

#include <cmath>
#include <seqmix/engine/linear_recurrence_fused.hpp>
#include <seqmix/simd/microkernel.hpp>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// Tokens of a chunk: two tiles. More would make A larger and save little else.
inline constexpr Index chunk_tokens = 2 * tile_rows;

/// The coefficients of one chunk of one head.
///   query, key  [chunk_tokens][padded key_dim], Q' and K'
///   decay       [padded key_dim], d
///   mix         [chunk_tokens][chunk_tokens], A; entries above the diagonal are never read
///   inverse_denominator  [chunk_tokens], with a normalizer
template <class T>
struct ChunkCoefficients {
  static constexpr Index token_count = chunk_tokens;

  T *query = nullptr, *key = nullptr, *decay = nullptr;
  T mix[chunk_tokens * chunk_tokens];
  T inverse_denominator[chunk_tokens];

  ChunkCoefficients() = default;
  ChunkCoefficients(Index key_dim, Workspace& workspace) {
    const Index pitch = padded<T>(key_dim);
    query = workspace.take<T>(chunk_tokens * pitch).data();
    key = workspace.take<T>(chunk_tokens * pitch).data();
    decay = workspace.take<T>(pitch).data();
  }
};

/// How a delta policy's probes see the memory: there are none, before the decay of their own token, or after it.
enum class Probing { none, early, late };

/// One source s of a chunk against the tokens from it on: mix[t, s] = q_t . (source_s times the decays between s and t) for
/// t >= s and, with probes, removal[t, s] = probe_t . (the same) for t > s, in dots of whole vectors. mix and removal
/// point to the source's entry of the chunk's first token, `stride` apart from token to token.
template <Probing probing, class T, class Problem>
void mix_source(const Problem& problem, const LinearRecurrenceHead<T>& head, const TokenRows<T>& queries,
                const TokenRows<T>& sources, const TokenRows<T>& probes, const T* factors, Index s, Index stride,
                T* mix, T* removal) {
  using Decay = decltype(problem.decay);
  using Readout = decltype(problem.readout);
  constexpr Index width = lanes<T>, lag = Readout::bonus ? 1 : 0;
  constexpr Index group = 8;  // vectors of key channels in registers at a time
  const Index pitch = padded<T>(problem.key_dim());
  const Index factor_stride = Decay::constant ? 0 : Decay::per_channel ? pitch : 1;
  for (Index t = s; t < chunk_tokens; ++t) mix[t * stride] = T(0);
  if constexpr (probing != Probing::none) {
    for (Index t = s + 1; t < chunk_tokens; ++t) removal[t * stride] = T(0);
  }
  const auto add = [&](auto vectors, Index i) SEQMIX_INLINE_LAMBDA {
    Batch<T> c[vectors];
    unroll<vectors>([&](auto v) SEQMIX_INLINE_LAMBDA { c[v] = load(sources.row(s) + i + v * width); });
    const auto dot = [&](auto&& factor) SEQMIX_INLINE_LAMBDA {
      Batch<T> even = broadcast(T(0)), odd = broadcast(T(0));
      unroll<vectors>([&](auto v) SEQMIX_INLINE_LAMBDA {
        if constexpr (v % 2 == 0) {
          even = fma(factor(v), c[v], even);
        } else {
          odd = fma(factor(v), c[v], odd);
        }
      });
      return reduce_add(even + odd);
    };
    for (Index t = s; t < chunk_tokens; ++t) {
      const auto probe = [&]() SEQMIX_INLINE_LAMBDA {
        if (t == s) return;
        removal[t * stride] += dot([&](auto v) SEQMIX_INLINE_LAMBDA { return load(probes.row(t) + i + v * width); });
      };
      if constexpr (probing == Probing::early) probe();
      if constexpr (Decay::any && Decay::per_channel) {
        if (t - lag > s) {
          const T* factor = factors + (t - lag) * factor_stride + i;
          unroll<vectors>([&](auto v) SEQMIX_INLINE_LAMBDA { c[v] *= load(factor + v * width); });
        }
      }
      if constexpr (probing == Probing::late) probe();
      mix[t * stride] += dot([&](auto v) SEQMIX_INLINE_LAMBDA {
        Batch<T> q = load(queries.row(t) + i + v * width);
        if constexpr (Readout::bonus) {
          if (t == s) q *= load_some(head.bonus + i + v * width, problem.key_dim() - i - v * width);
        }
        return q;
      });
    }
  };
  Index i = 0;
  for (; i + group * width <= pitch; i += group * width) add(std::integral_constant<Index, group>{}, i);
  for (; i < pitch; i += width) add(std::integral_constant<Index, 1>{}, i);
  if constexpr (Decay::any && !Decay::per_channel) {
    T between = T(1);
    for (Index t = s + 1; t < chunk_tokens; ++t) {
      const auto decay = [&]<Index late>(std::integral_constant<Index, late>, const TokenRows<T>& rows, T& product) {
        product *= between;
        if (!std::isfinite(product)) [[unlikely]] {
          product = decay_then_multiply<late, T>(rows, sources, pitch, factors, factor_stride, s, t);
        }
      };
      if constexpr (probing == Probing::early) decay(std::integral_constant<Index, 1>{}, probes, removal[t * stride]);
      if (t - lag > s) between *= factors[(t - lag) * factor_stride];
      if constexpr (probing == Probing::late) decay(std::integral_constant<Index, 0>{}, probes, removal[t * stride]);
      decay(std::integral_constant<Index, lag>{}, queries, mix[t * stride]);
    }
  }
}

/// Computes the coefficients of chunk_tokens tokens, those from token `first` of the head's sequences on, from their
/// rows and factors, which are given as in the fused order.
template <class T, class Problem>
void prepare_coefficients(const Problem& problem, const LinearRecurrenceHead<T>& head, Index first,
                          const StagedRows<T>& staged, T* factors, T* pending, T* key_sum,
                          ChunkCoefficients<T>& result) {
  using Decay = decltype(problem.decay);
  using Readout = decltype(problem.readout);
  using Normalizer = decltype(problem.normalizer);
  constexpr Index width = lanes<T>, lag = Readout::bonus ? 1 : 0, tokens = chunk_tokens;
  const Index key_dim = problem.key_dim(), pitch = padded<T>(key_dim);
  const TokenRows<T> queries = staged.queries, keys = staged.keys;
  const Index factor_stride = Decay::constant ? 0 : Decay::per_channel ? pitch : 1;
  if constexpr (Decay::per_channel && !Decay::constant) load_factors<Decay>(head, first, chunk_tokens, factors);
  const auto factor = [&](Index t, Index i) SEQMIX_INLINE_LAMBDA -> Batch<T> {
    if constexpr (Decay::per_channel) {
      return load(factors + t * factor_stride + i);
    } else {
      return broadcast(factors[t * factor_stride]);
    }
  };
  Batch<T> most = Decay::any ? load(pending) : broadcast(T(0));
  for (Index i = 0; i < key_dim; i += width) {
    Batch<T> after = broadcast(T(1)), before = broadcast(T(1));
    for (Index s = tokens - 1; s >= 0; --s) {
      store(result.key + s * pitch + i, load(keys.row(s) + i) * after);
      if constexpr (Decay::any) after *= factor(s, i);
    }
    store(result.decay + i, after);
    most = max(after, most);
    for (Index t = 0; t < tokens; ++t) {
      if constexpr (Decay::any) {
        if (t >= lag) before *= factor(t - lag, i);
      }
      store(result.query + t * pitch + i, load(queries.row(t) + i) * before);
    }
  }
  if constexpr (Decay::any) {
    if (some_weak(most)) {
      take_weak_decays<Decay>(head.log_decay, first, tokens, key_dim, pending, {result.decay, width, pitch, 1},
                              {result.key, width, pitch, tokens}, {result.query, width, pitch, tokens});
    }
  }
  for (Index s = 0; s < tokens; ++s) {
    mix_source<Probing::none>(problem, head, queries, keys, TokenRows<T>(), factors, s, tokens, result.mix + s,
                              static_cast<T*>(nullptr));
  }
  if constexpr (Normalizer::any) {
    for (Index t = 0; t < tokens; ++t) {
      Batch<T> sum = broadcast(T(0));
      for (Index i = 0; i < pitch; i += width) {
        sum = fma(load(result.query + t * pitch + i), whole_key_sum<Decay>(load(key_sum + i), key_sum, pitch, i), sum);
      }
      T denominator = reduce_add(sum);
      for (Index s = 0; s <= t; ++s) denominator += result.mix[t * tokens + s];
      result.inverse_denominator[t] = problem.normalizer.output_scale / (denominator + problem.normalizer.epsilon);
    }
    for (Index i = 0; i < pitch; i += width) {
      Batch<T> z = load(key_sum + i);
      if constexpr (Decay::any) z *= load(result.decay + i);
      for (Index s = 0; s < tokens; ++s) z += load(result.key + s * pitch + i);
      store(key_sum + i, z);
    }
  }
}

/// S = diag(decay) S + keys^T V for one panel [key_dim][2 vectors] of a memory. keys [tokens][pitch], values
/// [tokens][2 vectors]. Without `decay` (nullptr) the memory keeps all. A panel in two parts is followed by the settled
/// one, as large, which afterwards holds all that counts.
template <bool two_parts, class T>
void update_panel(const T* keys, Index pitch, const T* decay, const T* values, Index tokens, Index key_dim, T* panel) {
  constexpr Index width = lanes<T>, columns = 2 * width;
  const auto rows = [&](auto count, Index i) SEQMIX_INLINE_LAMBDA {
    multiply_tile<count, 2>(
        keys + i, Index(1), pitch, values, columns, Index(0), tokens,
        [&](auto row, auto vector) SEQMIX_INLINE_LAMBDA -> Batch<T> {
          const Batch<T> memory = load(panel + (i + row) * columns + vector * width);
          return decay ? memory * broadcast(decay[i + row]) : memory;
        },
        [&](auto row, auto vector, const Batch<T>& sum) SEQMIX_INLINE_LAMBDA {
          T* const recent = panel + (i + row) * columns + vector * width;
          store(recent, sum);
          if constexpr (two_parts) settle(recent, recent + key_dim * columns, width);
        });
  };
  Index i = 0;
  for (; i + tile_rows <= key_dim; i += tile_rows) rows(std::integral_constant<Index, tile_rows>{}, i);
  for (; i + 2 <= key_dim; i += 2) rows(std::integral_constant<Index, 2>{}, i);
  for (; i < key_dim; ++i) rows(std::integral_constant<Index, 1>{}, i);
}

/// The panel's part of the values of a chunk into values [chunk_tokens][2 vectors], zeros beyond the columns that exist.
template <class T>
SEQMIX_ALWAYS_INLINE void load_values(const T* value, Index value_stride, Index columns, T* values) {
  constexpr Index width = lanes<T>, panel_columns = 2 * width;
  const Index tail[2] = {std::min(columns, width), std::max(columns - width, Index(0))};
  for (Index t = 0; t < chunk_tokens; ++t) {
    unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA {
      const T* source = value + t * value_stride + b * width;
      store(values + t * panel_columns + b * width,
            columns >= panel_columns ? load(source) : load_partial(source, tail[b]));
    });
  }
}

/// What the tokens of a chunk read from a panel of the memory and from the sources of the chunk: Q' S_0 + A X, written to
/// output. query [chunk_tokens][pitch] is Q', mix [chunk_tokens][Groups * chunk_tokens] A, values
/// [Groups * chunk_tokens][2 vectors] X; a token reads sources up to its own in each group.
template <Index Groups, bool normalizes, class T>
SEQMIX_ALWAYS_INLINE void read_panel(const T* query, Index pitch, const T* panel, Index key_dim, const T* mix,
                                     const T* values, const T* inverse_denominator, T* output, Index output_stride,
                                     Index columns) {
  constexpr Index width = lanes<T>, panel_columns = 2 * width, sources = Groups * chunk_tokens;
  const Index tail[2] = {std::min(columns, width), std::max(columns - width, Index(0))};
  for (Index first = 0; first < chunk_tokens; first += tile_rows) {
    Batch<T> sum[tile_rows][2];
    const auto keep = [&](auto row, auto vector, const Batch<T>& x) SEQMIX_INLINE_LAMBDA { sum[row][vector] = x; };
    const auto go_on = [&](auto row, auto vector) SEQMIX_INLINE_LAMBDA -> Batch<T> { return sum[row][vector]; };
    multiply_tile<tile_rows, 2>(
        query + first * pitch, pitch, Index(1), panel, panel_columns, Index(0), key_dim,
        [](auto, auto) SEQMIX_INLINE_LAMBDA -> Batch<T> { return broadcast(T(0)); }, keep);
    unroll<Groups>([&](auto group) SEQMIX_INLINE_LAMBDA {
      const T* weights = mix + first * sources + group * chunk_tokens;
      const T* x = values + group * chunk_tokens * panel_columns;
      multiply_tile<tile_rows, 2>(weights, sources, Index(1), x, panel_columns, Index(0), first, go_on, keep);
      // The triangle on the diagonal, entry by entry: a later token must not reach a row even as 0 * NaN.
      unroll<tile_rows>([&](auto s) SEQMIX_INLINE_LAMBDA {
        const Batch<T> x0 = load(x + (first + s) * panel_columns), x1 = load(x + (first + s) * panel_columns + width);
        unroll<tile_rows>([&](auto t) SEQMIX_INLINE_LAMBDA {
          if constexpr (t >= s) {
            const Batch<T> a = broadcast(weights[t * sources + first + s]);
            sum[t][0] = fma(a, x0, sum[t][0]);
            sum[t][1] = fma(a, x1, sum[t][1]);
          }
        });
      });
    });
    unroll<tile_rows>([&](auto t) SEQMIX_INLINE_LAMBDA {
      unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA {
        if constexpr (normalizes) sum[t][b] *= broadcast(inverse_denominator[first + t]);
        T* destination = output + (first + t) * output_stride + b * width;
        if (columns >= panel_columns) {
          store(destination, sum[t][b]);
        } else {
          store_partial(destination, sum[t][b], tail[b]);
        }
      });
    });
  }
}

/// Takes one panel of the memory, [key_dim][2 vectors], over one chunk, and writes its outputs. `columns` of the panel's
/// value columns exist. value and output are the panel's part of the first token's row. `values` [chunk_tokens][2 vectors]
/// is scratch. Calls meanwhile() once.
template <bool decays, bool normalizes, bool two_parts, class T, class Meanwhile>
void sweep_panel(const ChunkCoefficients<T>& coefficients, Index key_dim, T* panel, const T* value, Index value_stride,
                 T* output, Index output_stride, Index columns, T* values, const Meanwhile& meanwhile) {
  meanwhile();
  const Index pitch = padded<T>(key_dim);
  load_values(value, value_stride, columns, values);
  // Of a memory in two parts the recent one is no more than the settled one's rounding error.
  const T* const whole = panel + (two_parts ? key_dim * 2 * lanes<T> : 0);
  read_panel<1, normalizes>(static_cast<const T*>(coefficients.query), pitch, whole, key_dim, coefficients.mix,
                            static_cast<const T*>(values), coefficients.inverse_denominator, output, output_stride,
                            columns);
  update_panel<two_parts>(static_cast<const T*>(coefficients.key), pitch, decays ? coefficients.decay : nullptr,
                          static_cast<const T*>(values), chunk_tokens, key_dim, panel);
}

}  // namespace detail

}  // namespace seqmix::inline SEQMIX_ARCH
