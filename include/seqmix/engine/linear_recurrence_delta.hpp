// The fused order of the linear recurrence with a delta policy: two passes over the memory for every few tokens.
//
// Over M tokens 1 .. M the recurrence unrolls to
//     p_t = a'_t^T S_0                                        what the memory holds for token t
//     delta rule   u_t = beta_t (v_t - p_t - sum_{s < t} r[t, s] u_s)
//     low rank     w_t = p_t + sum_{s < t} (r[t, s] w_s + r[t, M + s] v_s)
//     o_t = q'_t^T S_0 + sum_j m[t, j] x_j,    S_M = diag(d) S_0 + sum_j c'_j x_j^T
// where the sources j are the keys with x = u, or the vectors b with x = w followed by the keys with x = v. Primes are
// products with the decays between the token and the end of the block that the memory is at; m and r are inner products
// with those between the two tokens. All decays are products of factors <= 1. The triangular system is solved in
// registers, for the columns of a panel at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <seqmix/engine/linear_recurrence_fused.hpp>
#include <seqmix/engine/linear_recurrence_problem.hpp>
#include <seqmix/simd/batch.hpp>
#include <type_traits>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// The coefficients of Tokens consecutive tokens of one head, in the order in which the sweeps read them. probes
/// [padded key_dim / lanes][Tokens][lanes]: a'_1 .. a'_M rows [padded key_dim / lanes][1 + sources + Tokens][lanes]: d,
/// c'_1 .. c'_sources, q'_1 .. q'_M products m and r, for the vectors b (low rank) and then for the keys: m[t, s] for t
/// >= s, then r[t, s] for t > s
template <class T, Index Tokens, bool low_rank>
struct DeltaCoefficients {
  static constexpr Index token_count = Tokens;
  static constexpr Index sources = low_rank ? 2 * Tokens : Tokens;
  static constexpr Index row_vectors = 1 + sources + Tokens;

  T *probes = nullptr, *rows = nullptr;
  T products[padded<T>(sources * Tokens)];
  T beta[Tokens];
  T inverse_denominator[Tokens];

  DeltaCoefficients() = default;
  DeltaCoefficients(Index key_dim, Workspace& workspace)
      : probes(workspace.take<T>(Tokens * padded<T>(key_dim)).data()),
        rows(workspace.take<T>(row_vectors * padded<T>(key_dim)).data()) {}

  /// Where m[t, j] and r[t, j] are, for a source j that token t sees, or that an earlier token has.
  static constexpr Index mix_at(Index t, Index j) {
    return j / Tokens * Tokens * Tokens + t * (t + 1) / 2 + j % Tokens;
  }
  static constexpr Index removal_at(Index t, Index j) {
    return j / Tokens * Tokens * Tokens + Tokens * (Tokens + 1) / 2 + t * (t - 1) / 2 + j % Tokens;
  }
  T mix(Index t, Index j) const { return products[mix_at(t, j)]; }
  T removal(Index t, Index j) const { return products[removal_at(t, j)]; }
};

/// The coefficients that a problem with policy Delta has in the fused order.
template <class Delta, class T, Index Tokens>
using CoefficientsOf =
    std::conditional_t<Delta::any, DeltaCoefficients<T, Tokens, Delta::low_rank>, RecurrenceCoefficients<T, Tokens>>;

/// Inner products of source j with the queries and probes of the tokens from its own on, each in `lanes` parts, at its
/// place of DeltaCoefficients::products. What lies between multiplies the source where decays differ by channel. A
/// probe that reads the memory before the decay of its own token (low rank) sees one factor less.
template <Index j, class Decay, class T, Index Tokens, bool low_rank, std::size_t products>
SEQMIX_ALWAYS_INLINE void multiply_source(const DeltaCoefficients<T, Tokens, low_rank>&, const T* source,
                                          const TokenRows<T>& queries, const TokenRows<T>& probes, const T* factors,
                                          Index factor_stride, Index pitch, Batch<T> (&dot)[products]) {
  using Coefficients = DeltaCoefficients<T, Tokens, low_rank>;
  constexpr Index width = lanes<T>, s = j % Tokens, later = Tokens - s;
  Batch<T> query_dot[later], probe_dot[later];
  unroll<later>([&](auto n) SEQMIX_INLINE_LAMBDA { query_dot[n] = probe_dot[n] = broadcast(T(0)); });
  for (Index i = 0; i < pitch; i += width) {
    Batch<T> c = load(source + i);
    unroll<later>([&](auto n) SEQMIX_INLINE_LAMBDA {
      constexpr Index t = s + n;
      if constexpr (low_rank && n > 0) probe_dot[n] = fma(load(probes.row(t) + i), c, probe_dot[n]);
      if constexpr (Decay::any && Decay::per_channel && n > 0) c *= load(factors + t * factor_stride + i);
      if constexpr (!low_rank && n > 0) probe_dot[n] = fma(load(probes.row(t) + i), c, probe_dot[n]);
      query_dot[n] = fma(load(queries.row(t) + i), c, query_dot[n]);
    });
  }
  unroll<later>([&](auto n) SEQMIX_INLINE_LAMBDA {
    dot[Coefficients::mix_at(s + n, j)] = query_dot[n];
    if constexpr (n > 0) dot[Coefficients::removal_at(s + n, j)] = probe_dot[n];
  });
}

/// Multiplies the products of DeltaCoefficients by what lies between their tokens, where all channels decay alike.
template <class T, Index Tokens, bool low_rank>
SEQMIX_ALWAYS_INLINE void decay_products(const TokenRows<T> (&source_rows)[2], const TokenRows<T>& queries,
                                         const TokenRows<T>& probes, const T* factors, Index factor_stride, Index pitch,
                                         DeltaCoefficients<T, Tokens, low_rank>& result) {
  using Coefficients = DeltaCoefficients<T, Tokens, low_rank>;
  constexpr Index lag = low_rank ? 1 : 0;
  for (Index j = 0; j < Coefficients::sources; ++j) {
    const Index s = j % Tokens;
    const TokenRows<T>& source = source_rows[j / Tokens];
    T between = T(1);
    for (Index t = s + 1; t < Tokens; ++t) {
      const T before_own = between;
      between *= factors[t * factor_stride];
      T& mix = result.products[Coefficients::mix_at(t, j)];
      T& removal = result.products[Coefficients::removal_at(t, j)];
      mix *= between;
      removal *= low_rank ? before_own : between;
      if (!std::isfinite(mix)) [[unlikely]] {
        mix = decay_then_multiply<0, T>(queries, source, pitch, factors, factor_stride, s, t);
      }
      if (!std::isfinite(removal)) [[unlikely]] {
        removal = decay_then_multiply<lag, T>(probes, source, pitch, factors, factor_stride, s, t);
      }
    }
  }
}

/// Computes the coefficients of Tokens tokens, those from token `first` of the head's sequences on, from their rows and
/// factors. `factors` is what load_factors left of them, or, where they differ by token and channel, scratch
/// [Tokens][padded key_dim]. `pending` and `key_sum` as without delta policy.
template <class T, Index Tokens, bool low_rank, class Problem>
void prepare_coefficients(const Problem& problem, const LinearRecurrenceHead<T>& head, Index first,
                          const StagedRows<T>& staged, T* factors, T* pending, T* key_sum,
                          DeltaCoefficients<T, Tokens, low_rank>& result) {
  using Decay = decltype(problem.decay);
  using Normalizer = decltype(problem.normalizer);
  using Coefficients = DeltaCoefficients<T, Tokens, low_rank>;
  constexpr Index width = lanes<T>, row_vectors = Coefficients::row_vectors, sources = Coefficients::sources;
  const Index key_dim = problem.key_dim(), pitch = padded<T>(key_dim);
  const Index factor_stride = Decay::constant ? 0 : Decay::per_channel ? pitch : 1;
  const TokenRows<T> queries = staged.queries, probes = low_rank ? staged.a : staged.keys;
  const TokenRows<T> source_rows[2] = {low_rank ? staged.b : staged.keys, staged.keys};

  Batch<T> most = Decay::any ? load(pending) : broadcast(T(0));
  for (Index i = 0; i < key_dim; i += width) {
    T* rows = result.rows + i * row_vectors;
    Batch<T> factor[Tokens];
    take_factors<Decay>(head, first, i, pitch, factors, factor);
    Batch<T> after = factor[Tokens - 1], before = factor[0];
    unroll<Tokens>([&](auto back) SEQMIX_INLINE_LAMBDA {
      constexpr Index s = Tokens - 1 - back;
      const auto source = [&](const TokenRows<T>& from, Index j) SEQMIX_INLINE_LAMBDA {
        const Batch<T> c = load(from.row(s) + i);
        store(rows + (1 + j) * width, Decay::any && back > 0 ? c * after : c);
      };
      if constexpr (low_rank) source(staged.b, s);
      source(staged.keys, sources - Tokens + s);
      if constexpr (Decay::any && back > 0) after *= factor[s];
    });
    store(rows, after);
    most = max(after, most);
    unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA {
      T* const probe = result.probes + (i * Tokens + t * width);
      const Batch<T> a = load(probes.row(t) + i), q = load(queries.row(t) + i);
      if constexpr (low_rank) store(probe, Decay::any && t > 0 ? a * before : a);
      if constexpr (Decay::any && t > 0) before *= factor[t];
      if constexpr (!low_rank) store(probe, Decay::any ? a * before : a);
      store(rows + (1 + sources + t) * width, Decay::any ? q * before : q);
    });
  }

  if constexpr (Decay::any) {
    if (some_weak(most)) [[unlikely]] {
      const auto rows = [&](Index begin, Index count) -> CoefficientRows<T> {
        return {result.rows + begin * width, row_vectors * width, width, count};
      };
      take_weak_decays<Decay>(head.log_decay, first, Tokens, key_dim, pending, rows(0, 1), rows(1, sources),
                              rows(1 + sources, Tokens), {result.probes, Tokens * width, width, Tokens});
    }
  }

  Batch<T> dot[sources * Tokens];
  unroll<sources>([&](auto j) SEQMIX_INLINE_LAMBDA {
    multiply_source<j, Decay>(result, source_rows[j / Tokens].row(j % Tokens), queries, probes, factors, factor_stride,
                              pitch, dot);
  });
  reduce_add_each(dot, result.products);
  if constexpr (Decay::any && !Decay::per_channel) {
    decay_products(source_rows, queries, probes, factors, factor_stride, pitch, result);
  }
  if constexpr (!low_rank) {
    for (Index t = 0; t < Tokens; ++t) result.beta[t] = *head.beta.row(first + t);
  }

  if constexpr (Normalizer::any) {
    // The sum of the keys as they are: what a delta policy takes out of the memory, it leaves in the sum.
    Batch<T> sum[Tokens];
    unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA { sum[t] = broadcast(T(0)); });
    for (Index i = 0; i < key_dim; i += width) {
      const T* rows = result.rows + i * row_vectors;
      Batch<T> z = load(key_sum + i);
      const Batch<T> whole = whole_key_sum<Decay>(z, key_sum, pitch, i);
      unroll<Tokens>([&](auto t)
                         SEQMIX_INLINE_LAMBDA { sum[t] = fma(load(rows + (1 + sources + t) * width), whole, sum[t]); });
      if constexpr (Decay::any) z *= load(rows);
      unroll<Tokens>([&](auto s) SEQMIX_INLINE_LAMBDA { z += load(rows + (1 + sources - Tokens + s) * width); });
      store(key_sum + i, z);
    }
    for (Index t = 0; t < Tokens; ++t) {
      T denominator = reduce_add(sum[t]);
      for (Index s = 0; s <= t; ++s) denominator += result.mix(t, sources - Tokens + s);
      result.inverse_denominator[t] = problem.normalizer.output_scale / (denominator + problem.normalizer.epsilon);
    }
  }
}

/// The values x_j of the sources of Tokens tokens, for `Vectors` vectors of value columns, from p and v: solves the
/// triangular system.
template <Index Vectors, class T, Index Tokens, bool low_rank>
SEQMIX_ALWAYS_INLINE void solve_sources(const DeltaCoefficients<T, Tokens, low_rank>& coefficients,
                                        const Batch<T> (&p)[Tokens][Vectors], const Batch<T> (&v)[Tokens][Vectors],
                                        Batch<T> (&x)[DeltaCoefficients<T, Tokens, low_rank>::sources][Vectors]) {
  unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA {
    unroll<Vectors>([&](auto b) SEQMIX_INLINE_LAMBDA {
      if constexpr (low_rank) {
        Batch<T> w = p[t][b];
        unroll<t>([&](auto s) SEQMIX_INLINE_LAMBDA {
          w = fma(broadcast(coefficients.removal(t, s)), x[s][b], w);
          w = fma(broadcast(coefficients.removal(t, Tokens + s)), v[s][b], w);
        });
        x[t][b] = w;
        x[Tokens + t][b] = v[t][b];
      } else {
        Batch<T> u = v[t][b] - p[t][b];
        unroll<t>([&](auto s) SEQMIX_INLINE_LAMBDA { u = fnma(broadcast(coefficients.removal(t, s)), x[s][b], u); });
        x[t][b] = u * broadcast(coefficients.beta[t]);
      }
    });
  });
}

/// o_t = sum_j m[t, j] x_j over the sources that token t sees.
template <Index Vectors, class T, Index Tokens, bool low_rank>
SEQMIX_ALWAYS_INLINE void mix_sources(const DeltaCoefficients<T, Tokens, low_rank>& coefficients,
                                      const Batch<T> (&x)[DeltaCoefficients<T, Tokens, low_rank>::sources][Vectors],
                                      Batch<T> (&o)[Tokens][Vectors]) {
  constexpr Index sources = DeltaCoefficients<T, Tokens, low_rank>::sources;
  unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA {
    unroll<Vectors>([&](auto b) SEQMIX_INLINE_LAMBDA {
      o[t][b] = broadcast(coefficients.mix(t, 0)) * x[0][b];
      unroll<sources>([&](auto j) SEQMIX_INLINE_LAMBDA {
        if constexpr (j > 0 && j % Tokens <= t) o[t][b] = fma(broadcast(coefficients.mix(t, j)), x[j][b], o[t][b]);
      });
    });
  });
}

/// Takes one panel of the memory, [key_dim][2 vectors], over Tokens tokens, and writes their outputs. `columns` of the
/// panel's value columns exist. value and output are the panel's part of the first token's row. Calls meanwhile() every
/// `lanes` rows of the memory, which it goes over twice.
template <bool decays, bool normalizes, bool two_parts, class T, Index Tokens, bool low_rank, class Meanwhile>
SEQMIX_ALWAYS_INLINE void sweep_panel(const DeltaCoefficients<T, Tokens, low_rank>& coefficients, Index key_dim,
                                      T* panel, const T* value, Index value_stride, T* output, Index output_stride,
                                      Index columns, T* /*values*/, const Meanwhile& meanwhile) {
  static_assert(!two_parts, "what a delta policy takes out of the memory keeps it small");
  using Coefficients = DeltaCoefficients<T, Tokens, low_rank>;
  constexpr Index width = lanes<T>, sources = Coefficients::sources, row_vectors = Coefficients::row_vectors;
  // Chains of additions enough to hide their latency.
  constexpr Index chains = Tokens < 4 ? 2 : 1;
  const bool full = columns >= 2 * width;
  const Index tail[2] = {std::min(columns, width), std::max(columns - width, Index(0))};

  Batch<T> chain[chains][Tokens][2], p[Tokens][2], v[Tokens][2], x[sources][2], o[Tokens][2];
  unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA {
    unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA {
      unroll<chains>([&](auto c) SEQMIX_INLINE_LAMBDA { chain[c][t][b] = broadcast(T(0)); });
    });
  });
  const auto probe_row = [&](auto parity, const T* probe, T* row) SEQMIX_INLINE_LAMBDA {
    Batch<T> memory[2] = {load(row), load(row + width)};
    unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA { keep_in_register<T>(memory[b]); });
    unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA {
      const Batch<T> a = broadcast(probe[t * width]);
      unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA {
        auto& sum = chain[parity % chains][t][b];
        sum = fma(a, memory[b], sum);
      });
    });
  };
  for_each_row<Tokens>(key_dim, static_cast<const T*>(coefficients.probes), panel, meanwhile, probe_row);
  unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA {
    unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA {
      p[t][b] = chain[0][t][b];
      if constexpr (chains > 1) p[t][b] += chain[chains - 1][t][b];
      const T* source = value + t * value_stride + b * width;
      v[t][b] = full ? load(source) : load_partial(source, tail[b]);
    });
  });
  solve_sources<2>(coefficients, p, v, x);
  mix_sources<2>(coefficients, x, o);

  const auto sweep_row = [&](auto, const T* coefficient, T* row) SEQMIX_INLINE_LAMBDA {
    Batch<T> memory[2] = {load(row), load(row + width)};
    unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA { keep_in_register<T>(memory[b]); });
    unroll<Tokens>([&](auto t) SEQMIX_INLINE_LAMBDA {
      const Batch<T> q = broadcast(coefficient[(1 + sources + t) * width]);
      unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA { o[t][b] = fma(q, memory[b], o[t][b]); });
    });
    if constexpr (decays) {
      const Batch<T> d = broadcast(coefficient[0]);
      unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA { memory[b] *= d; });
    }
    unroll<sources>([&](auto j) SEQMIX_INLINE_LAMBDA {
      const Batch<T> c = broadcast(coefficient[(1 + j) * width]);
      unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA { memory[b] = fma(c, x[j][b], memory[b]); });
    });
    unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA { store(row + b * width, memory[b]); });
  };
  for_each_row<row_vectors>(key_dim, static_cast<const T*>(coefficients.rows), panel, meanwhile, sweep_row);

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

}  // namespace detail

}  // namespace seqmix::inline SEQMIX_ARCH
