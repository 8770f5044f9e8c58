// The selective scan: for every channel a diagonal system of N states whose decays, inputs and outputs vary with the token.
//
//   d = delta_t + delta_bias, through softplus where asked for
//   s_t[n] = exp(d A[n]) s_{t-1}[n] + d B_t[n] u_t,   y_t = (sum over n of C_t[n] s_t[n] + skip u_t) * silu(z_t)
//
// Where d is 0, a token takes no time, and finite states stay what they are, whether A is finite or -infinity.
//
//   Glossary  L length   D channels   N states of a channel   G groups of channels that share B and C
//   Source    Gu and Dao 2023, arXiv:2312.00752, section 3; state-spaces/mamba, selective_scan_interface.py
//
// A sequence: channels lie in SIMD lanes. For a tile of some channels by some tokens d, d u and skip u are made once; then a few
// states at a time stay in registers and pass over the tile's tokens, where exp(d A) is made, used and forgotten; last comes
// the gate. Few channels, which do not fill a machine, are split over states too (engine/pipeline.hpp). A few tokens: states lie
// in lanes, as they do in memory.
#pragma once

#include <algorithm>
#include <cassert>
#include <limits>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/lanes_of_rows.hpp>
#include <seqmix/engine/pipeline.hpp>
#include <seqmix/simd/math.hpp>
#include <seqmix/simd/math_exp_each.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// Everything that one evaluation reads and writes. The output may be the input, delta or gate, but not overlap them
/// otherwise.
template <class T>
struct SelectiveScanProblem {
  Sequence<const T> input;            // u [L, D]
  Sequence<const T> delta;            // [L, D]
  Sequence<const T> decay;            // A [D, N], as a rule negative
  HeadSequence<const T> write, read;  // B, C [L, G, N]; G divides D, consecutive channels share a group
  Token<const T> skip, delta_bias;    // [D], or of no channels: zeros
  Sequence<const T> gate;             // z [L, D], or of no channels: no gate
  bool softplus;
  Sequence<T> state;   // [D, N]
  Sequence<T> output;  // [L, D]
};

namespace detail {

template <class T>
class SelectiveScan {
 public:
  explicit SelectiveScan(const SelectiveScanProblem<T>& problem)
      : problem_(problem),
        length_(problem.output.length()),
        channels_(problem.output.channels()),
        states_(problem.state.channels()),
        group_channels_(problem.output.channels() / problem.write.heads()),
        group_blocks_((group_channels_ + block_channels - 1) / block_channels),
        blocks_(group_blocks_ * problem.write.heads()) {}

  void run(Workspace& workspace) const {
    if (length_ < least_tile) return run_tokens(workspace);
    const Index most_stages =
        length_ < least_piped ? 1 : (states_ + before_states() + after_states()) / register_states;
    const Index stages = pipeline_stages(blocks_, most_stages, workspace.concurrency());
    if (stages > 1) {
      run_stages(stages, workspace);
    } else {
      run_blocks(workspace);
    }
  }

 private:
  static constexpr Index width = lanes<T>;
  static constexpr Index block_channels = std::max<Index>(64, width), block_vectors = block_channels / width;
  static constexpr Index block_rows = 32;      // of a tile; d, d u and y of one tile fit into the first-level cache
  static constexpr Index register_states = 4;  // that pass over a tile together
  static constexpr Index least_tile = 4;       // tokens for which it pays to transpose the state
  static constexpr Index least_piped = 256;    // tokens for which it pays to pass tiles on

  /// d is kept times log2(e), for exp2.
  static constexpr T log2_e = T(1.4426950408889634);

  /// Consecutive channels of one group.
  struct Block {
    Index channel, channels, group;
    Index vectors() const { return (channels + width - 1) / width; }
  };
  Block block(Index index) const {
    const Index group = index / group_blocks_, within = index % group_blocks_ * block_channels;
    return {group * group_channels_ + within, std::min(block_channels, group_channels_ - within), group};
  }

  /// Numbers of tokens of a block: token t of vector v at (v * rows + t) * width.
  struct Tile {
    T *delta, *input, *output;
    Index rows;
    Index at(Index vector, Index t) const { return (vector * rows + t) * width; }
  };
  static Tile make_tile(Index vectors, Index rows, Workspace& workspace) {
    const auto take = [&] { return workspace.take<T>(vectors * rows * width).data(); };
    T *delta = take(), *input = take(), *output = take();
    return {delta, input, output, rows};
  }

  /// Calls f(i, vector, count) for the registers of a block, the first channel of which is i; count is an integral constant
  /// where the register is full.
  template <class F>
  SEQMIX_ALWAYS_INLINE static void for_registers(const Block& block, F&& f) {
    Index i = 0;
    for (; i + width <= block.channels; i += width) {
      f(i, i / width, std::integral_constant<Index, width>{});
    }
    if (i < block.channels) f(i, i / width, block.channels - i);
  }

  /// The rows of one token, and what goes with all tokens; null where there is none.
  struct Row {
    const T *input, *delta, *skip, *bias, *gate;
    T* output;
    bool softplus;
  };
  Row row(Index t, const Block& block) const {
    const auto at = [&](const T* from) { return from == nullptr ? from : from + block.channel; };
    const T* const gate = problem_.gate.channels() > 0 ? problem_.gate.row(t) : nullptr;
    return {at(problem_.input.row(t)),
            at(problem_.delta.row(t)),
            at(problem_.skip.data()),
            at(problem_.delta_bias.data()),
            at(gate),
            problem_.output.row(t) + block.channel,
            problem_.softplus};
  }

  /// Time constants times log2(e), inputs times the time constants, and what of the output doesn't come from the states, of
  /// `count` channels from channel i of a row on.
  struct Staged {
    Batch<T> delta, input, output;
  };
  template <class Count>
  SEQMIX_ALWAYS_INLINE static Staged stage(const Row& row, Index i, Count count) {
    Batch<T> d = load_some(row.delta + i, count);
    if (row.bias != nullptr) d = d + load_some(row.bias + i, count);
    if (row.softplus) d = seqmix::softplus(d);
    const Batch<T> x = load_some(row.input + i, count);
    const Batch<T> skipped = row.skip != nullptr ? load_some(row.skip + i, count) * x : broadcast(T(0));
    return {d * broadcast(log2_e), d * x, skipped};
  }

  template <class Count>
  SEQMIX_ALWAYS_INLINE static void finish(const Row& row, Index i, Count count, Batch<T> sum) {
    if (row.gate != nullptr) sum = sum * silu(load_some(row.gate + i, count));
    store_some(row.output + i, sum, count);
  }

  /// Fills the tile with tokens begin .. begin + count - 1; asks for those `ahead` tokens later of the block at `next`.
  void stage(const Block& block, const Tile& tile, Index begin, Index count, const Block& next, Index ahead) const {
    constexpr Index line = Index(memory_alignment / sizeof(T));
    const bool gated = problem_.gate.channels() > 0;
    for (Index t = begin; t < begin + count; ++t) {
      const Index later = std::min(t + ahead, length_ - 1);
      for (Index c = 0; c < next.channels; c += line) {
        prefetch_read(problem_.input.row(later) + next.channel + c);
        prefetch_read(problem_.delta.row(later) + next.channel + c);
        if (gated) prefetch_read(problem_.gate.row(t) + block.channel + c);
        prefetch_write(problem_.output.row(t) + block.channel + c);
      }
      const Row now = row(t, block);
      const Index at = tile.at(0, t - begin), pitch = tile.at(1, 0);
      for_registers(block, [&](Index c, Index v, auto some) SEQMIX_INLINE_LAMBDA {
        const Staged staged = stage(now, c, some);
        store(tile.delta + at + v * pitch, staged.delta), store(tile.input + at + v * pitch, staged.input);
        store(tile.output + at + v * pitch, staged.output);
      });
    }
  }

  /// Some states of a register of channels over `rows` tokens of a tile, from token `begin` of the sequence on; `normal` if
  /// all decays are normal numbers.
  template <Index S, bool normal>
  SEQMIX_ALWAYS_INLINE void sweep(const T* delta, const T* input, T* output, const T* decay, T* state, Index begin,
                                  Index rows, Index group, Index first_state) const {
    Batch<T> h[S];
    unroll<S>([&](auto n) SEQMIX_INLINE_LAMBDA { h[n] = load(state + n * width); });
    const T *b = problem_.write.row(begin, group) + first_state, *c = problem_.read.row(begin, group) + first_state;
    const Index b_stride = problem_.write.row_stride(), c_stride = problem_.read.row_stride();
    for (Index t = 0; t < rows; ++t, b += b_stride, c += c_stride) {
      const Batch<T> d = load(delta + t * width), x = load(input + t * width);
      Batch<T> y = load(output + t * width);
      constexpr Index together = S % 2 == 0 ? 2 : 1;
      [[maybe_unused]] const bool stands = !normal && any(d == broadcast(T(0)));
      unroll<S / together>([&](auto pair) SEQMIX_INLINE_LAMBDA {
        Batch<T> fade[together];
        unroll<together>([&](auto i) SEQMIX_INLINE_LAMBDA { fade[i] = load(decay + (pair * together + i) * width); });
        if constexpr (normal) {
          exp2_normal_products_each(d, fade);
        } else {
          if (stands) unroll<together>([&](auto i) SEQMIX_INLINE_LAMBDA { fade[i] = finite_at_rest(fade[i], d); });
          exp2_products_each(d, fade);
        }
        unroll<together>([&](auto i) SEQMIX_INLINE_LAMBDA {
          constexpr Index n = pair * together + i;
          h[n] = fma(fade[i], h[n], x * broadcast(b[n]));
          y = fma(h[n], broadcast(c[n]), y);
        });
      });
      store(output + t * width, y);
    }
    unroll<S>([&](auto n) SEQMIX_INLINE_LAMBDA { store(state + n * width, h[n]); });
  }

  /// `decay`, but 0 for -infinity where no time passes: then a state stays what it is, whatever its decay.
  SEQMIX_ALWAYS_INLINE static Batch<T> finite_at_rest(const Batch<T>& decay, const Batch<T>& delta) {
    const auto endless = decay == broadcast(-std::numeric_limits<T>::infinity());
    return select(endless & (delta == broadcast(T(0))), broadcast(T(0)), decay);
  }

  /// An exponent of 2 that exp2_decay takes: the result is infinity where it is too large for a number.
  SEQMIX_ALWAYS_INLINE static Batch<T> bounded(const Batch<T>& exponent) {
    return min_propagating(exponent, broadcast(T(FloatFormat<T>::exponent_bias + 1)));
  }

  /// Whether d A is an exponent of a normal power of two for `rows` tokens of a register of channels and all their states. Not
  /// where one of them is no number.
  SEQMIX_ALWAYS_INLINE bool all_normal(const T* delta, const T* decay, Index rows) const {
    Batch<T> most = broadcast(T(0));
    auto numbers = most <= broadcast(T(0));
    for (Index n = 0; n < states_; ++n) {
      const Batch<T> size = abs(load(decay + n * width));
      most = max(most, size), numbers = numbers & (size <= most);
    }
    const Batch<T> limit = broadcast(T(FloatFormat<T>::exponent_bias - 2));
    for (Index t = 0; t < rows; ++t) numbers = numbers & (most * abs(load(delta + t * width)) <= limit);
    return all(numbers);
  }

  /// States first .. last - 1 over `rows` tokens of a tile. decay, state: of the block, vector v's state n at
  /// (v * states + n) * width.
  void sweep_states(const Block& block, const Tile& tile, Index rows, const T* decay, T* state, Index begin,
                    Index first, Index last) const {
    for (Index v = 0; v < block.vectors(); ++v) {
      const T *delta = tile.delta + tile.at(v, 0), *input = tile.input + tile.at(v, 0);
      T* const output = tile.output + tile.at(v, 0);
      const bool normal = all_normal(delta, decay + v * states_ * width, rows);
      const auto some = [&](auto count, Index n) SEQMIX_INLINE_LAMBDA {
        const Index at = (v * states_ + n) * width;
        if (normal) {
          sweep<count, true>(delta, input, output, decay + at, state + at, begin, rows, block.group, n);
        } else {
          sweep<count, false>(delta, input, output, decay + at, state + at, begin, rows, block.group, n);
        }
      };
      Index n = first;
      for (; n + register_states <= last; n += register_states) {
        some(std::integral_constant<Index, register_states>{}, n);
      }
      if (n + 2 <= last) some(std::integral_constant<Index, 2>{}, n), n += 2;
      if (n < last) some(std::integral_constant<Index, 1>{}, n);
    }
  }

  /// Writes the outputs of `rows` tokens of a tile, from token `begin` of the sequence on.
  void finish(const Block& block, const Tile& tile, Index begin, Index rows) const {
    for (Index t = 0; t < rows; ++t) {
      const Row to = row(begin + t, block);
      const T* const sums = tile.output + tile.at(0, t);
      for_registers(block, [&](Index c, Index v, auto some)
                               SEQMIX_INLINE_LAMBDA { finish(to, c, some, load(sums + v * tile.at(1, 0))); });
    }
  }

  void load_block(const Block& block, T* decay, T* state) const {
    for (Index v = 0; v < block.vectors(); ++v) {
      const Index channel = block.channel + v * width, rows = std::min(width, block.channels - v * width);
      LanesOfRows<T>::load_rows(problem_.decay.row(channel), problem_.decay.stride(), rows, states_,
                                decay + v * states_ * width);
      LanesOfRows<T>::load_rows(problem_.state.row(channel), problem_.state.stride(), rows, states_,
                                state + v * states_ * width);
    }
  }
  void store_block(const Block& block, const T* state) const {
    for (Index v = 0; v < block.vectors(); ++v) {
      const Index channel = block.channel + v * width, rows = std::min(width, block.channels - v * width);
      LanesOfRows<T>::store_rows(state + v * states_ * width, problem_.state.row(channel), problem_.state.stride(),
                                 rows, states_);
    }
  }

  /// Every worker takes some blocks; it goes through time once, tile by tile.
  void run_blocks(Workspace& workspace) const {
    const Index workers = std::min(workspace.concurrency(), blocks_);
    workspace.parallel_for(workers, [&](Index worker, Workspace& local) {
      const Index first = blocks_ * worker / workers, last = blocks_ * (worker + 1) / workers;
      const Index numbers = block_channels * states_;
      T* const decay = local.take<T>((last - first) * numbers).data();
      T* const state = local.take<T>((last - first) * numbers).data();
      const Tile tile = make_tile(block_vectors, block_rows, local);
      for (Index i = first; i < last; ++i) {
        load_block(block(i), decay + (i - first) * numbers, state + (i - first) * numbers);
      }
      for (Index begin = 0; begin < length_; begin += block_rows) {
        const Index rows = std::min(block_rows, length_ - begin);
        for (Index i = first; i < last; ++i) {
          const Block now = block(i);
          const bool wraps = i + 1 == last;
          stage(now, tile, begin, rows, block(wraps ? first : i + 1), wraps ? block_rows : 0);
          sweep_states(now, tile, rows, decay + (i - first) * numbers, state + (i - first) * numbers, begin, 0,
                       states_);
          finish(now, tile, begin, rows);
        }
      }
      for (Index i = first; i < last; ++i) store_block(block(i), state + (i - first) * numbers);
    });
  }

  /// How many states take as long as filling a tile does, and as what comes after them (measured).
  Index before_states() const { return problem_.softplus ? 5 : 1; }
  Index after_states() const { return problem_.gate.channels() > 0 ? 1 : 0; }
  Index first_state(Index stage, Index stages) const {
    const Index all = before_states() + states_ + after_states();
    return std::clamp<Index>(all * stage / stages - before_states(), 0, states_);
  }

  /// Few channels: pieces of work are some states of them, which pass on the tiles that the first of them have filled.
  void run_stages(Index stages, Workspace& workspace) const {
    const auto frame = workspace.frame();
    const Index numbers = block_channels * states_, vectors = block(0).vectors();
    T* const decay = workspace.take<T>(blocks_ * numbers).data();
    T* const state = workspace.take<T>(blocks_ * numbers).data();
    for (Index i = 0; i < blocks_; ++i) load_block(block(i), decay + i * numbers, state + i * numbers);
    const Index tiles_passed = std::clamp<Index>(length_ / (32 * block_rows), 2, 16);  // at a time
    const Index part = vectors * block_rows * width, rows_passed = tiles_passed * block_rows;
    T* const passed = workspace.take<T>(blocks_ * stages * tiles_passed * 3 * part).data();
    const auto piece = [&](Index i, Index stage, Index index, Workspace&) {
      const Block now = block(i);
      const Index first = first_state(stage, stages), last = first_state(stage + 1, stages);
      const Index from = index * rows_passed, end = std::min(from + rows_passed, length_);
      T* numbers_of_tile = passed + (i * stages + index % stages) * tiles_passed * 3 * part;
      for (Index begin = from; begin < end; begin += block_rows, numbers_of_tile += 3 * part) {
        const Index rows = std::min(block_rows, end - begin);
        const Tile tile = {numbers_of_tile, numbers_of_tile + part, numbers_of_tile + 2 * part, block_rows};
        if (stage == 0) this->stage(now, tile, begin, rows, now, block_rows);
        sweep_states(now, tile, rows, decay + i * numbers, state + i * numbers, begin, first, last);
        if (stage + 1 == stages) finish(now, tile, begin, rows);
      }
    };
    run_pipeline(blocks_, stages, (length_ + rows_passed - 1) / rows_passed, workspace, piece);
    for (Index i = 0; i < blocks_; ++i) store_block(block(i), state + i * numbers);
  }

  /// Few tokens: states in lanes.
  void run_tokens(Workspace& workspace) const {
    const Index workers = std::min(workspace.concurrency(), (blocks_ + 1) / 2);
    workspace.parallel_for(workers, [&](Index worker, Workspace& local) {
      const Index first = blocks_ * worker / workers, last = blocks_ * (worker + 1) / workers;
      T* const delta = local.take<T>(block_channels).data();
      T* const input = local.take<T>(block_channels).data();
      T* const skipped = local.take<T>(block_channels).data();
      for (Index t = 0; t < length_; ++t) {
        for (Index i = first; i < last; ++i) {
          const Block now = block(i);
          const Row of = row(t, now);
          for_registers(now, [&](Index c, Index v, auto some) SEQMIX_INLINE_LAMBDA {
            const Staged staged = stage(of, c, some);
            store(delta + v * width, staged.delta), store(input + v * width, staged.input);
            store(skipped + v * width, staged.output);
          });
          for_registers(now, [&](Index c, Index v, auto some) SEQMIX_INLINE_LAMBDA {
            const auto add = [&](auto vectors) SEQMIX_INLINE_LAMBDA -> Batch<T> {
              return update<vectors>(t, now.group, now.channel + c, some, delta + v * width, input + v * width);
            };
            const bool moves = !any(load(delta + v * width) == broadcast(T(0)));
            const Batch<T> sum = moves && states_ == width       ? add(std::integral_constant<Index, 1>{})
                                 : moves && states_ == 2 * width ? add(std::integral_constant<Index, 2>{})
                                                                 : add(std::integral_constant<Index, 0>{});
            finish(of, c, some, load(skipped + v * width) + sum);
          });
        }
      }
    });
  }

  /// One token of `count` channels, at most a register, that takes time; the sums over their states, which fill V registers.
  /// Any token and any number of states if V is 0.
  template <Index V, class Count>
  SEQMIX_ALWAYS_INLINE Batch<T> update(Index t, Index group, Index channel, Count count, const T* delta,
                                       const T* input) const {
    const T *b = problem_.write.row(t, group), *c = problem_.read.row(t, group);
    const T* decay = problem_.decay.row(channel);
    T* state = problem_.state.row(channel);
    const Index decay_stride = problem_.decay.stride(), state_stride = problem_.state.stride();
    Batch<T> sums[width];
    unroll<width>([&](auto i) SEQMIX_INLINE_LAMBDA {
      sums[i] = broadcast(T(0));
      if (i >= count) return;
      const Batch<T> d = broadcast(delta[i]), x = broadcast(input[i]);
      if constexpr (V > 0) {
        unroll<V>([&](auto n) SEQMIX_INLINE_LAMBDA {
          constexpr Index at = n * width;
          const Batch<T> h = fma(exp2_decay(bounded(d * load(decay + at))), load(state + at), x * load(b + at));
          store(state + at, h);
          sums[i] = fma(h, load(c + at), sums[i]);
        });
      } else {
        for (Index n = 0; n < states_; n += width) {
          const Index some = std::min(width, states_ - n);
          const auto part = [&](const T* from)
                                SEQMIX_INLINE_LAMBDA -> Batch<T> { return load_partial(from + n, some); };
          const Batch<T> h = fma(exp2_decay(bounded(d * finite_at_rest(part(decay), d))), part(state), x * part(b));
          store_partial(state + n, h, some);
          sums[i] = fma(h, part(c), sums[i]);
        }
      }
      decay += decay_stride, state += state_stride;
    });
    return reduce_add_rows(sums);
  }

  const SelectiveScanProblem<T>& problem_;
  Index length_, channels_, states_, group_channels_, group_blocks_, blocks_;
};

}  // namespace detail

/// Scans all tokens from and into the state. O(L D N) time; scratch O(D N), and for few channels, which are cut into stages
/// of at least four states, up to 1536 numbers of each channel for each stage.
/// Allocates nothing once `workspace` is warm. exp(d A) is that of exp2_products_each; of a few
/// tokens that of exp2_decay, of an argument rounded twice.
template <class T>
void selective_scan(const SelectiveScanProblem<T>& problem, Workspace& workspace) {
  assert(problem.write.heads() > 0 && problem.output.channels() % problem.write.heads() == 0);
  if (problem.output.length() == 0 || problem.output.channels() == 0) return;
  detail::SelectiveScan<T>(problem).run(workspace);
}

}  // namespace seqmix::inline SEQMIX_ARCH
