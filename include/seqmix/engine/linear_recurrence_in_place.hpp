// The linear recurrence token by token, on the memory where it is.
#pragma once

#include <algorithm>
#include <seqmix/engine/linear_recurrence_fused.hpp>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

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

}  // namespace detail

/// The recurrence token by token on the memory where it is: for single steps and a few tokens. Serial.
template <class T, class Decay, class Readout, class Normalizer>
void linear_recurrence_in_place(const LinearRecurrenceProblem<T, Decay, Readout, Normalizer>& problem,
                                Workspace& workspace) {
  constexpr Index width = lanes<T>;
  const Index key_dim = problem.key_dim(), value_dim = problem.value_dim(), pitch = detail::padded<T>(key_dim);
  const auto frame = workspace.frame();
  detail::RecurrenceCoefficients<T, 1> coefficients;
  coefficients.rows = workspace.take<T>(detail::RecurrenceCoefficients<T, 1>::size(key_dim)).data();
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
    if constexpr (Decay::constant) detail::load_factors<Decay>(head, 0, 1, factors);
    for (Index t = 0; t < problem.length(); ++t) {
      if constexpr (!Decay::constant) detail::load_factors<Decay>(head, t, 1, factors);
      detail::stage_queries_and_keys(problem, head, t, 1, queries, keys);
      detail::prepare_coefficients(problem, head, queries, keys, factors, key_sum, coefficients);
      T output_scale = T(1);
      if constexpr (Normalizer::any) output_scale = coefficients.inverse_denominator[0];
      const auto sweep = [&](auto vectors, Index column, Index columns) SEQMIX_INLINE_LAMBDA {
        detail::sweep_in_place<vectors, Decay::any>(coefficients, key_dim, head.memory.data() + column,
                                                    head.memory.stride(), head.value.row(t) + column,
                                                    head.output.row(t) + column, output_scale, columns);
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

}  // namespace seqmix::inline SEQMIX_ARCH
