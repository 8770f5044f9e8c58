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

/// S and z of one head, or those panels of S that a thread works on, while blocks of tokens are added and then read.
template <class T>
class GlobalMemory {
 public:
  /// Tokens to add or read at a time, at most.
  static constexpr Index block = 8 * tile_rows;

  /// Scratch for a head of key_dim x value_dim. Needs an open frame.
  GlobalMemory(Index key_dim, Index value_dim, Workspace& workspace)
      : key_dim_(key_dim),
        value_dim_(value_dim),
        values_(workspace.take<T>(block * panel_columns).data()),
        memory_(workspace.take<T>(panels() * 2 * panel_size()).data()),
        key_sum_(workspace.take<T>(2 * pitch()).data()) {}

  /// Panels of a head.
  Index panels() const { return (value_dim_ + panel_columns - 1) / panel_columns; }
  /// Numbers from one row of keys or queries to the next: whole vectors, zeros beyond key_dim.
  Index pitch() const { return detail::padded<T>(key_dim_); }

  /// An empty memory, of which panels first .. last - 1 count.
  void clear(Index first, Index last) {
    first_ = first, last_ = last;
    std::fill_n(memory_, panels() * 2 * panel_size(), T(0));
    std::fill_n(key_sum_, 2 * pitch(), T(0));
  }

  /// Adds tokens with keys [count][pitch] and values [count, value_dim].
  void add(const T* keys, const Sequence<const T>& values) {
    const Index count = values.length();
    for (Index t = 0; t < count; ++t) {
      for (Index i = 0; i < pitch(); i += width) {
        store(key_sum_ + i, load(key_sum_ + i) + load(keys + t * pitch() + i));
      }
    }
    detail::settle(key_sum_, key_sum_ + pitch(), pitch());
    for (Index panel = first_; panel < last_; ++panel) {
      const Index column = panel * panel_columns;
      for (Index t = 0; t < count; ++t) {
        for (Index b = 0; b < 2; ++b) {
          const Index columns = std::clamp(value_dim_ - column - b * width, Index(0), width);
          store(values_ + t * panel_columns + b * width,
                detail::load_some(values.row(t) + std::min(column + b * width, value_dim_), columns));
        }
      }
      detail::update_panel<true, T>(keys, pitch(), nullptr, values_, count, key_dim_, panel_at(panel));
    }
  }

  /// Multiplies S and z by `factor`.
  void rescale(T factor) {
    detail::rescale(key_sum_, 2 * pitch(), factor);
    detail::rescale(panel_at(first_), (last_ - first_) * 2 * panel_size(), factor);
  }

  /// output [count, value_dim], in the columns of the panels, from queries [count][pitch]. `normalizer` as in a
  /// LinearRecurrenceProblem; its own sum takes no part.
  template <class Normalizer>
  void read(const T* queries, const Normalizer& normalizer, const Sequence<T>& output) const {
    const Index count = output.length();
    T inverse_denominator[block];
    for (Index t = 0; t < count; ++t) {
      inverse_denominator[t] = T(1);
      if constexpr (Normalizer::any) {
        Batch<T> sum = broadcast(T(0));
        for (Index i = 0; i < pitch(); i += width) {
          sum = fma(load(queries + t * pitch() + i), load(key_sum_ + pitch() + i), sum);
        }
        inverse_denominator[t] = normalizer.output_scale / (reduce_add(sum) + normalizer.epsilon);
      }
    }
    for (Index panel = first_; panel < last_; ++panel) {
      const Index column = panel * panel_columns;
      const auto rows = [&](auto tile, Index t) SEQMIX_INLINE_LAMBDA {
        multiply_tile<tile, 2>(
            queries + t * pitch(), pitch(), Index(1), static_cast<const T*>(panel_at(panel) + panel_size()),
            panel_columns, Index(0), key_dim_,
            [](auto, auto) SEQMIX_INLINE_LAMBDA -> Batch<T> { return broadcast(T(0)); },
            [&](auto row, auto vector, const Batch<T>& sum) SEQMIX_INLINE_LAMBDA {
              const Index start = column + vector * width;
              if (start < value_dim_) {
                detail::store_some(output.row(t + row) + start, sum * broadcast(inverse_denominator[t + row]),
                                   value_dim_ - start);
              }
            });
      };
      Index t = 0;
      for (; t + tile_rows <= count; t += tile_rows) rows(std::integral_constant<Index, tile_rows>{}, t);
      for (; t < count; ++t) rows(std::integral_constant<Index, 1>{}, t);
    }
  }

 private:
  static constexpr Index width = lanes<T>, panel_columns = 2 * width;

  Index panel_size() const { return key_dim_ * panel_columns; }
  /// The recent part of a panel, which the settled one follows.
  T* panel_at(Index panel) const { return memory_ + panel * 2 * panel_size(); }

  Index key_dim_, value_dim_, first_ = 0, last_ = 0;
  T *values_, *memory_, *key_sum_;
};

/// Calls body(head, memory, local) for every head, with a cleared memory of key_dim x value_dim, or several times with
/// different panels of it, so that each thread of the workspace gets equally many panels.
template <class T, class Body>
void for_global_memories(Index heads, Index key_dim, Index value_dim, Workspace& workspace, Body&& body) {
  const Index panels = (value_dim + 2 * lanes<T> - 1) / (2 * lanes<T>), units = heads * panels;
  const Index workers = std::min(workspace.concurrency(), units);
  workspace.parallel_for(workers, [&](Index worker, Workspace& local) {
    const Index first = units * worker / workers, last = units * (worker + 1) / workers;
    GlobalMemory<T> memory(key_dim, value_dim, local);
    for (Index h = first / panels; h <= (last - 1) / panels; ++h) {
      memory.clear(std::max(first - h * panels, Index(0)), std::min(last - h * panels, panels));
      const auto frame = local.frame();
      body(h, memory, local);
    }
  });
}

/// Evaluates the sums over all tokens of `problem` and reads them for each; its decay, readout, memory contents and the
/// normalizer's sum take no part. Shapes are asserted only. The same bits for any number of threads. O(L H K V) time,
/// O(K V) scratch for each thread; allocates nothing once `workspace` is warm.
template <class T, class Decay, class Readout, class Normalizer>
void linear_attention_global(const LinearRecurrenceProblem<T, Decay, Readout, Normalizer>& problem,
                             Workspace& workspace) {
  constexpr Index block = GlobalMemory<T>::block;
  for_global_memories<T>(problem.heads(), problem.key_dim(), problem.value_dim(), workspace,
                         [&](Index h, GlobalMemory<T>& memory, Workspace& local) {
                           const auto head = problem.head(h);
                           T* const rows = local.take<T>(block * memory.pitch()).data();
                           for (Index begin = 0; begin < problem.length(); begin += block) {
                             const Index count = std::min(block, problem.length() - begin);
                             detail::stage_rows(head.key, problem.key_map, T(1), begin, count, problem.key_dim(), rows);
                             memory.add(rows, head.value.rows(begin, count));
                           }
                           for (Index begin = 0; begin < problem.length(); begin += block) {
                             const Index count = std::min(block, problem.length() - begin);
                             detail::stage_rows(head.query, problem.query_map, problem.scale, begin, count,
                                                problem.key_dim(), rows);
                             memory.read(rows, problem.normalizer, head.output.rows(begin, count));
                           }
                         });
}

}  // namespace seqmix::inline SEQMIX_ARCH
