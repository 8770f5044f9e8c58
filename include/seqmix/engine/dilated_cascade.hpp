// Cascades of dilated convolutions, every channel by itself: a pair of short filters splits a stream into a low and a high half,
// and the low half again, with twice the dilation.
//
//   lo_0 = x,   hi_i,t = sum over j < K of h1[K-1-j] lo_{i, t - j 2^i},   lo_{i+1},t = the same with h0,   i < N
//   y_t = w[0] lo_{N,t} + sum over i, r < n_i of w[o_i + r] hi_{i, t - r 2^(i+1)} + w[last] x_t
//
//   Glossary  L length   D channels   K taps   N levels   n_i reads of level i, from weight o_i on
//   Source    Shi et al. 2023, arXiv:2305.01638
//
// All levels of a token are computed while it is in registers: what is far back comes from rings of K - 1 by 2^i low numbers, and
// n_i - 1 by 2^(i+1) high ones. So there is one order for a sequence and for a token, with the same bits, and no row sees a later
// one.
#pragma once

#include <algorithm>
#include <cassert>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/error.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/simd/batch.hpp>
#include <span>
#include <vector>

namespace seqmix::inline SEQMIX_ARCH {

/// What a cascade reads of a level.
struct CascadeLevel {
  Index reads = 0;   ///< n_i; may be 0
  Index weight = 0;  ///< o_i
};

/// A cascade with its filters.
template <std::floating_point T>
class DilatedCascade {
 public:
  /// No channels.
  DilatedCascade() = default;

  /// h0, h1 [D, K], w [D, any number]; one entry of `levels` for each. Packs them; allocates.
  DilatedCascade(const Matrix<T>& h0, const Matrix<T>& h1, const Matrix<T>& w, std::span<const CascadeLevel> levels)
      : channels_(h0.rows()), taps_(h0.cols()), weights_(w.cols()), levels_(levels.begin(), levels.end()) {
    assert(h1.rows() == channels_ && h1.cols() == taps_ && w.rows() == channels_);
    Index dilation = 1;
    for (const CascadeLevel& level : levels_) {
      const auto ring = [&](Index rows) {
        rings_.push_back({rows_, rows});
        rows_ += rows;
      };
      ring((taps_ - 1) * dilation);
      ring(std::max(level.reads - 1, Index(0)) * 2 * dilation);
      dilation *= 2;
    }
    packed_.resize(std::size_t(blocks() * numbers() * line));
    for (Index c = 0; c < channels_; ++c) {
      T* const to = packed_.data() + c / line * numbers() * line + c % line;
      for (Index j = 0; j < taps_; ++j) {  // by lag
        to[2 * j * line] = h0(c, taps_ - 1 - j), to[(2 * j + 1) * line] = h1(c, taps_ - 1 - j);
      }
      for (Index i = 0; i < weights_; ++i) to[(2 * taps_ + i) * line] = w(c, i);
    }
  }

  Index channels() const { return channels_; }

  /// Shape of the state: rings of rows for cache lines of channels. Zeros before the first token.
  Shape state_shape() const { return {blocks(), rows_, line}; }

  /// Runs the tokens x [L, D] into y [L, D], not overlapping, from and into `state`, which has seen `position` tokens.
  /// O(L D (K N + reads)) time on all threads of the workspace; allocates nothing once it is warm.
  void run(T* state, Index position, ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    assert(x.channels() == channels_ && y.channels() == channels_ && x.length() == y.length());
    if (x.length() == 0) return;
    workspace.parallel_for(blocks(), [&](Index block, Workspace& local) {
      const auto slots = local.take<Index>(Index(rings_.size()));
      for (std::size_t i = 0; i < rings_.size(); ++i) slots[i] = rings_[i].rows > 0 ? position % rings_[i].rows : 0;
      T* const rings = state + block * rows_ * line;
      const Index begin = block * line, count = std::min(line, channels_ - begin);
      if (count == line) {
        for (Index t = 0; t < x.length(); ++t) step(block, rings, slots, x.row(t) + begin, y.row(t) + begin);
        return;
      }
      alignas(memory_alignment) T from[line] = {}, to[line];
      for (Index t = 0; t < x.length(); ++t) {
        std::copy_n(x.row(t) + begin, count, from);
        step(block, rings, slots, from, to);
        std::copy_n(to, count, y.row(t) + begin);
      }
    });
  }

 private:
  static constexpr Index line = Index(memory_alignment / sizeof(T)), width = lanes<T>, vectors = line / width;

  struct Ring {
    Index begin, rows;
  };
  struct Vectors {
    Batch<T> of[vectors];
  };

  Index blocks() const { return (channels_ + line - 1) / line; }
  Index numbers() const { return 2 * taps_ + weights_; }

  static SEQMIX_ALWAYS_INLINE Vectors load_line(const T* from) {
    Vectors result;
    unroll<vectors>([&](auto v) SEQMIX_INLINE_LAMBDA { result.of[v] = load(from + v * width); });
    return result;
  }
  static SEQMIX_ALWAYS_INLINE void store_line(const Vectors& numbers, T* to) {
    unroll<vectors>([&](auto v) SEQMIX_INLINE_LAMBDA { store(to + v * width, numbers.of[v]); });
  }
  /// sum += factor * number.
  static SEQMIX_ALWAYS_INLINE void add(Vectors& sum, const T* factor, const Vectors& number) {
    unroll<vectors>([&](auto v)
                        SEQMIX_INLINE_LAMBDA { sum.of[v] = fma(load(factor + v * width), number.of[v], sum.of[v]); });
  }
  static SEQMIX_ALWAYS_INLINE Vectors product(const T* factor, const Vectors& number) {
    Vectors result;
    unroll<vectors>([&](auto v) SEQMIX_INLINE_LAMBDA { result.of[v] = load(factor + v * width) * number.of[v]; });
    return result;
  }

  /// Calls body(j, numbers) for what lies j spacings back, j = 1 .. rows / spacing, puts `number` into the ring and moves on.
  template <class Body>
  static SEQMIX_ALWAYS_INLINE void pass_ring(T* rings, const Ring& ring, Index& slot, Index spacing,
                                             const Vectors& number, const Body& body) {
    if (ring.rows == 0) return;
    T* const rows = rings + ring.begin * line;
    Index at = slot;
    for (Index j = 1; j * spacing <= ring.rows; ++j) {
      at -= spacing;
      if (at < 0) at += ring.rows;
      body(j, load_line(rows + at * line));
    }
    store_line(number, rows + slot * line);
    if (++slot == ring.rows) slot = 0;
  }

  void step(Index block, T* rings, std::span<Index> slots, const T* x, T* y) const {
    const T* const taps = packed_.data() + block * numbers() * line;
    const T* const weights = taps + 2 * taps_ * line;
    Vectors low = load_line(x), sum = product(weights + (weights_ - 1) * line, low);
    Index dilation = 1;
    for (std::size_t i = 0; i < levels_.size(); ++i, dilation *= 2) {
      Vectors next = product(taps, low), high = product(taps + line, low);
      pass_ring(rings, rings_[2 * i], slots[2 * i], dilation, low,
                [&](Index j, const Vectors& past) SEQMIX_INLINE_LAMBDA {
                  add(next, taps + 2 * j * line, past);
                  add(high, taps + (2 * j + 1) * line, past);
                });
      if (levels_[i].reads > 0) {
        const T* const weight = weights + levels_[i].weight * line;
        add(sum, weight, high);
        pass_ring(rings, rings_[2 * i + 1], slots[2 * i + 1], 2 * dilation, high,
                  [&](Index j, const Vectors& past) SEQMIX_INLINE_LAMBDA { add(sum, weight + j * line, past); });
      }
      low = next;
    }
    add(sum, weights, low);
    store_line(sum, y);
  }

  Index channels_ = 0, taps_ = 0, weights_ = 0, rows_ = 0;
  std::vector<CascadeLevel> levels_;
  std::vector<Ring> rings_;  // of every level: low numbers, high numbers
  Buffer<T> packed_;         // [line of channels][h0, h1 of every lag; w][channel]
};

}  // namespace seqmix::inline SEQMIX_ARCH
