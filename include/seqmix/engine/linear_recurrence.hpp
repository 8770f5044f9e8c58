// Linear recurrences with a matrix memory:
//
//     S_t = diag(d_t) S_{t-1} + k_t v_t^T,     y_t = scale * q_t^T S_t
//
// for every head, over a whole sequence or a few tokens, from and into a memory. Policies (engine/decay.hpp) say what the
// decay d_t depends on, whether the token reads the memory before or after it is added (readout), and whether outputs are
// divided by the sum of key weights (normalizer).
//
//   Glossary  L length   H heads   K key_dim   V value_dim, all per head
//
// Evaluation orders, which agree up to rounding:
//   in place   a token at a time on the memory where it is: for up to 7 or 15 tokens
//   fused      a few tokens for each pass over the memory, panels of the memory in the first-level cache
//   chunked    matrix products over chunks of twelve tokens: not the fastest for any shape that was measured, so
//              linear_recurrence does not take it
// Measured with bench/kernels (kernel/linear_recurrence/<order>/..), 2048 tokens, float, one core with AVX2 (Zen 3), shares of
// the roofline:
//                                            12 heads of 64 x 64     6 heads of 128 x 128
//                                             fused    chunked         fused    chunked
//   no decay                                   0.59      0.44           0.68      0.56
//   per head                                   0.63      0.49           0.73      0.66
//   per token and channel                      0.61      0.45           0.69      0.62
//   delta rule                                 0.64      0.54           0.73      0.68
//   delta rule, per token and channel          0.59      0.51           0.66      0.66
//   low rank, per token and channel            0.55      0.46           0.69      0.62
// Cost O(L H K V) time and O(H K V) scratch; nothing of size L^2 or L K exists.
#pragma once

#include <algorithm>
#include <optional>
#include <seqmix/engine/linear_recurrence_in_place.hpp>
#include <seqmix/engine/linear_recurrence_panels.hpp>
#include <seqmix/engine/summed_memory.hpp>
#include <string>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

template <class T, class Decay, class Readout, class Normalizer, class Delta>
void linear_recurrence_shared_memory(const LinearRecurrenceProblem<T, Decay, Readout, Normalizer, Delta>& problem,
                                     Workspace& workspace);

/// Evaluates the recurrence in the order that is fastest for its shape, and leaves the memory (and the normalizer's sum)
/// as after the last token. Shapes are those of LinearRecurrenceProblem, asserted only. A memory of fewer heads than queries
/// and output is shared (linear_recurrence_shared_memory). Runs in parallel over heads and value columns; results have the
/// same bits for any number of threads. Allocates nothing once `workspace` is warm.
template <class T, class Decay, class Readout, class Normalizer, class Delta>
void linear_recurrence(const LinearRecurrenceProblem<T, Decay, Readout, Normalizer, Delta>& problem,
                       Workspace& workspace) {
  if constexpr (!Normalizer::any && !Readout::bonus && !Readout::weighted) {
    if (problem.memory.heads() != problem.heads()) return linear_recurrence_shared_memory(problem, workspace);
  }
  assert(problem.query.length() == problem.length() && problem.key.length() == problem.length() &&
         problem.value.length() == problem.length() && problem.memory.heads() == problem.heads());
  // Copying the memory into panels and back takes as long as some tokens in place, where those are swept in whole groups
  // of vectors (measured: the orders meet at 16 tokens without decay and later with one; at odd widths, at 7).
  const Index fused_from = problem.value_dim() % detail::in_place_columns<T> == 0 ? 16 : 8;
  if (problem.length() < fused_from) {
    linear_recurrence_in_place(problem, workspace);
  } else {
    linear_recurrence_panels<RecurrenceOrder::fused>(problem, workspace);
  }
}

/// The same where the memory has fewer heads than queries and output: consecutive heads of these read one memory, whose
/// heads are those that the other streams' divide. Without normalizer, bonus and weights. The memory is swept once for every
/// head that reads it: O(heads key_dim value_dim) time for each token, O(memory) scratch.
template <class T, class Decay, class Readout, class Normalizer, class Delta>
void linear_recurrence_shared_memory(const LinearRecurrenceProblem<T, Decay, Readout, Normalizer, Delta>& problem,
                                     Workspace& workspace) {
  static_assert(!Normalizer::any && !Readout::bonus && !Readout::weighted);
  assert(!problem.output_map.function);
  const Index heads = problem.memory.heads(), readers = heads == 0 ? 0 : problem.heads() / heads;
  assert(problem.heads() == readers * heads && problem.query.heads() == problem.heads());
  const auto read_by = [&]<class U>(const HeadSequence<U>& all, Index reader) {
    return HeadSequence<U>(all.data() + reader * all.head_stride(), all.length(), heads, all.head_dim(),
                           all.row_stride(), readers * all.head_stride());
  };
  const auto copy_of = [&](const MemoryView<T>& memory) {
    const MemoryView<T> copy(workspace.take<T>(memory.shape().size()).data(), heads, memory.key_dim(),
                             memory.value_dim());
    for (Index h = 0; h < heads; ++h) {
      for (Index i = 0; i < memory.key_dim(); ++i) std::copy_n(memory.row(h, i), memory.value_dim(), copy.row(h, i));
    }
    return copy;
  };
  for (Index reader = 0; reader < readers; ++reader) {
    const auto frame = workspace.frame();
    auto one = problem;
    one.query = read_by(problem.query, reader);
    one.output = read_by(problem.output, reader);
    if (reader + 1 < readers) {  // all but the last work on a copy
      one.memory = copy_of(problem.memory);
      if constexpr (LinearRecurrenceProblem<T, Decay, Readout, Normalizer, Delta>::sums) {
        if (problem.decay.compensation.data()) one.decay.compensation = copy_of(problem.decay.compensation);
      }
    }
    linear_recurrence(one, workspace);
  }
}

namespace detail {

/// Throws if the view is not what expect_shared_heads expects. Views that interleave without sharing an element are fine.
template <class T>
[[gnu::cold, gnu::noinline]] void check_shared_heads(std::string_view operation, std::string_view name,
                                                     HeadSequence<const T> view, Index channels, MemoryView<T> memory,
                                                     HeadSequence<T> output) {
  if (view.heads() <= 0 || memory.heads() % view.heads() != 0) {
    internal::throw_invalid(operation, name,
                            "has " + std::to_string(view.heads()) + " heads, which do not divide the " +
                                std::to_string(memory.heads()) + " heads of the memory");
  }
  expect_shape(operation, name, {output.length(), view.heads(), channels}, view);
  expect_disjoint(operation, "output", output, name, view);
  expect_disjoint(operation, "memory", memory, name, view);
}

/// Throws unless the output fits the memory and they do not overlap.
template <class T>
[[gnu::cold, gnu::noinline]] void check_results(std::string_view operation, MemoryView<T> memory,
                                                HeadSequence<T> output) {
  expect_shape(operation, "output", {output.length(), memory.heads(), memory.value_dim()}, output);
  expect_disjoint(operation, "output", output, "memory", memory);
}

}  // namespace detail

/// Throws std::invalid_argument unless `view` is [L, heads', channels], where L is the length of the output and heads'
/// divides the heads of the memory, and overlaps neither.
template <class T>
SEQMIX_ALWAYS_INLINE void expect_shared_heads(std::string_view operation, std::string_view name,
                                              const HeadSequence<const T>& view, Index channels,
                                              const MemoryView<T>& memory, const HeadSequence<T>& output) {
  // Steps wait for this, and a recurrence has many streams. So what is as it most often is passes a few comparisons that the
  // compiler can see through, and the rest is out of line: calls that take views by reference made this take longer than two
  // rows of the memory for each stream.
  const bool shares = view.heads() > 0 && (view.heads() == memory.heads() || memory.heads() % view.heads() == 0);
  using internal::extent_of;
  const internal::Extent extent = extent_of(view);
  if (!shares || view.length() != output.length() || view.head_dim() != channels || !extent.apart(extent_of(memory)) ||
      !extent.apart(extent_of(output))) [[unlikely]] {
    detail::check_shared_heads<T>(operation, name, view, channels, memory, output);
  }
}

/// The same for a view of one number for each token and head, [L, heads'].
template <class T>
void expect_shared_heads(std::string_view operation, std::string_view name, const Sequence<const T>& view,
                         const MemoryView<T>& memory, const HeadSequence<T>& output) {
  expect_shared_heads<T>(operation, name, {view.data(), view.length(), view.channels(), 1, view.stride(), 1}, 1, memory,
                         output);
}

/// Throws std::invalid_argument unless query and key are [L, heads', K] (or, where they are mapped to that, [L, heads',
/// key_channels]), value [L, heads', V], memory [H, K, V], where H is a multiple of each heads', the output [L, H, V], and no
/// output overlaps another argument.
template <class T>
SEQMIX_ALWAYS_INLINE void expect_recurrence_shapes(std::string_view operation, const HeadSequence<const T>& query,
                                                   const HeadSequence<const T>& key, const HeadSequence<const T>& value,
                                                   const MemoryView<T>& memory, const HeadSequence<T>& output,
                                                   std::optional<Index> key_channels = {}) {
  using internal::extent_of;
  if (output.heads() != memory.heads() || output.head_dim() != memory.value_dim() ||
      !extent_of(output).apart(extent_of(memory))) [[unlikely]] {
    detail::check_results<T>(operation, memory, output);
  }
  expect_shared_heads(operation, "query", query, key_channels.value_or(memory.key_dim()), memory, output);
  expect_shared_heads(operation, "key", key, key_channels.value_or(memory.key_dim()), memory, output);
  expect_shared_heads(operation, "value", value, memory.value_dim(), memory, output);
}

/// The same where a memory of fewer heads may be shared (linear_recurrence_shared_memory): unless output and query have a
/// multiple of the memory's heads, [L, n H, V] and [L, n H, K], n > 1, shapes must be those of expect_recurrence_shapes.
template <class T>
void expect_grouped_recurrence_shapes(std::string_view operation, const HeadSequence<const T>& query,
                                      const HeadSequence<const T>& key, const HeadSequence<const T>& value,
                                      const MemoryView<T>& memory, const HeadSequence<T>& output) {
  if (memory.heads() == 0 || output.heads() <= memory.heads() || output.heads() % memory.heads() != 0) {
    return expect_recurrence_shapes(operation, query, key, value, memory, output);
  }
  expect_shape(operation, "output", {output.length(), output.heads(), memory.value_dim()}, output);
  expect_shape(operation, "query", {output.length(), output.heads(), memory.key_dim()}, query);
  expect_shared_heads(operation, "key", key, memory.key_dim(), memory, output);
  expect_shared_heads(operation, "value", value, memory.value_dim(), memory, output);
  expect_disjoint(operation, "output", output, "query", query);
  expect_disjoint(operation, "memory", memory, "query", query);
  expect_disjoint(operation, "output", output, "memory", memory);
}

/// Throws std::invalid_argument unless `key_sum`, which is written, is [H, K] for a memory [H, K, V] and overlaps nothing.
template <class T>
void expect_key_sum(std::string_view operation, const HeadSequence<const T>& query, const HeadSequence<const T>& key,
                    const HeadSequence<const T>& value, const MemoryView<T>& memory, const Sequence<T>& key_sum,
                    const HeadSequence<T>& output) {
  expect_shape(operation, "key_sum", {memory.heads(), memory.key_dim()}, key_sum);
  expect_disjoint(operation, "key_sum", key_sum, "memory", memory);
  expect_disjoint(operation, "key_sum", key_sum, "output", output);
  expect_disjoint(operation, "key_sum", key_sum, "query", query);
  expect_disjoint(operation, "key_sum", key_sum, "key", key);
  expect_disjoint(operation, "key_sum", key_sum, "value", value);
}

/// Throws std::invalid_argument unless each part of `compensation`, where there is one, has the shape of what it
/// compensates and overlaps nothing.
template <class T>
void expect_compensation(std::string_view operation, const HeadSequence<const T>& query,
                         const HeadSequence<const T>& key, const HeadSequence<const T>& value,
                         const MemoryView<T>& memory, const Sequence<T>& key_sum,
                         const SumCompensation<T>& compensation, const HeadSequence<T>& output) {
  const auto expect_apart = [&](std::string_view name, const auto& part) {
    expect_disjoint(operation, name, part, "memory", memory);
    expect_disjoint(operation, name, part, "key_sum", key_sum);
    expect_disjoint(operation, name, part, "output", output);
    expect_disjoint(operation, name, part, "query", query);
    expect_disjoint(operation, name, part, "key", key);
    expect_disjoint(operation, name, part, "value", value);
  };
  if (compensation.memory.data()) {
    expect_shape(operation, "compensation.memory", memory.shape(), compensation.memory.shape());
    expect_apart("compensation.memory", compensation.memory);
  }
  if (compensation.key_sum.data()) {
    expect_shape(operation, "compensation.key_sum", {memory.heads(), memory.key_dim()}, compensation.key_sum);
    expect_apart("compensation.key_sum", compensation.key_sum);
    expect_disjoint(operation, "compensation.key_sum", compensation.key_sum, "compensation.memory",
                    compensation.memory);
  }
  expect(compensation.position >= 0, operation, "compensation.position", "is negative");
}

/// Throws std::invalid_argument if `parameter`, which is only read, overlaps the memory or the output.
template <class View, class T>
void expect_apart_from_results(std::string_view operation, std::string_view name, const View& parameter,
                               const MemoryView<T>& memory, const HeadSequence<T>& output) {
  expect_disjoint(operation, "output", output, name, parameter);
  expect_disjoint(operation, "memory", memory, name, parameter);
}

}  // namespace seqmix::inline SEQMIX_ARCH
