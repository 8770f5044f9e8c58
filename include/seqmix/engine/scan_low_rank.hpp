// Diagonal systems plus a part of low rank that do not change with time: for every channel
//
//   s_t = decay s_{t-1} - sum over r of write_r g_r + input x_t,   g_r = Re(read_r . s_{t-1}) + through_r x_t
//   y_t = Re(output . s_t) + skip x_t
//
// with a dot product over the M complex states of the channel: O(R M) for a token where the matrix would take M^2.
//
//   Glossary  L length   H channels   M states of a channel   R rank   c outputs of a channel, of the same states
//   Source    Gu, Goel, Re 2022, arXiv:2111.00396, appendix C (S4); state-spaces/s4, models/s4/s4.py, _step_linear
//
// Channels lie in SIMD lanes; the g of the next token are summed while the states of this one are made, so that a token passes
// once over the states. Whoever keeps one state of a pair of conjugates puts the 2 into what is read.
#pragma once

#include <algorithm>
#include <cassert>
#include <complex>
#include <seqmix/core/buffer.hpp>
#include <seqmix/core/error.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/simd/batch.hpp>
#include <vector>

namespace seqmix::inline SEQMIX_ARCH {

/// The coefficients of a diagonal system with a part of low rank.
struct LowRankCoefficients {
  using Numbers = Eigen::Array<std::complex<double>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Reals = Eigen::Array<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

  Numbers decay, input;              // [H, M]
  std::vector<Numbers> write, read;  // R times [H, M]
  Reals through;                     // [R, H]
  Numbers output;                    // [c H, M]: rows j H .. j H + H - 1 are the j-th outputs of all channels
  Reals skip;                        // [c H, 1], or empty: zeros
};

/// The system, packed for numbers of type T.
template <std::floating_point T>
class LowRankSystem {
 public:
  /// No channels.
  LowRankSystem() = default;

  /// Packs the coefficients, whose shapes are asserted. Allocates.
  explicit LowRankSystem(const LowRankCoefficients& of)
      : channels_(of.decay.rows()),
        states_(of.decay.cols()),
        rank_(Index(of.write.size())),
        outputs_(channels_ > 0 ? of.output.rows() / channels_ : 0) {
    assert(of.input.rows() == channels_ && of.through.rows() == rank_ && Index(of.read.size()) == rank_);
    packed_.resize(std::size_t(vectors() * states_ * numbers() * 2 * width));
    rows_.resize(std::size_t(vectors() * (rank_ + outputs_) * width));
    for (Index h = 0; h < channels_; ++h) {
      const Index v = h / width, lane = h % width;
      for (Index n = 0; n < states_; ++n) {
        T* to = packed(v, n) + lane;
        const auto put = [&](const std::complex<double>& number) {
          to[0] = T(number.real()), to[width] = T(number.imag()), to += 2 * width;
        };
        put(of.decay(h, n)), put(of.input(h, n));
        for (Index r = 0; r < rank_; ++r) put(of.write[std::size_t(r)](h, n)), put(of.read[std::size_t(r)](h, n));
        for (Index j = 0; j < outputs_; ++j) put(of.output(j * channels_ + h, n));
      }
      for (Index r = 0; r < rank_; ++r) row(v, r)[lane] = T(of.through(r, h));
      for (Index j = 0; j < outputs_; ++j) {
        row(v, rank_ + j)[lane] = of.skip.size() > 0 ? T(of.skip(j * channels_ + h, 0)) : T(0);
      }
    }
  }

  Index channels() const { return channels_; }
  Index outputs() const { return outputs_ * channels_; }

  /// Shape of the state: real parts [H, M], then imaginary ones.
  Shape state_shape() const { return {2, channels_, states_}; }

  /// Runs all tokens from and into `state` [2, H, M]. x [L, H], y [L, c H], not overlapping. O(L H M (R + c)) time on all
  /// threads of the workspace, allocates nothing once it is warm.
  void run(ConstSequence<T> x, HeadSequence<T> state, Sequence<T> y, Workspace& workspace) const {
    assert(x.channels() == channels() && y.channels() == outputs() && x.length() == y.length());
    assert(state.length() == 2 && state.heads() == channels_ && state.head_dim() == states_);
    if (x.length() == 0) return;
    workspace.parallel_for(vectors(), [&](Index v, Workspace& local) {
      T* const lanes_state = local.take<T>(2 * states_ * width).data();
      T* const next = local.take<T>((2 * rank_ + outputs_) * width).data();  // g of the next token, y and g of this one
      const Index count = std::min(width, channels_ - v * width);
      for (Index n = 0; n < states_; ++n) {
        for (Index part = 0; part < 2; ++part) {
          for (Index i = 0; i < width; ++i) {
            lanes_state[(2 * n + part) * width + i] = i < count ? state(part, v * width + i, n) : T(0);
          }
        }
      }
      switch (rank_) {
        case 1:
          sweep<1>(x, v, count, lanes_state, next, y);
          break;
        case 2:
          sweep<2>(x, v, count, lanes_state, next, y);
          break;
        default:
          sweep<0>(x, v, count, lanes_state, next, y);
      }
      for (Index n = 0; n < states_; ++n) {
        for (Index part = 0; part < 2; ++part) {
          for (Index i = 0; i < count; ++i) state(part, v * width + i, n) = lanes_state[(2 * n + part) * width + i];
        }
      }
    });
  }

 private:
  static constexpr Index width = lanes<T>;

  Index vectors() const { return (channels_ + width - 1) / width; }
  Index numbers() const { return 2 + 2 * rank_ + outputs_; }  // complex ones of a state
  T* packed(Index v, Index n) { return packed_.data() + (v * states_ + n) * numbers() * 2 * width; }
  const T* packed(Index v, Index n) const { return packed_.data() + (v * states_ + n) * numbers() * 2 * width; }
  T* row(Index v, Index i) { return rows_.data() + (v * (rank_ + outputs_) + i) * width; }
  const T* row(Index v, Index i) const { return rows_.data() + (v * (rank_ + outputs_) + i) * width; }

  /// sum += Re(a b), a at `from` and `from` + width.
  SEQMIX_ALWAYS_INLINE static Batch<T> add_real(const T* from, const Batch<T>& real, const Batch<T>& imag,
                                                const Batch<T>& sum) {
    return fma(load(from), real, fnma(load(from + width), imag, sum));
  }

  /// A register of channels. Rank > 0 is the rank; 0 stands for any.
  template <Index Rank>
  SEQMIX_ALWAYS_INLINE void sweep(ConstSequence<T> x, Index v, Index count, T* state, T* next, Sequence<T> y) const {
    const Index rank = Rank > 0 ? Rank : rank_;
    T* const sums = next + rank * width;
    std::fill_n(next, rank * width, T(0));
    for (Index n = 0; n < states_; ++n) {
      const Batch<T> real = load(state + 2 * n * width), imag = load(state + (2 * n + 1) * width);
      for (Index r = 0; r < rank; ++r) {
        store(next + r * width, add_real(packed(v, n) + (6 + 4 * r) * width, real, imag, load(next + r * width)));
      }
    }
    Batch<T> g[Rank > 0 ? Rank : 1], following[Rank > 0 ? Rank : 1];
    [[maybe_unused]] T* const any = sums + outputs_ * width;  // g, of a rank without registers of its own
    for (Index t = 0; t < x.length(); ++t) {
      const T* from = x.row(t) + v * width;
      const Batch<T> u = detail::load_some(from, count);
      for (Index r = 0; r < rank; ++r) {
        const Batch<T> now = fma(load(row(v, r)), u, load(next + r * width));
        if constexpr (Rank > 0) g[r] = now, following[r] = broadcast(T(0));
        if constexpr (Rank == 0) store(any + r * width, now), store(next + r * width, broadcast(T(0)));
      }
      for (Index j = 0; j < outputs_; ++j) store(sums + j * width, load(row(v, rank + j)) * u);
      Batch<T> first = load(sums);
      for (Index n = 0; n < states_; ++n) {
        const T* c = packed(v, n);
        T* const s = state + 2 * n * width;
        const Batch<T> before = load(s), before_imag = load(s + width);
        Batch<T> real = fma(load(c), before, fnma(load(c + width), before_imag, load(c + 2 * width) * u));
        Batch<T> imag = fma(load(c), before_imag, fma(load(c + width), before, load(c + 3 * width) * u));
        for (Index r = 0; r < rank; ++r) {
          Batch<T> now;
          if constexpr (Rank > 0) now = g[r];
          if constexpr (Rank == 0) now = load(any + r * width);
          real = fnma(load(c + (4 + 4 * r) * width), now, real);
          imag = fnma(load(c + (5 + 4 * r) * width), now, imag);
        }
        store(s, real), store(s + width, imag);
        for (Index r = 0; r < rank; ++r) {
          const T* const read = c + (6 + 4 * r) * width;
          if constexpr (Rank > 0) following[r] = add_real(read, real, imag, following[r]);
          if constexpr (Rank == 0) store(next + r * width, add_real(read, real, imag, load(next + r * width)));
        }
        const T* const output = c + (4 + 4 * rank) * width;
        first = add_real(output, real, imag, first);
        for (Index j = 1; j < outputs_; ++j) {
          store(sums + j * width, add_real(output + 2 * j * width, real, imag, load(sums + j * width)));
        }
      }
      store(sums, first);
      if constexpr (Rank > 0) {
        for (Index r = 0; r < Rank; ++r) store(next + r * width, following[r]);
      }
      for (Index j = 0; j < outputs_; ++j) {
        detail::store_some(y.row(t) + j * channels_ + v * width, load(sums + j * width), count);
      }
    }
  }

  Index channels_ = 0, states_ = 0, rank_ = 0, outputs_ = 0;
  Buffer<T> packed_;  // [vector of channels][state][decay, input, (write, read) of all ranks, outputs][part][lane]
  Buffer<T> rows_;    // [vector of channels][through of all ranks, skip of all outputs][lane]
};

}  // namespace seqmix::inline SEQMIX_ARCH
