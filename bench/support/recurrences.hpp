// Benchmarks of linear recurrences with a matrix memory, whose cores differ only in their decay, their bonus and what they
// take out of the memory.
#pragma once

#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/memory.hpp>
#include <string>

#include "support/benchmark.hpp"
#include "support/data.hpp"

namespace seqmix::bench {

/// The shape of a core: `heads` heads of key_dim x value_dim.
struct RecurrenceShape {
  Index heads = 12, key_dim = 64, value_dim = 64;
  Index groups = 0;    // of heads that share queries and keys; 0: none do
  Index features = 0;  // rows of the memory where a core makes others of queries and keys than key_dim; 0: key_dim

  Index key_heads() const { return groups > 0 ? groups : heads; }
  Index memory_rows() const { return features > 0 ? features : key_dim; }
};

/// What a core reads and writes: every input that any of them takes. Rows are tokens.
struct RecurrenceStreams {
  HeadSequence<const float> query, key;     // [length, key_heads, key_dim]; keys have norm 1
  HeadSequence<const float> value;          // [length, heads, value_dim]
  HeadSequence<const float> log_decay;      // [length, heads, key_dim], -0.2 to 0
  Sequence<const float> channel_log_decay;  // [heads, key_dim], -0.2 to 0
  Sequence<const float> bonus;              // [heads, key_dim]
  Token<const float> head_log_decay;        // [heads], log(1 - 2^(-5-h))
  HeadSequence<float> output;               // [length, heads, value_dim]
  MemoryView<float> memory;                 // [heads, memory_rows, value_dim]
  Sequence<float> key_sum;                  // [heads, memory_rows], of cores that divide by it
  Sequence<const float> beta;               // [length, heads], 0 to 1, of delta rules and weighted tokens
  HeadSequence<const float> a, b;           // [length, heads, key_dim], of low-rank ones: u and -rate * u, where u
                                            // has norm 1 and the rates are 0 to 1
};

/// What a token takes out of the memory S before it adds its value, decay being the diagonal matrix of factors.
enum class Removal {
  none,
  delta_rule,  // beta k (k^T decay S): the value added is beta (v - (decay S)^T k)
  low_rank     // -b (a^T S), of the memory before the decay
};

/// A core and its equations.
struct RecurrenceCore {
  void (*call)(const RecurrenceStreams& streams, Workspace& workspace);
  Decay work;                                                                                  // its minimum work
  double (*log_decay)(const RecurrenceStreams& streams, Index t, Index h, Index i) = nullptr;  // null: none
  bool bonus = false;  // reads the memory before the update, and the token by a bonus
  Removal removal = Removal::none;
  double scale = 1;                   // of the output
  float (*feature)(float) = nullptr;  // of every query and key channel; null: itself
  void (*features)(const float* from, Index count, bool of_query,
                   float* to) = nullptr;                  // of rows; null: channel by channel
  double (*divisor)(double query_dot_key_sum) = nullptr;  // of the output; null: none
  float (*key)(const RecurrenceStreams& streams, Index t, Index h, Index i) = nullptr;  // null: that of the streams
  double (*weight)(const RecurrenceStreams& streams, Index t, Index h) = nullptr;       // of a key; null: 1
  double (*skip)(const RecurrenceStreams& streams, Index h) = nullptr;  // times the value is in the output; null: 0
};

/// A whole sequence from an empty memory, or with `context` > 0 a single token after that many.
Case recurrence(const RecurrenceCore& core, const RecurrenceShape& shape, Index length, Index context, int threads);

/// Registers core/<name>/length:2048 and 8192, and core_step/<name>/context:2048. Returns true.
bool add_recurrence(const std::string& name, const RecurrenceCore& core, const RecurrenceShape& shape = {});

}  // namespace seqmix::bench
