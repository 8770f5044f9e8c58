// Diagonal systems that do not change with time: for every channel N states of their own, real or complex.
//
//   s_t[n] = s_{t-1}[n] + A[n] s_{t-1}[n] + B[n] x_t,   y_t = Re(sum over n of C[n] s_t[n]) + skip x_t
//
// A is the decay less 1, how much of itself a state changes by in one token: a decay close to 1 has lost much of its distance
// to 1, and with it of how long it remembers, when it is rounded to float.
//
//   Glossary  L length   H channels   N states of a channel   c outputs of a channel, of the same states
//   Source    Gu et al. 2022, arXiv:2206.11893 (S4D); Ma et al. 2022, arXiv:2209.10655, section 3 (damped averages)
//
// A sequence: channels lie in SIMD lanes, and a few states of a register of channels pass over the tokens of a tile with sums
// of the outputs. Few channels, which do not fill a machine, are split over states too: groups of states make partial sums of
// their own that are added in a fixed order. All this depends on the sizes only, so results don't on the number of threads.
// A few tokens: states lie in lanes, as they do in memory. Whoever keeps one state of a pair of conjugates puts the 2 into C.
#pragma once

#include <algorithm>
#include <array>
#include <cassert>
#include <seqmix/core/error.hpp>
#include <seqmix/core/tensor.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/lanes_of_rows.hpp>
#include <string_view>
#include <vector>

namespace seqmix::inline SEQMIX_ARCH {

/// Complex numbers, or real ones: then `imag` is of size 0.
template <class T>
struct ComplexMatrix {
  Matrix<T> real, imag;
};

/// A diagonal system with its coefficients; `complex` or real.
template <std::floating_point T, bool complex>
class DiagonalSystem {
 public:
  /// No channels.
  DiagonalSystem() = default;

  /// change (A), input [H, N], output [c H, N] (outputs j H .. j H + H - 1 are the j-th of all channels), skip [c H], or of size
  /// 0: zeros. Packs them; allocates. Throws std::invalid_argument, in the name of `operation`, on shapes that do not fit.
  DiagonalSystem(std::string_view operation, const ComplexMatrix<T>& change, const ComplexMatrix<T>& input,
                 const ComplexMatrix<T>& output, const Vector<T>& skip)
      : channels_(change.real.rows()),
        states_(change.real.cols()),
        outputs_(channels_ > 0 ? output.real.rows() / channels_ : 0),
        skip_(skip) {
    const auto check = [&](std::string_view name, const ComplexMatrix<T>& matrix, Index rows) {
      expect_shape(operation, name, {rows, states_}, matrix.real);
      if (complex) expect_shape(operation, name, {rows, states_}, matrix.imag);
    };
    check("change", change, channels_), check("input", input, channels_), check("output", output, outputs_ * channels_);
    if (skip.size() > 0) expect_shape(operation, "skip", {outputs_ * channels_}, skip);
    const auto parts = [&](const ComplexMatrix<T>& matrix, Index row) {
      std::array<Matrix<T>, parts_of_number> result{Matrix<T>(matrix.real.middleRows(row, channels_))};
      if constexpr (complex) result[1] = matrix.imag.middleRows(row, channels_);
      return result;
    };
    rows_ = {parts(change, 0), parts(input, 0)};
    for (Index j = 0; j < outputs_; ++j) rows_.push_back(parts(output, j * channels_));
    // In lanes: [vector of channels][change, input, outputs][state][part][lane].
    packed_.resize(std::size_t(vectors() * pitch() * Index(rows_.size())));
    Buffer<T> plane(std::size_t(states_ * width));
    for (Index v = 0; v < vectors(); ++v) {
      for (std::size_t i = 0; i < rows_.size(); ++i) {
        for (Index part = 0; part < parts_of_number; ++part) {
          const Matrix<T>& from = rows_[i][std::size_t(part)];
          detail::LanesOfRows<T>::load_rows(from.data() + v * width * states_, states_, lanes_of(v), states_,
                                            plane.data());
          for (Index n = 0; n < states_; ++n) {
            std::copy_n(plane.data() + n * width, width, packed(v, Index(i), n) + part * width);
          }
        }
      }
    }
  }

  Index channels() const { return channels_; }
  Index outputs() const { return outputs_ * channels_; }

  /// Shape of the state: real parts [H, N], then imaginary ones if complex.
  Shape state_shape() const { return {parts_of_number, channels_, states_}; }

  /// Runs all tokens from and into `state` [1 or 2, H, N]. x [L, H], y [L, c H], not overlapping. O(c L H N) time on all
  /// threads of the workspace, allocates nothing once it is warm.
  void run(ConstSequence<T> x, HeadSequence<T> state, Sequence<T> y, Workspace& workspace) const {
    assert(x.channels() == channels() && y.channels() == outputs() && x.length() == y.length());
    assert(state.length() == parts_of_number && state.heads() == channels_ && state.head_dim() == states_);
    if (x.length() == 0 || outputs() == 0) return;
    if (x.length() < least_tile) {
      run_tokens(x, state, y, workspace);
    } else if (vectors() <= few_vectors && x.length() >= least_split && states_ > register_states) {
      run_split(x, state, y, workspace);
    } else {
      workspace.parallel_for(vectors(), [&](Index v, Workspace& local) {
        T* const lanes_state = local.take<T>(pitch()).data();
        T* const before = local.take<T>(pitch()).data();
        T* const sums = local.take<T>(block_rows * width).data();
        T* const inputs = local.take<T>(block_rows * width).data();
        load_state(state, v, lanes_state);
        for (Index begin = 0; begin < x.length(); begin += block_rows) {
          const Index rows = std::min(block_rows, x.length() - begin);
          gather(x.rows(begin, rows), v, inputs);
          if (outputs_ > 1) std::copy_n(lanes_state, pitch(), before);
          for (Index j = 0; j < outputs_; ++j) {
            if (j > 0) std::copy_n(before, pitch(), lanes_state);
            std::fill_n(sums, rows * width, T(0));
            sweep_states(v, j, inputs, rows, lanes_state, sums, 0, states_);
            for (Index t = 0; t < rows; ++t)
              finish(v, j, load(inputs + t * width), load(sums + t * width), y.row(begin + t));
          }
        }
        store_state(lanes_state, v, state);
      });
    }
  }

 private:
  static constexpr Index width = lanes<T>, parts_of_number = complex ? 2 : 1;
  static constexpr Index block_rows = 64;
  static constexpr Index register_states = complex ? 3 : 4;  // that pass over a tile together
  static constexpr Index least_tile = 4;                     // tokens for which it pays to transpose the state
  static constexpr Index few_vectors = 2, least_split = 256, split_rows = 1024;

  Index vectors() const { return (channels_ + width - 1) / width; }
  Index lanes_of(Index v) const { return std::min(width, channels_ - v * width); }
  Index pitch() const { return states_ * parts_of_number * width; }
  T* packed(Index v, Index which, Index n) {
    return packed_.data() + (v * Index(rows_.size()) + which) * pitch() + n * parts_of_number * width;
  }
  const T* packed(Index v, Index which, Index n) const {
    return packed_.data() + (v * Index(rows_.size()) + which) * pitch() + n * parts_of_number * width;
  }

  /// The state of a register of channels, [state][part][lane] in lanes.
  void load_state(HeadSequence<T> state, Index v, T* to) const {
    for (Index part = 0; part < parts_of_number; ++part) {
      for (Index i = 0; i < width; ++i) {
        for (Index n = 0; n < states_; ++n) {
          to[(n * parts_of_number + part) * width + i] = i < lanes_of(v) ? state(part, v * width + i, n) : T(0);
        }
      }
    }
  }
  void store_state(const T* from, Index v, HeadSequence<T> state) const {
    for (Index part = 0; part < parts_of_number; ++part) {
      for (Index i = 0; i < lanes_of(v); ++i) {
        for (Index n = 0; n < states_; ++n) {
          state(part, v * width + i, n) = from[(n * parts_of_number + part) * width + i];
        }
      }
    }
  }

  void gather(ConstSequence<T> x, Index v, T* to) const {
    for (Index t = 0; t < x.length(); ++t) {
      const T* from = x.row(t) + v * width;
      store(to + t * width, lanes_of(v) == width ? load(from) : load_partial(from, lanes_of(v)));
    }
  }

  /// S states over `rows` tokens; sums += Re(C s).
  template <Index S>
  SEQMIX_ALWAYS_INLINE static void sweep(const T* change, const T* input, const T* output, const T* x, Index rows,
                                         T* state, T* sums) {
    constexpr Index P = parts_of_number;
    Batch<T> h[S][P];
    unroll<S>([&](auto n) SEQMIX_INLINE_LAMBDA {
      unroll<P>([&](auto part) SEQMIX_INLINE_LAMBDA { h[n][part] = load(state + (n * P + part) * width); });
    });
    for (Index t = 0; t < rows; ++t) {
      const Batch<T> u = load(x + t * width);
      Batch<T> y = load(sums + t * width);
      unroll<S>([&](auto n) SEQMIX_INLINE_LAMBDA {
        constexpr Index at = n * P * width;
        advance(h[n], load(change + at), complex ? load(change + at + (P - 1) * width) : u, load(input + at),
                complex ? load(input + at + (P - 1) * width) : u, u);
        y = fma(h[n][0], load(output + at), y);
        if constexpr (complex) y = fnma(h[n][1], load(output + at + width), y);
      });
      store(sums + t * width, y);
    }
    unroll<S>([&](auto n) SEQMIX_INLINE_LAMBDA {
      unroll<P>([&](auto part) SEQMIX_INLINE_LAMBDA { store(state + (n * P + part) * width, h[n][part]); });
    });
  }

  /// h += a h + b x; imaginary parts are not looked at if real.
  SEQMIX_ALWAYS_INLINE static void advance(Batch<T> (&h)[parts_of_number], const Batch<T>& a_real,
                                           const Batch<T>& a_imag, const Batch<T>& b_real, const Batch<T>& b_imag,
                                           const Batch<T>& x) {
    if constexpr (complex) {
      const Batch<T> real = fnma(a_imag, h[1], fma(b_real, x, h[0])), imag = fma(a_imag, h[0], fma(b_imag, x, h[1]));
      h[0] = fma(a_real, h[0], real);
      h[1] = fma(a_real, h[1], imag);
    } else {
      h[0] = fma(a_real, h[0], fma(b_real, x, h[0]));
    }
  }

  void sweep_states(Index v, Index j, const T* x, Index rows, T* state, T* sums, Index first, Index last) const {
    const auto some = [&](auto count, Index n) SEQMIX_INLINE_LAMBDA {
      sweep<count>(packed(v, 0, n), packed(v, 1, n), packed(v, 2 + j, n), x, rows, state + n * parts_of_number * width,
                   sums);
    };
    Index n = first;
    for (; n + register_states <= last; n += register_states) {
      some(std::integral_constant<Index, register_states>{}, n);
    }
    for (; n < last; ++n) some(std::integral_constant<Index, 1>{}, n);
  }

  /// Adds what skips the states and writes output j of a register of channels.
  SEQMIX_ALWAYS_INLINE void finish(Index v, Index j, const Batch<T>& x, Batch<T> sum, T* row) const {
    const Index at = j * channels_ + v * width, count = lanes_of(v);
    if (count == width) {
      if (skip_.size() > 0) sum = fma(load(skip_.data() + at), x, sum);
      store(row + at, sum);
    } else {
      if (skip_.size() > 0) sum = fma(load_partial(skip_.data() + at, count), x, sum);
      store_partial(row + at, sum, count);
    }
  }

  /// Few channels: pieces of work are groups of states.
  void run_split(ConstSequence<T> x, HeadSequence<T> state, Sequence<T> y, Workspace& workspace) const {
    const auto frame = workspace.frame();
    const Index parts = (states_ + register_states - 1) / register_states, tile = split_rows * width;
    T* const lanes_state = workspace.take<T>(vectors() * pitch()).data();
    T* const before = workspace.take<T>(vectors() * pitch()).data();
    T* const inputs = workspace.take<T>(vectors() * tile).data();
    T* const sums = workspace.take<T>(vectors() * parts * tile).data();
    for (Index v = 0; v < vectors(); ++v) load_state(state, v, lanes_state + v * pitch());
    for (Index begin = 0; begin < x.length(); begin += split_rows) {
      const Index rows = std::min(split_rows, x.length() - begin);
      for (Index v = 0; v < vectors(); ++v) gather(x.rows(begin, rows), v, inputs + v * tile);
      std::copy_n(lanes_state, vectors() * pitch(), before);
      for (Index j = 0; j < outputs_; ++j) {
        if (j > 0) std::copy_n(before, vectors() * pitch(), lanes_state);
        workspace.parallel_for(vectors() * parts, [&](Index piece, Workspace&) {
          const Index v = piece / parts, n = piece % parts * register_states;
          std::fill_n(sums + piece * tile, rows * width, T(0));
          sweep_states(v, j, inputs + v * tile, rows, lanes_state + v * pitch(), sums + piece * tile, n,
                       std::min(n + register_states, states_));
        });
        workspace.for_row_blocks(rows, [&](Index first, Index count) {
          for (Index v = 0; v < vectors(); ++v) {
            for (Index t = first; t < first + count; ++t) {
              Batch<T> sum = broadcast(T(0));
              for (Index part = 0; part < parts; ++part) sum = sum + load(sums + (v * parts + part) * tile + t * width);
              finish(v, j, load(inputs + v * tile + t * width), sum, y.row(begin + t));
            }
          }
        });
      }
    }
    for (Index v = 0; v < vectors(); ++v) store_state(lanes_state + v * pitch(), v, state);
  }

  /// Few tokens: states in lanes.
  void run_tokens(ConstSequence<T> x, HeadSequence<T> state, Sequence<T> y, Workspace& workspace) const {
    constexpr Index block = 128, P = parts_of_number;
    workspace.parallel_for((channels_ + block - 1) / block, [&](Index index, Workspace&) {
      for (Index t = 0; t < x.length(); ++t) {
        for (Index h = index * block; h < std::min((index + 1) * block, channels_); ++h) {
          for (Index j = 0; j < outputs_; ++j) {
            const Index at = j * channels_ + h;
            y.row(t)[at] = skip_.size() > 0 ? skip_[at] * x(t, h) : T(0);
          }
          const Batch<T> u = broadcast(x(t, h));
          for (Index n = 0; n < states_; n += width) {
            const Index some = std::min(width, states_ - n);
            const auto part_of = [&](const T* from) SEQMIX_INLINE_LAMBDA -> Batch<T> {
              return some == width ? load(from) : load_partial(from, some);
            };
            const auto coefficient = [&](std::size_t which, Index part) SEQMIX_INLINE_LAMBDA -> Batch<T> {
              return part_of(rows_[which][std::size_t(part)].data() + h * states_ + n);
            };
            Batch<T> s[P];
            unroll<P>([&](auto part) SEQMIX_INLINE_LAMBDA { s[part] = part_of(state.row(part, h) + n); });
            advance(s, coefficient(0, 0), coefficient(0, P - 1), coefficient(1, 0), coefficient(1, P - 1), u);
            unroll<P>([&](auto part) SEQMIX_INLINE_LAMBDA {
              if (some == width) {
                store(state.row(part, h) + n, s[part]);
              } else {
                store_partial(state.row(part, h) + n, s[part], some);
              }
            });
            for (Index j = 0; j < outputs_; ++j) {
              Batch<T> sum = s[0] * coefficient(std::size_t(2 + j), 0);
              if constexpr (complex) sum = fnma(s[1], coefficient(std::size_t(2 + j), 1), sum);
              y.row(t)[j * channels_ + h] += reduce_add(sum);
            }
          }
        }
      }
    });
  }

  Index channels_ = 0, states_ = 0, outputs_ = 0;
  Vector<T> skip_;
  std::vector<std::array<Matrix<T>, std::size_t(parts_of_number)>> rows_;  // change, input, outputs, as they were given
  Buffer<T> packed_;
};

}  // namespace seqmix::inline SEQMIX_ARCH
