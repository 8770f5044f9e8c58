// The chunked order of the linear recurrence with a delta policy: the WY form, with register tiles and a triangular solve.
//
// The equations are those of engine/linear_recurrence_delta.hpp for a chunk of tokens. P = A' S_0 is a product of
// matrices; the triangular system (I + R) U = diag(beta) (V - P), or (I - R_b) W = P + R_k V, is solved by forward
// substitution in tiles of 6 tokens: what earlier tiles contribute is a product of matrices again, and the triangle on the
// diagonal stays in registers. No inverse is formed.
#pragma once

#include <seqmix/engine/linear_recurrence_chunked.hpp>
#include <seqmix/engine/linear_recurrence_delta.hpp>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// The coefficients of one chunk of one head.
///   query, probe  [chunk_tokens][padded key_dim], Q' and A'
///   source        [sources][padded key_dim], the vectors b (low rank), then the keys, decayed to the end of the chunk
///   decay         [padded key_dim], d
///   mix, removal  [chunk_tokens][sources], m and r; entries that the equations don't name are never read
template <class T, bool low_rank>
struct DeltaChunkCoefficients {
  static constexpr Index token_count = chunk_tokens;
  static constexpr Index groups = low_rank ? 2 : 1;
  static constexpr Index sources = groups * chunk_tokens;

  T *query = nullptr, *probe = nullptr, *source = nullptr, *decay = nullptr;
  T mix[chunk_tokens * sources], removal[chunk_tokens * sources];
  T beta[chunk_tokens];
  T inverse_denominator[chunk_tokens];

  DeltaChunkCoefficients() = default;
  DeltaChunkCoefficients(Index key_dim, Workspace& workspace) {
    const Index pitch = padded<T>(key_dim);
    query = workspace.take<T>(chunk_tokens * pitch).data();
    probe = workspace.take<T>(chunk_tokens * pitch).data();
    source = workspace.take<T>(sources * pitch).data();
    decay = workspace.take<T>(pitch).data();
  }
};

/// The coefficients that a problem with policy Delta has in the chunked order.
template <class Delta, class T>
using ChunkCoefficientsOf =
    std::conditional_t<Delta::any, DeltaChunkCoefficients<T, Delta::low_rank>, ChunkCoefficients<T>>;

/// Computes the coefficients of chunk_tokens tokens, those from token `first` of the head's sequences on, from their
/// rows and factors, which are given as in the fused order.
template <class T, bool low_rank, class Problem>
void prepare_coefficients(const Problem& problem, const LinearRecurrenceHead<T>& head, Index first,
                          const StagedRows<T>& staged, T* factors, T* pending, T* key_sum,
                          DeltaChunkCoefficients<T, low_rank>& result) {
  using Decay = decltype(problem.decay);
  using Normalizer = decltype(problem.normalizer);
  using Coefficients = DeltaChunkCoefficients<T, low_rank>;
  constexpr Index width = lanes<T>, tokens = chunk_tokens, sources = Coefficients::sources;
  constexpr Probing probing = low_rank ? Probing::early : Probing::late;
  const Index key_dim = problem.key_dim(), pitch = padded<T>(key_dim);
  const Index factor_stride = Decay::constant ? 0 : Decay::per_channel ? pitch : 1;
  const TokenRows<T> queries = staged.queries, probes = low_rank ? staged.a : staged.keys;
  T* const keys = result.source + (sources - tokens) * pitch;
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
      if constexpr (low_rank) store(result.source + s * pitch + i, load(staged.b.row(s) + i) * after);
      store(keys + s * pitch + i, load(staged.keys.row(s) + i) * after);
      if constexpr (Decay::any) after *= factor(s, i);
    }
    store(result.decay + i, after);
    most = max(after, most);
    for (Index t = 0; t < tokens; ++t) {
      if constexpr (low_rank) store(result.probe + t * pitch + i, load(probes.row(t) + i) * before);
      if constexpr (Decay::any) before *= factor(t, i);
      if constexpr (!low_rank) store(result.probe + t * pitch + i, load(probes.row(t) + i) * before);
      store(result.query + t * pitch + i, load(queries.row(t) + i) * before);
    }
  }
  if constexpr (Decay::any) {
    if (some_weak(most)) {
      take_weak_decays<Decay>(head.log_decay, first, tokens, key_dim, pending, {result.decay, width, pitch, 1},
                              {result.source, width, pitch, sources}, {result.query, width, pitch, tokens},
                              {result.probe, width, pitch, tokens});
    }
  }
  for (Index s = 0; s < tokens; ++s) {
    if constexpr (low_rank) {
      mix_source<probing>(problem, head, queries, staged.b, probes, factors, s, sources, result.mix + s,
                          result.removal + s);
    } else {
      result.beta[s] = *head.beta.row(first + s);
    }
    const Index column = sources - tokens + s;
    mix_source<probing>(problem, head, queries, staged.keys, probes, factors, s, sources, result.mix + column,
                        result.removal + column);
  }
  if constexpr (Normalizer::any) {
    for (Index t = 0; t < tokens; ++t) {
      Batch<T> sum = broadcast(T(0));
      for (Index i = 0; i < pitch; i += width) {
        sum = fma(load(result.query + t * pitch + i), whole_key_sum<Decay>(load(key_sum + i), key_sum, pitch, i), sum);
      }
      T denominator = reduce_add(sum);
      for (Index s = 0; s <= t; ++s) denominator += result.mix[t * sources + sources - tokens + s];
      result.inverse_denominator[t] = problem.normalizer.output_scale / (denominator + problem.normalizer.epsilon);
    }
    for (Index i = 0; i < pitch; i += width) {
      Batch<T> z = load(key_sum + i);
      if constexpr (Decay::any) z *= load(result.decay + i);
      for (Index s = 0; s < tokens; ++s) z += load(keys + s * pitch + i);
      store(key_sum + i, z);
    }
  }
}

/// The values of the sources of a chunk for one panel: solves the triangular system. `values` [sources][2 vectors] holds
/// the values of the tokens in its last chunk_tokens rows; they become u (delta rule), or w is put before them (low rank).
template <class T, bool low_rank>
SEQMIX_ALWAYS_INLINE void solve_chunk(const DeltaChunkCoefficients<T, low_rank>& coefficients, Index key_dim,
                                      const T* panel, T* values) {
  using Coefficients = DeltaChunkCoefficients<T, low_rank>;
  constexpr Index width = lanes<T>, columns = 2 * width, sources = Coefficients::sources;
  const Index pitch = padded<T>(key_dim);
  for (Index first = 0; first < chunk_tokens; first += tile_rows) {
    Batch<T> sum[tile_rows][2];
    const auto keep = [&](auto row, auto vector, const Batch<T>& x) SEQMIX_INLINE_LAMBDA { sum[row][vector] = x; };
    const auto go_on = [&](auto row, auto vector) SEQMIX_INLINE_LAMBDA -> Batch<T> { return sum[row][vector]; };
    multiply_tile<tile_rows, 2>(
        static_cast<const T*>(coefficients.probe + first * pitch), pitch, Index(1), panel, columns, Index(0), key_dim,
        [](auto, auto) SEQMIX_INLINE_LAMBDA -> Batch<T> { return broadcast(T(0)); }, keep);
    const T* removal = coefficients.removal + first * sources;
    unroll<Coefficients::groups>([&](auto group) SEQMIX_INLINE_LAMBDA {
      multiply_tile<tile_rows, 2>(removal + group * chunk_tokens, sources, Index(1),
                                  static_cast<const T*>(values + group * chunk_tokens * columns), columns, Index(0),
                                  first, go_on, keep);
    });
    unroll<tile_rows>([&](auto s) SEQMIX_INLINE_LAMBDA {
      T* solved = values + (first + s) * columns;
      unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA {
        Batch<T> x = sum[s][b];
        if constexpr (!low_rank) x = (load(solved + b * width) - x) * broadcast(coefficients.beta[first + s]);
        store(solved + b * width, x);
        unroll<tile_rows>([&](auto t) SEQMIX_INLINE_LAMBDA {
          if constexpr (t > s) {
            const T* row = removal + t * sources + first + s;
            sum[t][b] = fma(broadcast(row[0]), x, sum[t][b]);
            if constexpr (low_rank) {
              const Batch<T> v = load(solved + chunk_tokens * columns + b * width);
              sum[t][b] = fma(broadcast(row[chunk_tokens]), v, sum[t][b]);
            }
          }
        });
      });
    });
  }
}

/// Takes one panel of the memory, [key_dim][2 vectors], over one chunk, and writes its outputs. `columns` of the panel's
/// value columns exist. value and output are the panel's part of the first token's row. `values` [sources][2 vectors] is
/// scratch. Calls meanwhile() once.
template <bool decays, bool normalizes, bool two_parts, class T, bool low_rank, class Meanwhile>
void sweep_panel(const DeltaChunkCoefficients<T, low_rank>& coefficients, Index key_dim, T* panel, const T* value,
                 Index value_stride, T* output, Index output_stride, Index columns, T* values,
                 const Meanwhile& meanwhile) {
  meanwhile();
  using Coefficients = DeltaChunkCoefficients<T, low_rank>;
  constexpr Index panel_columns = 2 * lanes<T>;
  const Index pitch = padded<T>(key_dim);
  load_values(value, value_stride, columns, values + (Coefficients::sources - chunk_tokens) * panel_columns);
  solve_chunk(coefficients, key_dim, static_cast<const T*>(panel), values);
  read_panel<Coefficients::groups, normalizes>(
      static_cast<const T*>(coefficients.query), pitch, static_cast<const T*>(panel), key_dim, coefficients.mix,
      static_cast<const T*>(values), coefficients.inverse_denominator, output, output_stride, columns);
  update_panel<two_parts>(static_cast<const T*>(coefficients.source), pitch, decays ? coefficients.decay : nullptr,
                          static_cast<const T*>(values), Coefficients::sources, key_dim, panel);
}

}  // namespace detail

}  // namespace seqmix::inline SEQMIX_ARCH
