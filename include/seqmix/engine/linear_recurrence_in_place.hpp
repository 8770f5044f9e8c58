// The linear recurrence token by token, on the memory where it is.
#pragma once

#include <algorithm>
#include <cmath>
#include <seqmix/engine/linear_recurrence_delta.hpp>
#include <seqmix/engine/linear_recurrence_fading.hpp>
#include <seqmix/engine/linear_recurrence_fused.hpp>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// Computes the coefficients of token t from its staged rows: what prepare_coefficients does for many, in one pass over the
/// key channels, decays included. A step waits for this before it can touch the memory. constant_factors [padded key_dim]
/// holds decays that are the same at every token (see load_factors), key_sum (see load_key_sum) is z, with a normalizer.
template <class T, class Problem, class Coefficients>
SEQMIX_ALWAYS_INLINE void prepare_token(const Problem& problem, const LinearRecurrenceHead<T>& head, Index t,
                                        const StagedRows<T>& staged, const T* constant_factors, T* key_sum,
                                        Coefficients& result) {
  using Decay = RowDecay<decltype(problem.decay), T>;
  using Readout = decltype(problem.readout);
  using Normalizer = decltype(problem.normalizer);
  using Delta = decltype(problem.delta);
  constexpr Index width = lanes<T>, row_vectors = Coefficients::row_vectors, key_row = row_vectors - 2;
  const Index key_dim = problem.key_dim();
  const Index log_row = Decay::constant ? 0 : t;
  [[maybe_unused]] const T* const log_decay = Decay::any ? head.log_decay.row(log_row) : nullptr;
  [[maybe_unused]] const bool empty = key_dim == 0 || problem.value_dim() == 0;
  Batch<T> head_decay = broadcast(T(1));
  if constexpr (Decay::any && !Decay::per_channel) {
    const T log = *log_decay;
    if (dithers<T> && !empty && std::abs(log) < weak_decay<T>) {
      const auto first = [](const TokenRows<T>& rows) { return broadcast(*rows.data); };
      head_decay = dithered_factor(broadcast(log),
                                   noise_of(first(staged.keys), first(staged.queries), broadcast(*head.value.row(t))));
    } else {
      head_decay = Decay::constant ? broadcast(*constant_factors) : factor_of(broadcast(log));
    }
  }
  Batch<T> key_dot = broadcast(T(0)), b_dot = broadcast(T(0)), sum = broadcast(T(0));
  Batch<T> most = broadcast(T(0)), weight = broadcast(T(1)), own = broadcast(T(1));
  if constexpr (Readout::weighted) weight = broadcast(*head.weight.row(t)), own = broadcast(*head.own.row(t));
  const auto prepare = [&](Index i, Index channels) SEQMIX_INLINE_LAMBDA {
    T* rows = result.rows + i * row_vectors;
    Batch<T> d = head_decay, q = load(staged.queries.data + i);
    Batch<T> k = load(staged.keys.data + i);
    if constexpr (Decay::per_channel && Decay::constant) d = load(constant_factors + i);
    if constexpr (Decay::per_channel && !Decay::constant) {
      d = factor_of(load_some(log_decay + i, channels));
    }
    if constexpr (Decay::per_channel) most = max(d, most);
    if constexpr (Delta::low_rank) {
      const Batch<T> b = load(staged.b.data + i);
      b_dot = fma(q, b, b_dot);
      store(rows + width, b);
      store(result.probes + i, load(staged.a.data + i));
    } else if constexpr (Delta::any) {
      store(result.probes + i, k * d);
    }
    if constexpr (Readout::bonus) {
      key_dot = fma(q * load_some(head.bonus + i, channels), k, key_dot);
    } else {
      key_dot = fma(q, Readout::weighted ? k * own : k, key_dot);
      if constexpr (Decay::any) q *= d;
      if constexpr (Readout::weighted) k *= weight;
    }
    if constexpr (Normalizer::any) {
      Batch<T> z = load(key_sum + i);
      sum = fma(q, whole_key_sum<Decay>(z, key_sum, padded<T>(key_dim), i), sum);
      if constexpr (Decay::any) {
        const Batch<T> log = Decay::per_channel ? load_some(log_decay + i, channels) : broadcast(*log_decay);
        const auto weak = abs(log) < broadcast(weak_decay<T>);
        store(key_sum + i, select(weak, z + fma(z, expm1_fraction(log), k), fma(z, d, k)));
      } else {
        store(key_sum + i, z + k);
      }
    }
    store(rows, d);
    store(rows + key_row * width, k);
    store(rows + (key_row + 1) * width, q);
  };
  Index i = 0;
  for (; i + width <= key_dim; i += width) prepare(i, width);
  if (i < key_dim) prepare(i, key_dim - i);
  T key_mix = reduce_add(key_dot);
  if constexpr (Readout::weighted) key_mix += head.skip;
  if constexpr (Delta::any) {
    result.products[Coefficients::mix_at(0, Coefficients::sources - 1)] = key_mix;
    if constexpr (Delta::low_rank) {
      result.products[Coefficients::mix_at(0, 0)] = reduce_add(b_dot);
    } else {
      result.beta[0] = *head.beta.row(t);
    }
  } else {
    result.mix[0] = key_mix;
  }
  if constexpr (Normalizer::any) {
    result.inverse_denominator[0] =
        problem.normalizer.output_scale / (reduce_add(sum) + key_mix + problem.normalizer.epsilon);
  }
  if constexpr (Decay::per_channel && dithers<T>) {
    if (any(most > broadcast(1 - weak_decay<T>)) && !empty) [[unlikely]] {
      dither_weak_decays(head.log_decay, log_row, key_dim, staged.queries.data, staged.keys.data, *head.value.row(t),
                         {result.rows, row_vectors * width, width, 1});
    }
  }
}

/// Takes `Vectors` vectors of every row of a memory in place over one token. With columns >= 0, Vectors is 1 and only that
/// many columns exist. In two parts, the memory is the recent part, and `settled` the other. `decays` says whether rows of
/// the memory do; where columns fade, column_factors says by how much.
template <Index Vectors, bool decays, bool two_parts = false, bool columns_fade = false, class T>
SEQMIX_ALWAYS_INLINE void sweep_in_place(const RecurrenceCoefficients<T, 1>& coefficients, Index key_dim, T* memory,
                                         Index row_stride, const T* value, T* output, T output_scale, Index columns,
                                         [[maybe_unused]] const T* settled = nullptr,
                                         [[maybe_unused]] Index settled_stride = 0,
                                         [[maybe_unused]] const T* column_factors = nullptr) {
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
  Batch<T> v[Vectors], o[Vectors], fade[Vectors];
  unroll<Vectors>([&](auto b) SEQMIX_INLINE_LAMBDA {
    v[b] = read(value + b * width);
    o[b] = broadcast(coefficients.mix[0]) * v[b];
    if constexpr (columns_fade) fade[b] = load(column_factors + b * width);
  });
  const T* rows = coefficients.rows;
  for (Index i = 0; i < key_dim; ++i) {
    const T* coefficient = rows + (i / width) * 3 * width + i % width;
    const Batch<T> d = broadcast(coefficient[0]), k = broadcast(coefficient[width]),
                   q = broadcast(coefficient[2 * width]);
    T* row = memory + i * row_stride;
    unroll<Vectors>([&](auto b) SEQMIX_INLINE_LAMBDA {
      Batch<T> x = read(row + b * width);
      // Else the compiler reads it twice, and the ports for loads are what limits this loop.
      keep_in_register<T>(x);
      if constexpr (columns_fade) x *= fade[b];
      if constexpr (two_parts) {
        o[b] = fma(q, x + read(settled + i * settled_stride + b * width), o[b]);
      } else {
        o[b] = fma(q, x, o[b]);
      }
      // Rounded once, with what is added: see linear_recurrence_fading.hpp.
      write(row + b * width, decays ? fma(x, d, k * v[b]) : fma(k, v[b], x));
    });
  }
  unroll<Vectors>([&](auto b) SEQMIX_INLINE_LAMBDA { write(output + b * width, o[b] * broadcast(output_scale)); });
}

}  // namespace detail

namespace detail {

/// Settles some rows of one head of a memory in two parts after the token at `position`, so that every row has its turn
/// once in settle_interval tokens.
template <class T>
void settle_rows(const Sequence<T>& recent, const Sequence<T>& settled, Index position) {
  const Index count = (settled.length() + settle_interval - 1) / settle_interval;
  const Index first = position % ((settled.length() + count - 1) / count) * count;
  for (Index i = first; i < std::min(first + count, settled.length()); ++i) {
    settle(recent.row(i), settled.row(i), settled.channels());
  }
}

}  // namespace detail

/// Value columns that the order in place sweeps at a time, as far as there are so many.
template <class T>
inline constexpr Index in_place_columns = 8 * lanes<T>;

/// The recurrence token by token on the memory where it is: for single steps and a few tokens. Serial.
template <class T, class Decay, class Readout, class Normalizer, class Delta>
void linear_recurrence_in_place(const LinearRecurrenceProblem<T, Decay, Readout, Normalizer, Delta>& problem,
                                Workspace& workspace) {
  constexpr Index width = lanes<T>;
  constexpr bool sums = LinearRecurrenceProblem<T, Decay, Readout, Normalizer, Delta>::sums;
  const Index key_dim = problem.key_dim(), value_dim = problem.value_dim(), pitch = detail::padded<T>(key_dim);
  const auto frame = workspace.frame();
  detail::CoefficientsOf<Delta, T, 1> coefficients(key_dim, workspace);
  detail::StagedRows<T> staged(problem.delta, 1, key_dim, workspace);
  T* factors = workspace.take<T>(detail::factor_pitch<Decay, T>(key_dim, value_dim)).data();
  T* key_sum = workspace.take<T>(Normalizer::any ? 2 * pitch : 0).data();
  for (Index h = 0; h < problem.heads(); ++h) {
    const auto head = problem.head(h);
    if constexpr (Normalizer::any) detail::load_key_sum<Decay>(problem.normalizer, h, key_sum);
    Sequence<T> recent;
    if constexpr (sums) recent = problem.decay.compensation.head(h);
    if constexpr (Decay::constant) detail::load_factors<Decay>(head, 0, 1, factors);
    for (Index t = 0; t < problem.length(); ++t) {
      staged.load(problem, head, t, 1);
      detail::prepare_token(problem, head, t, staged, factors, key_sum, coefficients);
      if constexpr (Decay::per_value_channel) detail::load_factors<Decay>(head, t, 1, factors);
      T output_scale = T(1);
      if constexpr (Normalizer::any) output_scale = coefficients.inverse_denominator[0];
      const auto sweep = [&](auto vectors, Index column, Index columns) SEQMIX_INLINE_LAMBDA {
        T* const memory = head.memory.data() + column;
        const T* const value = head.value.row(t) + column;
        T* const output = head.output.row(t) + column;
        const Index stride = head.memory.stride();
        if constexpr (sums) {
          if (recent.data()) {
            detail::sweep_in_place<vectors, Decay::any, true>(coefficients, key_dim, recent.data() + column,
                                                              recent.stride(), value, output, output_scale, columns,
                                                              memory, stride);
            return;
          }
        }
        if constexpr (Decay::per_value_channel) {
          detail::sweep_in_place<vectors, false, false, true>(coefficients, key_dim, memory, stride, value, output,
                                                              output_scale, columns, static_cast<const T*>(nullptr),
                                                              Index(0), static_cast<const T*>(factors) + column);
        } else if constexpr (Delta::any) {
          const Index next = column + vectors * width;
          const T* upcoming = next < value_dim ? memory + vectors * width
                                               : problem.memory.head(std::min(h + 1, problem.heads() - 1)).data();
          detail::sweep_in_place<vectors, Decay::any>(coefficients, key_dim, memory, stride, value, output,
                                                      output_scale, columns, upcoming);
        } else {
          detail::sweep_in_place<vectors, Decay::any>(coefficients, key_dim, memory, stride, value, output,
                                                      output_scale, columns);
        }
      };
      Index column = 0;
      // With a delta policy two products are summed up for each column, which is twice as many registers.
      constexpr Index wide = Delta::any ? 4 : in_place_columns<T> / width;
      for (; column + wide * width <= value_dim; column += wide * width) {
        sweep(std::integral_constant<Index, wide>{}, column, Index(-1));
      }
      if constexpr (wide > 4) {
        // Two vectors alone are two chains of sums, which wait for each other.
        if (column + 4 * width <= value_dim) {
          sweep(std::integral_constant<Index, 4>{}, column, Index(-1));
          column += 4 * width;
        }
      }
      for (; column + 2 * width <= value_dim; column += 2 * width) {
        sweep(std::integral_constant<Index, 2>{}, column, Index(-1));
      }
      for (; column < value_dim; column += width) {
        const Index columns = std::min(width, value_dim - column);
        sweep(std::integral_constant<Index, 1>{}, column, columns == width ? Index(-1) : columns);
      }
      if (problem.output_map.function) {
        problem.output_map.function(problem.output_map.parameters, h, t, 0, head.output.rows(t, 1));
      }
      if constexpr (sums) {
        if (recent.data()) {
          for (Index i = 0; Decay::any && i < key_dim; ++i) {
            detail::rescale(head.memory.row(i), value_dim, coefficients.rows[0]);
          }
          detail::settle_rows(recent, head.memory, problem.decay.position + t);
        }
      }
    }
    if constexpr (Normalizer::any) detail::save_key_sum<Decay>(key_sum, problem.normalizer, h);
  }
}

}  // namespace seqmix::inline SEQMIX_ARCH
