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
// of the outputs. Few channels, which do not fill a machine, are split over states too (engine/pipeline.hpp). A few tokens:
// states lie in lanes, as they do in memory. Whoever keeps one state of a pair of conjugates puts the 2 into C.
#pragma once

#include <algorithm>
#include <array>
#include <cassert>
#include <seqmix/core/error.hpp>
#include <seqmix/core/tensor.hpp>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/lanes_of_rows.hpp>
#include <seqmix/engine/pipeline.hpp>
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
  /// threads of the workspace, scratch O(H (N + c)) with a factor of some hundreds where few channels are cut into stages;
  /// allocates nothing once the workspace is warm.
  void run(ConstSequence<T> x, HeadSequence<T> state, Sequence<T> y, Workspace& workspace) const {
    assert(x.channels() == channels() && y.channels() == outputs() && x.length() == y.length());
    assert(state.length() == parts_of_number && state.heads() == channels_ && state.head_dim() == states_);
    if (x.length() == 0 || outputs() == 0) return;
    if (x.length() < least_tile) {
      run_tokens(x, state, y, workspace);
    } else {
      run_sequence(x, state, y, workspace);
    }
  }

 private:
  static constexpr Index width = lanes<T>, parts_of_number = complex ? 2 : 1;
  static constexpr Index block_rows = 64;  // whose sums fit into the first-level cache
  // That pass over a block together: as many as keep a processor busy while each waits for itself, and fit into 16 registers.
  static constexpr Index register_states = complex ? 4 : 8;
  static constexpr Index stage_states = 4;   // for which it pays to go over a tile once more
  static constexpr Index least_tile = 4;     // tokens for which it pays to transpose the state
  static constexpr Index least_piped = 256;  // tokens for which it pays to cut them into tiles

  Index vectors() const { return (channels_ + width - 1) / width; }
  Index lanes_of(Index v) const { return std::min(width, channels_ - v * width); }
  Index pitch() const { return states_ * parts_of_number * width; }
  T* packed(Index v, Index which, Index n) {
    return packed_.data() + (v * Index(rows_.size()) + which) * pitch() + n * parts_of_number * width;
  }
  const T* packed(Index v, Index which, Index n) const {
    return packed_.data() + (v * Index(rows_.size()) + which) * pitch() + n * parts_of_number * width;
  }

  /// States first .. last - 1 of a register of channels, [state][part][lane] in lanes.
  void load_state(HeadSequence<T> state, Index v, Index first, Index last, T* to) const {
    for (Index part = 0; part < parts_of_number; ++part) {
      for (Index i = 0; i < width; ++i) {
        for (Index n = first; n < last; ++n) {
          to[(n * parts_of_number + part) * width + i] = i < lanes_of(v) ? state(part, v * width + i, n) : T(0);
        }
      }
    }
  }
  void store_state(const T* from, Index v, Index first, Index last, HeadSequence<T> state) const {
    for (Index part = 0; part < parts_of_number; ++part) {
      for (Index i = 0; i < lanes_of(v); ++i) {
        for (Index n = first; n < last; ++n) {
          state(part, v * width + i, n) = from[(n * parts_of_number + part) * width + i];
        }
      }
    }
  }

  void gather(ConstSequence<T> x, Index v, T* to) const {
    for (Index t = 0; t < x.length(); ++t) {
      const T* from = x.row(t) + v * width;
      store(to + t * width, detail::load_some(from, lanes_of(v)));
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
    for (Index n = first; n < last;) {
      const Index rest = last - n, passes = (rest + register_states - 1) / register_states;
      const Index together = (rest + passes - 1) / passes;
      unroll<register_states>([&](auto i) SEQMIX_INLINE_LAMBDA {
        if (together == i + 1) some(std::integral_constant<Index, i + 1>{}, n);
      });
      n += together;
    }
  }

  /// Adds what skips the states and writes output j of a register of channels.
  SEQMIX_ALWAYS_INLINE void finish(Index v, Index j, const Batch<T>& x, Batch<T> sum, T* row) const {
    const Index at = j * channels_ + v * width, count = lanes_of(v);
    if (skip_.size() > 0) sum = fma(detail::load_some(skip_.data() + at, count), x, sum);
    detail::store_some(row + at, sum, count);
  }

  /// Registers of channels side by side; some states of them in stages, where there are more workers than these.
  void run_sequence(ConstSequence<T> x, HeadSequence<T> state, Sequence<T> y, Workspace& workspace) const {
    const auto frame = workspace.frame();
    const Index length = x.length(), most_stages = length < least_piped ? 1 : states_ / stage_states;
    const Index stages = pipeline_stages(vectors(), most_stages, workspace.concurrency());
    // Blocks passed on at a time, and their sums [vector][stage that has them][block][output][token][lane].
    const Index blocks = (length + block_rows - 1) / block_rows, sums_of_block = outputs_ * block_rows * width;
    const Index blocks_passed = stages > 1 ? std::clamp<Index>(blocks / 32, 1, 16) : blocks;
    T* const passed = workspace.take<T>(stages > 1 ? vectors() * stages * blocks_passed * sums_of_block : 0).data();
    T* const lanes_state = workspace.take<T>(vectors() * pitch()).data();
    const auto piece = [&](Index v, Index stage, Index index, Workspace& local) {
      const Index first = states_ * stage / stages, last = states_ * (stage + 1) / stages;
      const Index numbers = (last - first) * parts_of_number * width;
      T* const all = lanes_state + v * pitch();
      T* const own = all + first * parts_of_number * width;
      T* const before = local.take<T>(numbers).data();
      T* const inputs = local.take<T>(block_rows * width).data();
      T* const alone = local.take<T>(stages > 1 ? 0 : sums_of_block).data();
      if (index == 0) load_state(state, v, first, last, all);
      const Index first_block = index * blocks_passed, end_block = std::min(first_block + blocks_passed, blocks);
      for (Index block = first_block; block < end_block; ++block) {
        const Index begin = block * block_rows, rows = std::min(block_rows, length - begin);
        const Index place = (v * stages + index % stages) * blocks_passed + block - first_block;
        T* const sums = stages > 1 ? passed + place * sums_of_block : alone;
        gather(x.rows(begin, rows), v, inputs);
        if (stage == 0) std::fill_n(sums, sums_of_block, T(0));
        if (outputs_ > 1) std::copy_n(own, numbers, before);
        for (Index j = 0; j < outputs_; ++j) {
          T* const sum = sums + j * block_rows * width;
          if (j > 0) std::copy_n(before, numbers, own);
          sweep_states(v, j, inputs, rows, all, sum, first, last);
          if (stage + 1 < stages) continue;
          for (Index t = 0; t < rows; ++t) {
            finish(v, j, load(inputs + t * width), load(sum + t * width), y.row(begin + t));
          }
        }
      }
      if (end_block == blocks) store_state(all, v, first, last, state);
    };
    run_pipeline(vectors(), stages, (blocks + blocks_passed - 1) / blocks_passed, workspace, piece);
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
            const auto part_of = [&](const T* from)
                                     SEQMIX_INLINE_LAMBDA -> Batch<T> { return detail::load_some(from, some); };
            const auto coefficient = [&](std::size_t which, Index part) SEQMIX_INLINE_LAMBDA -> Batch<T> {
              return part_of(rows_[which][std::size_t(part)].data() + h * states_ + n);
            };
            Batch<T> s[P];
            unroll<P>([&](auto part) SEQMIX_INLINE_LAMBDA { s[part] = part_of(state.row(part, h) + n); });
            advance(s, coefficient(0, 0), coefficient(0, P - 1), coefficient(1, 0), coefficient(1, P - 1), u);
            unroll<P>([&](auto part)
                          SEQMIX_INLINE_LAMBDA { detail::store_some(state.row(part, h) + n, s[part], some); });
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
