// Token shift: mixing each token with the one before it, as all RWKV layers begin.
//
//   Source    Peng et al. 2023, arXiv:2305.13048 (RWKV-4); Peng et al. 2024, arXiv:2404.05892 (RWKV-5 and 6);
//             Peng et al. 2025, arXiv:2503.14456 (RWKV-7)
//
// x, previous, output [length, channels]; mix weights [channels]. O(length * channels), nothing here allocates. `output`
// may be any of the inputs, but not overlap one otherwise.
#pragma once

#include <algorithm>
#include <cassert>
#include <seqmix/core/error.hpp>
#include <seqmix/core/mixer.hpp>
#include <seqmix/core/tensor.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/parts/row.hpp>
#include <seqmix/simd/arch.hpp>
#include <seqmix/simd/batch.hpp>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

/// The state of a mixer that shifts tokens and keeps matrix memories: RWKV-5, 6 and 7.
template <class T>
struct TokenShiftState {
  Tensor<T> previous;  // [channels], the last token of the input
  Tensor<T> memory;    // [heads, key_dim, value_dim]

  template <class Self, class Visitor>
  static void visit(Self& self, Visitor&& visitor) {
    visitor("previous", self.previous), visitor("memory", self.memory);
  }
};

/// Throws std::invalid_argument, in the name of `operation`, unless the state has these shapes.
template <class T>
void expect_token_shift_state(std::string_view operation, Index channels, const Shape& memory,
                              const TokenShiftState<T>& state) {
  expect_shape(operation, "state.previous", {channels}, state.previous.shape());
  expect_shape(operation, "state.memory", memory, state.memory.shape());
}

/// previous[t] = x[t - 1], and for the first row of each sequence the last token that its state has seen, held in the
/// field `last` [channels] of the state. previous must not overlap x.
template <class T, class State>
void previous_tokens(const SequenceBatch<State>& batch, const Tensor<T> State::*last, ConstSequence<T> x,
                     Sequence<T> previous) {
  assert(previous.length() == x.length() && previous.channels() == x.channels() && batch.total() == x.length());
  for (Index b = 0; b < batch.size(); ++b) {
    if (batch.length(b) == 0) continue;
    const Tensor<T>& before = batch.state(b).*last;
    assert(Index(before.size()) == x.channels());
    std::copy_n(before.data(), x.channels(), previous.row(batch.begin(b)));
    for (Index t = batch.begin(b) + 1; t < batch.begin(b) + batch.length(b); ++t) {
      std::copy_n(x.row(t - 1), x.channels(), previous.row(t));
    }
  }
}

/// Keeps the last row of each sequence in the field `last` of its state; a sequence of length 0 leaves its state alone.
template <class T, class State>
void keep_last_tokens(const SequenceBatch<State>& batch, Tensor<T> State::*last, ConstSequence<T> x) {
  for (Index b = 0; b < batch.size(); ++b) {
    if (batch.length(b) == 0) continue;
    Tensor<T>& kept = batch.state(b).*last;
    assert(Index(kept.size()) == x.channels());
    std::copy_n(x.row(batch.begin(b) + batch.length(b) - 1), x.channels(), kept.data());
  }
}

/// output = x * mix + previous * (1 - mix): RWKV-4 and 5, where mix is the weight of the current token.
template <class T>
void interpolate_tokens(ConstSequence<T> x, ConstSequence<T> previous, ConstToken<T> mix, Sequence<T> output) {
  assert(x.length() == output.length() && previous.length() == output.length());
  const Batch<T> one = broadcast(T(1));
  for (Index t = 0; t < x.length(); ++t) {
    map_row(
        x.channels(), output.row(t),
        [&](const Batch<T>& current, const Batch<T>& before, const Batch<T>& m)
            SEQMIX_INLINE_LAMBDA { return fma(current, m, before * (one - m)); },
        x.row(t), previous.row(t), mix.data());
  }
}

/// output = previous - x: the difference that RWKV-6 and 7 add a part of.
template <class T>
void subtract_tokens(ConstSequence<T> previous, ConstSequence<T> x, Sequence<T> output) {
  assert(x.length() == output.length() && previous.length() == output.length());
  for (Index t = 0; t < x.length(); ++t) {
    map_row(
        x.channels(), output.row(t),
        [](const Batch<T>& before, const Batch<T>& current) SEQMIX_INLINE_LAMBDA { return before - current; },
        previous.row(t), x.row(t));
  }
}

/// output = x + difference * mix, mix [channels].
template <class T>
void add_difference(ConstSequence<T> x, ConstSequence<T> difference, ConstToken<T> mix, Sequence<T> output) {
  assert(x.length() == output.length() && difference.length() == output.length() && mix.channels() == x.channels());
  for (Index t = 0; t < x.length(); ++t) {
    map_row(
        x.channels(), output.row(t),
        [](const Batch<T>& current, const Batch<T>& d, const Batch<T>& m)
            SEQMIX_INLINE_LAMBDA { return fma(d, m, current); },
        x.row(t), difference.row(t), mix.data());
  }
}

/// output = x + difference * (mix + adjustment), mix [channels], adjustment [length, channels]: the data-dependent mix of
/// RWKV-6.
template <class T>
void add_difference(ConstSequence<T> x, ConstSequence<T> difference, ConstToken<T> mix, ConstSequence<T> adjustment,
                    Sequence<T> output) {
  assert(x.length() == output.length() && difference.length() == output.length() && mix.channels() == x.channels());
  assert(adjustment.length() == output.length() && adjustment.channels() == x.channels());
  for (Index t = 0; t < x.length(); ++t) {
    map_row(
        x.channels(), output.row(t),
        [](const Batch<T>& current, const Batch<T>& d, const Batch<T>& m, const Batch<T>& a)
            SEQMIX_INLINE_LAMBDA { return fma(d, m + a, current); },
        x.row(t), difference.row(t), mix.data(), adjustment.row(t));
  }
}

}  // namespace seqmix::inline SEQMIX_ARCH
