// The running average of LogAverage (engine/scan.hpp) over a sequence, with a single exponential for every key.
//
//   y_t = (S + e^(u + k_t) v_t) / (Z + e^(u + k_t)),   then S = e^w S + e^(k_t) v_t,   Z = e^w Z + e^(k_t)
//
//   Glossary  L length   C channels   p the largest exponent so far, over which a state keeps its sums
//
// An exponential is a fraction, which depends on its argument alone, times a power of two. Within a run the sums are kept over
// a power of two near e^p, from which they are moved to another one exactly: which one it is changes no result. As long as
// the keys of a few tokens lie near p, the power stays, and e^w and e^u are factors known beforehand (the usual tokens).
// Elsewhere, channels and tokens of keys spread wider, the power follows the largest weight, token by token. Both ways give
// the same bits, so that outputs don't depend on later keys, on which the choice does depend.
//
// e^w near 1 is kept as 1 + (e^w - 1): rounded to a number, it would be another decay.
//
// A tile of a few tokens goes over all channels before the next one begins: memory is read and written in its order. Weights
// are made for a block of channels, and used next, since a processor doesn't look far enough ahead to overlap the chain of
// dependent instructions of both for one register with those for others.
//
// Workers keep the states of their channels in memory of their own: a processor fetches the lines that follow those it
// reads, and would take the first states of the next worker from it at every tile.
#pragma once

#include <algorithm>
#include <cassert>
#include <limits>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/scan.hpp>
#include <seqmix/simd/math_exp.hpp>
#include <seqmix/simd/streaming.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// Everything that one evaluation reads and writes. Results may not overlap another argument.
template <class T>
struct LogAverageProblem {
  Sequence<const T> key, value;     // [L, C]
  Token<const T> log_decay, bonus;  // w, u [C]
  Sequence<T> state;                // [3, C], as of LogAverage: p, S over e^p, Z over e^p
  Sequence<T> output;               // [L, C]
};

namespace detail {

template <class T>
class LogAverageScan {
 public:
  explicit LogAverageScan(const LogAverageProblem<T>& problem)
      : problem_(problem),
        length_(problem.output.length()),
        channels_(problem.output.channels()),
        streams_(pays_to_stream(problem.output)) {}

  void run(Workspace& workspace) const {
    const Index lines = (channels_ + line - 1) / line, workers = std::min(workspace.concurrency(), lines);
    workspace.parallel_for(workers, [&](Index worker, Workspace& local) {
      // No two workers write to one cache line.
      const Index first = lines * worker / workers * line;
      const Index last = std::min(lines * (worker + 1) / workers * line, channels_);
      const Scratch scratch(first, last, local);
      const auto for_blocks = [&](auto&& f) {
        for (Index begin = first; begin < last; begin += block_channels) {
          f(Block{begin, std::min(begin + block_channels, last)});
        }
      };
      for_blocks([&](const Block& block) { open(scratch, block); });
      Index t = 0;
      for (; t + tile_rows <= length_; t += tile_rows) {
        for_blocks([&](const Block& block) { advance<tile_rows>(scratch, t, block); });
      }
      for (; t < length_; ++t) {
        for_blocks([&](const Block& block) { advance<1>(scratch, t, block); });
      }
      for_blocks([&](const Block& block) { close(scratch, block); });
      if (streams_) finish_streaming();
    });
  }

 private:
  static constexpr Index width = lanes<T>, line = std::max(width, Index(memory_alignment / sizeof(T)));
  static constexpr Index block_channels = std::max<Index>(128, width), tile_rows = 4;
  static constexpr T log2_e = T(1.4426950408889634), magic = FloatFormat<T>::round_magic;
  static constexpr T bias = T(FloatFormat<T>::exponent_bias);

  /// What is usual: exponents of weights from `least_exponent` over that of the sums on, `window` of them (a power of two); e^u within
  /// these bounds; a p that stays below log_average_exact over a tile. Sums of values and products with them stay far from the
  /// bounds of numbers.
  static constexpr int least_exponent = -47, window = 64;
  static constexpr T least_bonus = T(0x1p-16), largest_bonus = T(0x1p16);
  static constexpr T largest_exponent = T(1.44) * log_average_exact<T> - window;

  /// Channels begin .. end - 1.
  struct Block {
    Index begin, end;
  };

  struct Scratch {
    /// For every channel: p, and the sums over 2^reference(p).
    T *p, *above, *below;
    /// For every channel: e^w = decay + decay_rest; e^u; and the number that a key times log2(e) is to be added to, so that the
    /// low bits of the sum are its exponent over that of the sums. It is NaN for channels where that is never usual.
    T *decay, *decay_rest, *bonus, *offset;
    /// For the channels of one block: the weights of a tile [rows, block_channels], bits that say whether they are usual, and p
    /// after the tile.
    T *weights, *unusual, *next;

    Scratch(Index first, Index last, Workspace& local) {
      const auto take = [&](Index count) { return local.take<T>(count).data(); };
      for (T** const row : {&p, &above, &below, &decay, &decay_rest, &bonus, &offset}) {
        *row = take(last - first + width) - first;
      }
      for (T** const row : {&unusual, &next}) *row = take(block_channels);
      weights = take(tile_rows * block_channels);
    }
  };

  // --- numbers as fraction * 2^exponent ---

  struct Scaled {
    Batch<T> fraction, exponent;
  };

  /// Keeps what is too large to be multiplied by log2(e), -infinity among it, from becoming infinite.
  SEQMIX_ALWAYS_INLINE static Batch<T> finite(const Batch<T>& x) {
    const Batch<T> bound = broadcast(std::numeric_limits<T>::max() / 4);
    return max_propagating(min_propagating(x, bound), -bound);
  }

  /// e^x for any x; a number so large that it doesn't say where between two powers of two it lies counts as one
  /// nearby that does.
  SEQMIX_ALWAYS_INLINE static Scaled exponential(const Batch<T>& x) {
    const Batch<T> bounded = finite(x), half = broadcast(T(0.51));
    const Batch<T> n = exponent_of(bounded, fma(bounded, broadcast(log2_e), broadcast(magic)) - broadcast(magic));
    const Batch<T> rest = fms(bounded, broadcast(log2_e), n);
    return {exp2_fraction(max_propagating(min_propagating(rest, half), -half)), n};
  }

  /// 2^n for any whole n; 0 and the largest power where that is out of bounds.
  SEQMIX_ALWAYS_INLINE static Batch<T> power(const Batch<T>& n) {
    return power_of_two(max_propagating(min_propagating(n, broadcast(bias)), broadcast(-bias)) +
                        broadcast(magic + bias));
  }

  /// The exponent of a power of two near e^p. It is even, so that keys half-way between two exponents go to the same one
  /// whether it is subtracted from them before they are rounded or after.
  SEQMIX_ALWAYS_INLINE static Batch<T> reference(const Batch<T>& p) {
    const Batch<T> bounded = finite(p);
    return exponent_of(bounded, usual_reference(bounded));
  }

  /// The same of a p that is usual; of others something that isn't.
  SEQMIX_ALWAYS_INLINE static Batch<T> usual_reference(const Batch<T>& p) {
    const Batch<T> half = fma(p, broadcast(log2_e / 2), broadcast(magic)) - broadcast(magic);
    return half + half;
  }

  /// `rounded`, or the exponent of e^x where all numbers are even whole ones: there two ways to round would differ by many.
  SEQMIX_ALWAYS_INLINE static Batch<T> exponent_of(const Batch<T>& x, const Batch<T>& rounded) {
    const auto even = abs(x) >= broadcast(T(2) / std::numeric_limits<T>::epsilon());
    return select(even, x * broadcast(log2_e), rounded);
  }

  /// Moves p, and the power of two that the sums are over, to where the sums are.
  SEQMIX_ALWAYS_INLINE static void stop_drift(Batch<T>& p, Batch<T>& above, Batch<T>& below) {
    const auto drifted = log_average_drifted(p, below);
    if (none(drifted)) return;
    const Batch<T> before = reference(p);
    p = select(drifted, p + log_average_shift(below), p);
    const Batch<T> scale = power(before - reference(p));
    above = scale * above, below = scale * below;
  }

  // --- channels ---

  /// Calls f(c, count) for the registers of a block; count is an integral constant where they are full.
  template <class F>
  SEQMIX_ALWAYS_INLINE static void for_registers(const Block& block, F&& f) {
    Index c = block.begin;
    for (; c + width <= block.end; c += width) f(c, std::integral_constant<Index, width>{});
    if (c < block.end) f(c, block.end - c);
  }

  /// e^w as a sum whose first number is 1 where the second counts, over 2^exponent.
  struct Decay {
    Batch<T> first, second, exponent;
    SEQMIX_ALWAYS_INLINE explicit Decay(const Batch<T>& w) {
      const Batch<T> zero = broadcast(T(0));
      const Scaled whole = exponential(w);
      exponent = whole.exponent;
      const auto slow = exponent == zero;
      first = select(slow, broadcast(T(1)), whole.fraction), second = select(slow, expm1(w), zero);
    }
  };

  SEQMIX_ALWAYS_INLINE static Batch<T> offset_of(const Batch<T>& p, const Batch<T>& bonus) {
    const Batch<T> n = usual_reference(p);
    const auto usual = (bonus >= broadcast(least_bonus)) & (bonus <= broadcast(largest_bonus)) &
                       (abs(n) <= broadcast(largest_exponent));
    return select(usual, broadcast(magic) - n, broadcast(std::numeric_limits<T>::quiet_NaN()));
  }

  // --- the run ---

  /// Makes the constants; sums over e^p become sums over a power of two.
  void open(const Scratch& scratch, const Block& block) const {
    const Sequence<T>& state = problem_.state;
    for_registers(block, [&](Index c, auto count) SEQMIX_INLINE_LAMBDA {
      const Decay decay(load_some(problem_.log_decay.data() + c, count));
      store(scratch.decay + c, decay.first * power(decay.exponent)), store(scratch.decay_rest + c, decay.second);
      const Scaled extra = exponential(load_some(problem_.bonus.data() + c, count));
      const Batch<T> bonus = extra.fraction * power(extra.exponent), p = load_some(state.row(0) + c, count);
      store(scratch.p + c, p), store(scratch.bonus + c, bonus), store(scratch.offset + c, offset_of(p, bonus));
      const Scaled kept = exponential(p);
      const Batch<T> scale = kept.fraction * power(kept.exponent - reference(p));
      store(scratch.above + c, scale * load_some(state.row(1) + c, count));
      store(scratch.below + c, scale * load_some(state.row(2) + c, count));
    });
  }

  /// Sums over a power of two become sums over e^p again.
  void close(const Scratch& scratch, const Block& block) const {
    const Sequence<T>& state = problem_.state;
    for_registers(block, [&](Index c, auto count) SEQMIX_INLINE_LAMBDA {
      const Batch<T> p = load(scratch.p + c);
      const Scaled kept = exponential(-finite(p));
      const Batch<T> scale = kept.fraction * power(kept.exponent + reference(p));
      store_some(state.row(0) + c, p, count);
      store_some(state.row(1) + c, scale * load(scratch.above + c), count);
      store_some(state.row(2) + c, scale * load(scratch.below + c), count);
    });
  }

  /// R tokens of a block of channels.
  template <Index R>
  void advance(const Scratch& scratch, Index t, const Block& block) const {
    if (make_weights<R>(scratch, t, block)) {
      if (streams_) {
        for_registers(block, Averager<R, true>(*this, scratch, t, block));
      } else {
        for_registers(block, Averager<R, false>(*this, scratch, t, block));
      }
    } else {
      const Averager<R, false> average(*this, scratch, t, block);
      for_registers(block, [&](Index c, auto count) {
        if (all(usual(to_bits(load(scratch.unusual + c - block.begin))))) {
          average(c, count);
        } else {
          advance_any(scratch, t, R, c, count);
        }
      });
    }
  }

  /// Asks for what a tile that begins at token t will read and write.
  SEQMIX_ALWAYS_INLINE void prefetch(Index t, Index c) const {
    if (t + tile_rows > length_ || c % line != 0) return;
    unroll<tile_rows>([&](auto r) SEQMIX_INLINE_LAMBDA {
      prefetch_read(problem_.key.row(t + r) + c), prefetch_read(problem_.value.row(t + r) + c);
      if (!streams_) prefetch_write(problem_.output.row(t + r) + c);
    });
  }

  template <class Bits>
  SEQMIX_ALWAYS_INLINE static auto usual(const Bits& unusual) {
    using Number = typename Bits::value_type;
    return (unusual & ~Bits(Number(window - 1))) == Bits(Number(0));
  }

  /// The weights of R tokens, as if all of them were usual; whether they are.
  template <Index R>
  bool make_weights(Scratch scratch, Index t, const Block& block) const {
    const T* key[R];
    unroll<R>([&](auto r) SEQMIX_INLINE_LAMBDA { key[r] = problem_.key.row(t + r); });
    const T* const log_decay = problem_.log_decay.data();
    const auto least = to_bits(broadcast(magic + T(least_exponent)));
    auto any_unusual = to_bits(broadcast(T(0)));
    for_registers(block, [&](Index c, auto count) SEQMIX_INLINE_LAMBDA {
      const Index at = c - block.begin;
      if constexpr (R == tile_rows) prefetch(t + R, c);
      const Batch<T> offset = load(scratch.offset + c), w = load_some(log_decay + c, count);
      Batch<T> p = load(scratch.p + c);
      auto unusual = to_bits(broadcast(T(0)));
      unroll<R>([&](auto r) SEQMIX_INLINE_LAMBDA {
        const Batch<T> k = load_some(key[r] + c, count);
        const Batch<T> shifted = fma(k, broadcast(log2_e), offset);
        const Batch<T> fraction = exp2_fraction(fma(k, broadcast(log2_e), offset - shifted));
        unusual = unusual | (to_bits(shifted) - least);
        // No product as in exp2_decay: what is not a number is not usual.
        store(scratch.weights + r * block_channels + at,
              from_bits<T>(to_bits(fraction) + (to_bits(shifted) << FloatFormat<T>::mantissa_bits)));
        p = max_propagating(k, p + w);
      });
      store(scratch.next + at, p), store(scratch.unusual + at, from_bits<T>(unusual));
      any_unusual = any_unusual | unusual;
    });
    return all(usual(any_unusual));
  }

  /// Averages R tokens with the weights in scratch.
  template <Index R, bool Streams>
  struct Averager {
    Scratch scratch;
    Index begin;
    const T* value[R];
    T* output[R];

    Averager(const LogAverageScan& scan, const Scratch& of_scratch, Index t, const Block& block)
        : scratch(of_scratch), begin(block.begin) {
      unroll<R>([&](auto r) SEQMIX_INLINE_LAMBDA {
        value[r] = scan.problem_.value.row(t + r), output[r] = scan.problem_.output.row(t + r);
      });
    }

    template <class Count>
    SEQMIX_ALWAYS_INLINE void operator()(Index c, Count count) const {
      const Index at = c - begin;
      const Batch<T> decay = load(scratch.decay + c), decay_rest = load(scratch.decay_rest + c);
      const Batch<T> bonus = load(scratch.bonus + c);
      Batch<T> above = load(scratch.above + c), below = load(scratch.below + c);
      unroll<R>([&](auto r) SEQMIX_INLINE_LAMBDA {
        const Batch<T> v = load_some(value[r] + c, count), weight = load(scratch.weights + r * block_channels + at);
        const Batch<T> current = weight * bonus;
        const Batch<T> average = divide(fma(current, v, above), below + current);
        if constexpr (Streams && !std::is_same_v<Count, Index>) {
          store_streaming(output[r] + c, average);
        } else {
          store_some(output[r] + c, average, count);
        }
        above = fma(decay, above, fma(decay_rest, above, weight * v));
        below = fma(decay, below, fma(decay_rest, below, weight));
      });
      Batch<T> p = load(scratch.next + at);
      const Batch<T> before = broadcast(magic) - load(scratch.offset + c);
      const Batch<T> scale = power_of_two(before - usual_reference(p) + broadcast(magic + bias));
      above = scale * above, below = scale * below;
      stop_drift(p, above, below);
      store(scratch.p + c, p), store(scratch.offset + c, offset_of(p, bonus));
      store(scratch.above + c, above), store(scratch.below + c, below);
    }
  };

  /// Any `rows` tokens of a register of channels.
  template <class Count>
  void advance_any(const Scratch& scratch, Index t, Index rows, Index c, Count count) const {
    const Batch<T> w = load_some(problem_.log_decay.data() + c, count), u = load_some(problem_.bonus.data() + c, count);
    const Scaled extra = exponential(u);
    Batch<T> p = load(scratch.p + c), above = load(scratch.above + c), below = load(scratch.below + c);
    for (const Index end = t + rows; t < end; ++t) {
      const Batch<T> k = load_some(problem_.key.row(t) + c, count), v = load_some(problem_.value.row(t) + c, count);
      const Scaled weight = exponential(k);
      const Batch<T> before = reference(p), now = reference(max_propagating(u + k, finite(p)));
      const Batch<T> past = power(before - now);
      const Batch<T> current = weight.fraction * extra.fraction * power(weight.exponent - now + extra.exponent);
      store_some(problem_.output.row(t) + c, divide(fma(current, v, past * above), fma(past, below, current)), count);
      const Batch<T> faded = max_propagating(p + w, broadcast(std::numeric_limits<T>::lowest()));
      const Decay decay(select(abs(p) < broadcast(log_average_exact<T>), w, faded - p));
      p = max_propagating(k, faded);
      const Batch<T> after = reference(p);
      const Batch<T> kept = power(before - after + decay.exponent);
      const Batch<T> entering = weight.fraction * power(weight.exponent - after);
      const auto add = [&](Batch<T>& sum, const Batch<T>& term) SEQMIX_INLINE_LAMBDA {
        sum = fma(decay.first * kept, sum, fma(decay.second * kept, sum, term));
      };
      add(above, entering * v), add(below, entering);
      stop_drift(p, above, below);
    }
    store(scratch.p + c, p), store(scratch.above + c, above), store(scratch.below + c, below);
    store(scratch.offset + c, offset_of(p, load(scratch.bonus + c)));
  }

  const LogAverageProblem<T>& problem_;
  Index length_, channels_;
  bool streams_;
};

}  // namespace detail

/// Runs all tokens from and into the state. Keys of any size are legal (above a quarter of the largest number all count as
/// equal), -infinity included, as it is for log decays.
/// O(L C) time, O(C) scratch. Allocates nothing once `workspace` is warm. The same bits for any number of threads.
template <class T>
void log_average(const LogAverageProblem<T>& problem, Workspace& workspace) {
  assert(problem.state.length() == LogAverage::state_rows && problem.output.channels() == problem.state.channels());
  constexpr Index least_tokens = 8;  // that pay for what a run makes beforehand
  const Index length = problem.output.length(), channels = problem.output.channels();
  if (length == 0 || channels == 0) return;
  const Index segments = detail::scan_segments<LogAverage, T>(length, channels);
  if (length >= least_tokens && segments == 1) {
    detail::LogAverageScan<T>(problem).run(workspace);
    return;
  }
  const auto elements = [&](Index t, const auto& read) SEQMIX_INLINE_LAMBDA {
    return LogAverage::Step<Batch<T>>{read(problem.log_decay), read(problem.bonus), read(problem.key, t),
                                      read(problem.value, t)};
  };
  scan<LogAverage>(elements, problem.state, problem.output, workspace);
}

}  // namespace seqmix::inline SEQMIX_ARCH
