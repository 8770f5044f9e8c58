// Linear attention over all tokens at once, without order: one memory that every token writes, then every token reads.
//
//     S = sum_s k_s v_s^T,   z = sum_s k_s,   y_t = q_t^T S / (q_t . z + epsilon)
//
// Two passes of register tiles over blocks of tokens. The memory is held in panels of two vectors of value columns,
// [key_dim][2 vectors], and panels are what threads share. Sums are in two parts (see engine/linear_recurrence_sums.hpp),
// settled after each block.
#pragma once

#include <algorithm>
#include <seqmix/engine/linear_recurrence_chunked.hpp>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// The work of one thread of linear_attention_global: panels first .. last - 1, counted over heads and the panels of each.
template <class T, class Problem>
void linear_attention_global_panels(const Problem& problem, Index first, Index last, Workspace& workspace) {
  using Normalizer = decltype(problem.normalizer);
  constexpr Index width = lanes<T>, panel_columns = 2 * width, block = 8 * tile_rows;
  const Index length = problem.length(), key_dim = problem.key_dim(), value_dim = problem.value_dim();
  const Index panels = (value_dim + panel_columns - 1) / panel_columns, pitch = padded<T>(key_dim);
  const Index panel_size = key_dim * panel_columns;
  T* queries = workspace.take<T>(block * pitch).data();
  T* keys = workspace.take<T>(block * pitch).data();
  T* values = workspace.take<T>(block * panel_columns).data();
  T* memory = workspace.take<T>(panels * 2 * panel_size).data();
  T* key_sum = workspace.take<T>(2 * pitch).data();
  T inverse_denominator[block];

  for (Index h = first / panels; h <= (last - 1) / panels; ++h) {
    const auto head = problem.head(h);
    const Index first_panel = std::max(first - h * panels, Index(0)), last_panel = std::min(last - h * panels, panels);
    std::fill_n(memory, panels * 2 * panel_size, T(0));
    std::fill_n(key_sum, 2 * pitch, T(0));
    for (Index begin = 0; begin < length; begin += block) {
      const Index count = std::min(block, length - begin);
      stage_rows(head.key, problem.key_map, T(1), begin, count, problem.key_dim(), keys);
      for (Index t = 0; t < count; ++t) {
        for (Index i = 0; i < pitch; i += width) store(key_sum + i, load(key_sum + i) + load(keys + t * pitch + i));
      }
      settle(key_sum, key_sum + pitch, pitch);
      for (Index panel = first_panel; panel < last_panel; ++panel) {
        const Index column = panel * panel_columns;
        for (Index t = 0; t < count; ++t) {
          for (Index b = 0; b < 2; ++b) {
            const Index columns = std::clamp(value_dim - column - b * width, Index(0), width);
            store(values + t * panel_columns + b * width,
                  load_some(head.value.row(begin + t) + std::min(column + b * width, value_dim), columns));
          }
        }
        update_panel<true, T>(keys, pitch, nullptr, values, count, key_dim, memory + panel * 2 * panel_size);
      }
    }
    for (Index begin = 0; begin < length; begin += block) {
      const Index count = std::min(block, length - begin);
      stage_rows(head.query, problem.query_map, problem.scale, begin, count, problem.key_dim(), queries);
      for (Index t = 0; t < count; ++t) {
        inverse_denominator[t] = T(1);
        if constexpr (Normalizer::any) {
          Batch<T> sum = broadcast(T(0));
          for (Index i = 0; i < pitch; i += width)
            sum = fma(load(queries + t * pitch + i), load(key_sum + pitch + i), sum);
          inverse_denominator[t] = problem.normalizer.output_scale / (reduce_add(sum) + problem.normalizer.epsilon);
        }
      }
      for (Index panel = first_panel; panel < last_panel; ++panel) {
        const Index column = panel * panel_columns;
        const auto rows = [&](auto tile, Index t) SEQMIX_INLINE_LAMBDA {
          multiply_tile<tile, 2>(
              static_cast<const T*>(queries + t * pitch), pitch, Index(1),
              static_cast<const T*>(memory + panel * 2 * panel_size + panel_size), panel_columns, Index(0), key_dim,
              [](auto, auto) SEQMIX_INLINE_LAMBDA -> Batch<T> { return broadcast(T(0)); },
              [&](auto row, auto vector, const Batch<T>& sum) SEQMIX_INLINE_LAMBDA {
                const Index start = column + vector * width;
                if (start < value_dim) {
                  store_some(head.output.row(begin + t + row) + start, sum * broadcast(inverse_denominator[t + row]),
                             value_dim - start);
                }
              });
        };
        Index t = 0;
        for (; t + tile_rows <= count; t += tile_rows) rows(std::integral_constant<Index, tile_rows>{}, t);
        for (; t < count; ++t) rows(std::integral_constant<Index, 1>{}, t);
      }
    }
  }
}

}  // namespace detail

/// Evaluates the sums over all tokens of `problem` and reads them for each; its decay, readout, memory contents and the
/// normalizer's sum take no part. Shapes are asserted only. The same bits for any number of threads. O(L H K V) time,
/// O(K V) scratch for each thread; allocates nothing once `workspace` is warm.
template <class T, class Decay, class Readout, class Normalizer>
void linear_attention_global(const LinearRecurrenceProblem<T, Decay, Readout, Normalizer>& problem,
                             Workspace& workspace) {
  const Index panels = (problem.value_dim() + 2 * lanes<T> - 1) / (2 * lanes<T>), units = problem.heads() * panels;
  const Index workers = std::min(workspace.concurrency(), units);
  workspace.parallel_for(workers, [&](Index worker, Workspace& local) {
    detail::linear_attention_global_panels<T>(problem, units * worker / workers, units * (worker + 1) / workers, local);
  });
}

}  // namespace seqmix::inline SEQMIX_ARCH
