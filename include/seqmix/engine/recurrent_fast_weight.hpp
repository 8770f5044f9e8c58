// Fast weight programmers whose next query depends on what they have just read, token by token:
//
//   recurrent delta net   s = tanh(h_{t-1}),   q_t = softmax(q + s R_q),   k_t = softmax(k + s R_k),   v_t = v + s R_v,
//                         beta_t = sigmoid(beta + s . r_b),   h_t = what the delta rule reads (engine/delta_memory.hpp)
//   delta RNN             R_t = the delta rule for softmax(rk), rv and beta,   h_t = R_t^T softmax(h_{t-1}) + z_t
//
// and y_t = scale * h_t. Only heads, and sequences of a batch, run at the same time.
#pragma once

#include <algorithm>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/delta_memory.hpp>
#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/parts/softmax.hpp>
#include <seqmix/simd/math.hpp>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// to[j] = from[j] for j < count, and zeros up to whole vectors.
template <class T>
SEQMIX_ALWAYS_INLINE void copy_padded_row(const T* from, Index count, T* to) {
  Index i = 0;
  for (; i + lanes<T> <= count; i += lanes<T>) store(to + i, load(from + i));
  if (i < count) store(to + i, load_partial(from + i, count - i));
}

/// Asks for the rows of a token some tokens ahead: they lie far apart, which defeats the hardware's prefetcher.
template <class T, class... Rows>
SEQMIX_ALWAYS_INLINE void prefetch_rows(Index t, const Sequence<T>& first, const Rows&... rest) {
  constexpr Index ahead = 4, line = Index(memory_alignment / sizeof(T));
  if (t + ahead < first.length()) {
    for (Index i = 0; i < first.channels(); i += line) prefetch_read(first.row(t + ahead) + i);
  }
  if constexpr (sizeof...(Rows) > 0) prefetch_rows(t, rest...);
}

/// h of one head, `count` numbers, padded to whole vectors until `finish` brings it back.
template <class T>
class HiddenRow {
 public:
  HiddenRow(T* hidden, Index count, Workspace& workspace)
      : hidden_(hidden), row_(workspace.take<T>(padded<T>(count)).data()), count_(count) {
    copy_padded_row(static_cast<const T*>(hidden), count, row_);
  }
  T* data() const { return row_; }
  void finish() const { std::copy_n(row_, count_, hidden_); }

 private:
  T *hidden_, *row_;
  Index count_;
};

/// The matrix itself if its rows are whole vectors, else a copy whose rows are, with zeros beyond their ends.
template <class T>
Sequence<const T> padded_rows(const Sequence<const T>& matrix, Workspace& workspace) {
  const Index pitch = padded<T>(matrix.channels());
  if (pitch == matrix.channels()) return matrix;
  const Sequence<T> copy(workspace.take<T>(matrix.length() * pitch).data(), matrix.length(), pitch);
  for (Index i = 0; i < matrix.length(); ++i) copy_padded_row(matrix.row(i), matrix.channels(), copy.row(i));
  return copy;
}

}  // namespace detail

/// What a recurrent delta net feeds back of the output before into its streams.
template <class T>
struct RecurrentDeltaNetFeedback {
  Sequence<const T> query, key,
      value;               // [H d, d]: rows h d .. (h + 1) d - 1 are R of head h, which s is multiplied with
  Sequence<const T> beta;  // [H, d], r_b
};

/// A recurrent delta net of H heads with d channels each, over one sequence.
template <class T>
struct RecurrentDeltaNetProblem {
  HeadSequence<const T> query, key, value;  // [L, H, d]
  Sequence<const T> beta;                   // [L, H], before its sigmoid
  RecurrentDeltaNetFeedback<T> feedback;
  T scale;
  MemoryView<T> memory;    // [H, d, d]
  Sequence<T> hidden;      // [H, d], h
  HeadSequence<T> output;  // [L, H, d]

  /// Every stream waits for the output before.
  void prepare(Workspace& /*workspace*/) const {}

  /// Runs head h over all tokens from and into its memory and its row of hidden. 12 d^2 operations for each.
  void run(Index h, Workspace& workspace) const {
    constexpr Index width = lanes<T>;
    const Index d = memory.key_dim(), pitch = detail::padded<T>(d);
    DeltaMemory<T> head(memory.head(h), workspace);
    const detail::HiddenRow<T> hidden_row(hidden.row(h), d, workspace);
    const auto matrix = [&](const Sequence<const T>& of_all) {
      return detail::padded_rows<T>(of_all.rows(h * d, d), workspace);
    };
    const auto query_matrix = matrix(feedback.query), key_matrix = matrix(feedback.key);
    const auto value_matrix = matrix(feedback.value),
               beta_row = detail::padded_rows<T>(feedback.beta.rows(h, 1), workspace);
    T* const fed_back = workspace.take<T>(pitch).data();
    const auto add_feedback = [&](const T* input, const Sequence<const T>& through, T* row) SEQMIX_INLINE_LAMBDA {
      detail::copy_padded_row(input, d, row);
      detail::add_row_product(static_cast<const T*>(fed_back), d, through.data(), through.stride(), pitch, row);
    };
    const auto queries = query.head(h), keys = key.head(h), values = value.head(h);
    const auto outputs = output.head(h);
    for (Index t = 0; t < outputs.length(); ++t) {
      detail::prefetch_rows(t, queries, keys, values);
      Batch<T> dot = broadcast(T(0));
      for (Index i = 0; i < pitch; i += width) {
        const Batch<T> s = tanh(load(hidden_row.data() + i));
        store(fed_back + i, s);
        dot = fma(s, load(beta_row.data() + i), dot);
      }
      const T rate = sigmoid(beta(t, h) + reduce_add(dot));
      // The matrices and the memory together do not fit the first-level cache where d is 64. By turns in these two
      // orders, each token begins with what the one before ended with, and the memory is needed twice in close
      // succession.
      const bool value_first = t % 2 != 0;
      if (value_first) add_feedback(values.row(t), value_matrix, head.value());
      if (value_first) add_feedback(keys.row(t), key_matrix, head.key());
      add_feedback(queries.row(t), query_matrix, head.query());
      if (!value_first) add_feedback(keys.row(t), key_matrix, head.key());
      softmax_row(static_cast<const T*>(head.query()), d, T(1), T(0), head.query());
      softmax_row(static_cast<const T*>(head.key()), d, T(1), T(0), head.key());
      head.read();
      if (!value_first) add_feedback(values.row(t), value_matrix, head.value());
      T* const result = outputs.row(t);
      head.update(rate, [&](Index j, const Batch<T>& h_t) SEQMIX_INLINE_LAMBDA {
        store(hidden_row.data() + j, h_t);
        detail::store_some(result + j, h_t * broadcast(scale), d - j);
      });
    }
    head.finish();
    hidden_row.finish();
  }
};

/// A delta RNN of H heads with d channels each, over one sequence.
template <class T>
struct DeltaRnnProblem {
  HeadSequence<const T> query, key, value;               // [L, H, d]
  Sequence<const T> beta;                                // [L, H]
  RowMap<T> map;                                         // of queries and keys, to the F rows of memory
  HeadSequence<const T> recurrent_key, recurrent_value;  // [L, H, d], keys before their softmax
  Sequence<const T> recurrent_beta;                      // [L, H]
  T epsilon;                                             // added to the denominator of softmax(h)
  T scale;
  MemoryView<T> memory;            // [H, F, d], W
  MemoryView<T> recurrent_memory;  // [H, d, d], R
  Sequence<T> hidden;              // [H, d], h
  HeadSequence<T> output;          // [L, H, d]

  /// Leaves z in output: this half does not depend on outputs.
  void prepare(Workspace& workspace) const {
    linear_recurrence(
        LinearRecurrenceProblem<T, decay::None<T>, readout::AfterUpdate<T>, normalizer::None<T>, delta::Rule<T>>{
            query, key, value, {}, {}, {}, T(1), memory, output, map, map, {beta}},
        workspace);
  }

  /// Runs head h over all tokens from and into its second memory and its row of hidden. 6 d^2 operations for each.
  void run(Index h, Workspace& workspace) const {
    const Index d = hidden.channels();
    DeltaMemory<T> head(recurrent_memory.head(h), workspace);
    const detail::HiddenRow<T> hidden_row(hidden.row(h), d, workspace);
    const auto keys = recurrent_key.head(h), values = recurrent_value.head(h);
    const auto outputs = output.head(h);
    for (Index t = 0; t < outputs.length(); ++t) {
      detail::prefetch_rows(t, keys, values, Sequence<const T>(outputs));
      detail::copy_padded_row(keys.row(t), d, head.key());
      detail::copy_padded_row(values.row(t), d, head.value());
      softmax_row(static_cast<const T*>(head.key()), d, T(1), T(0), head.key());
      softmax_row(static_cast<const T*>(hidden_row.data()), d, T(1), epsilon, head.query());
      head.read();
      T* const result = outputs.row(t);
      head.update(recurrent_beta(t, h), [&](Index j, const Batch<T>& read) SEQMIX_INLINE_LAMBDA {
        const Batch<T> h_t = read + detail::load_some(static_cast<const T*>(result + j), d - j);
        store(hidden_row.data() + j, h_t);
        detail::store_some(result + j, h_t * broadcast(scale), d - j);
      });
    }
    head.finish();
    hidden_row.finish();
  }
};

/// Runs several sequences: problem_of(b) is the problem of sequence b of `sequences`, all with as many heads of as many
/// channels, and `tokens` tokens together. Heads run at the same time where there is enough to do; results have the
/// same bits for any number of threads.
template <class ProblemOf>
void run_sequential_heads(Index sequences, Index tokens, ProblemOf&& problem_of, Workspace& workspace) {
  if (sequences == 0 || tokens == 0) return;
  for (Index b = 0; b < sequences; ++b) problem_of(b).prepare(workspace);
  const auto hidden = problem_of(Index(0)).hidden;
  const Index heads = hidden.length();
  const auto run = [&](Index unit, Workspace& local) { problem_of(unit / heads).run(unit % heads, local); };
  constexpr Index least_work = Index(1) << 18;  // to hand over takes microseconds
  if (tokens * heads * hidden.channels() * hidden.channels() >= least_work) {
    workspace.parallel_for(sequences * heads, run);
    return;
  }
  for (Index unit = 0; unit < sequences * heads; ++unit) {
    const auto frame = workspace.frame();
    run(unit, workspace);
  }
}

}  // namespace seqmix::inline SEQMIX_ARCH
