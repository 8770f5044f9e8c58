// Elementwise scans: recurrences of every channel by itself.
//
//   RealDiagonal      h_t = a_t h_{t-1} + b_t                                               y_t = h_t
//   ComplexDiagonal   the same with complex numbers
//   LogAverage        a running average of values v with weights e^k that fade by e^w with every token; the current token
//                     has a weight of its own, e^(u + k), in its output:
//                     y_t = (S_{t-1} + e^(u + k_t) v_t) / (Z_{t-1} + e^(u + k_t)),   S_t = e^w S_{t-1} + e^(k_t) v_t,
//                     Z_t = e^w Z_{t-1} + e^(k_t); S and Z are kept over e^p, p the largest exponent so far
//
//   Glossary  L length   C channels   step what one token does to the state   transition what several tokens do to it
//
// Channels lie in SIMD lanes, states in registers. The steps come from a function of the caller, so that what makes them from
// the streams (the exponential of a log decay, gates, a scale) is fused into the scan.
//
// Few channels do not fill a machine: a long sequence of them is cut into segments of time, whose number depends on length and
// channels only, never on the number of threads, so that results don't either. Segments run side by side from the empty state,
// with the products of their decays kept; then their states are combined one after the other, and what was missing is added to
// the outputs, for as long as the products have not vanished. A LogAverage, whose outputs are quotients, runs its segments
// once for their last states and once for the outputs.
#pragma once

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/simd/math_exp.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// h = decay h + input, state [1, C], output [L, C].
struct RealDiagonal {
  static constexpr Index state_rows = 1, output_rows = 1, transition_rows = 1;
  static constexpr Index vectors = 4;     // of channels in one sweep: as many independent chains
  static constexpr bool additive = true;  // what a state adds to the outputs doesn't depend on the tokens' inputs

  template <class B>
  struct Step {
    B decay, input;
  };

  template <class B>
  SEQMIX_ALWAYS_INLINE static void advance(const Step<B>& step, B (&state)[1], B (&output)[1]) {
    output[0] = state[0] = fma(step.decay, state[0], step.input);
  }
  template <class B>
  SEQMIX_ALWAYS_INLINE static void compose(const Step<B>& step, B (&transition)[1]) {
    transition[0] = transition[0] * step.decay;
  }
  template <class B>
  SEQMIX_ALWAYS_INLINE static void add_before(const B (&transition)[1], const B (&before)[1], B (&state)[1]) {
    state[0] = fma(transition[0], before[0], state[0]);
  }
};

/// h = decay h + input with complex numbers, state [2, C]: real parts, then imaginary ones; output [L, 2 C], likewise.
struct ComplexDiagonal {
  static constexpr Index state_rows = 2, output_rows = 2, transition_rows = 2;
  static constexpr Index vectors = 2;
  static constexpr bool additive = true;

  template <class B>
  struct Step {
    B decay_real, decay_imag, input_real, input_imag;
  };

  template <class B>
  SEQMIX_ALWAYS_INLINE static void advance(const Step<B>& step, B (&state)[2], B (&output)[2]) {
    const B real = fnma(step.decay_imag, state[1], step.input_real);
    const B imag = fma(step.decay_imag, state[0], step.input_imag);
    output[0] = state[0] = fma(step.decay_real, state[0], real);
    output[1] = state[1] = fma(step.decay_real, state[1], imag);
  }
  template <class B>
  SEQMIX_ALWAYS_INLINE static void compose(const Step<B>& step, B (&transition)[2]) {
    const B real = fnma(step.decay_imag, transition[1], step.decay_real * transition[0]);
    transition[1] = fma(step.decay_imag, transition[0], step.decay_real * transition[1]);
    transition[0] = real;
  }
  template <class B>
  SEQMIX_ALWAYS_INLINE static void add_before(const B (&transition)[2], const B (&before)[2], B (&state)[2]) {
    state[0] = fma(transition[0], before[0], fnma(transition[1], before[1], state[0]));
    state[1] = fma(transition[0], before[1], fma(transition[1], before[0], state[1]));
  }
};

/// p of an empty LogAverage. Keys below it count for nothing.
template <class T>
inline constexpr T log_average_empty = T(-1e30);

/// Up to this size of p, where it is rounded to eighths, a LogAverage fades by its decay. A larger p is rounded by so much that
/// it fades by what becomes of p.
template <class T>
inline constexpr T log_average_exact = T(0.125) / std::numeric_limits<T>::epsilon();

/// Whether so many roundings of p have gone the same way that it no longer says how large Z over e^p is: then log_average_shift
/// is to be added to p.
template <class T>
SEQMIX_ALWAYS_INLINE auto log_average_drifted(const Batch<T>& p, const Batch<T>& below) {
  const auto far = (below > broadcast(T(0x1p40))) | (below < broadcast(T(0x1p-40)));
  return far & (abs(p) < broadcast(log_average_exact<T>));
}
template <class T>
SEQMIX_ALWAYS_INLINE Batch<T> log_average_shift(const Batch<T>& below) {
  return select(below > broadcast(T(1)), broadcast(T(16)), broadcast(T(-16)));
}

/// A weighted average in log space, state [3, C]: p, then S and Z over e^p; output [L, C]. Empty states have S = Z = 0 and p
/// very low (log_average_empty). Log weights of any finite size are legal, as are -infinity for decay and key.
struct LogAverage {
  static constexpr Index state_rows = 3, output_rows = 1, transition_rows = 1;
  static constexpr Index vectors = 2;
  static constexpr bool additive = false;

  template <class B>
  struct Step {
    B log_decay, bonus, key, value;
  };

  template <class B>
  SEQMIX_ALWAYS_INLINE static void advance(const Step<B>& step, B (&state)[3], B (&output)[1]) {
    using T = typename B::value_type;
    const Weights<B> now(state[0], step.bonus + step.key);
    output[0] = divide(fma(now.first, state[1], now.second * step.value), fma(now.first, state[2], now.second));
    const B faded = lowest(state[0] + step.log_decay);
    const Weights<B> next(faded, step.key);
    const B rest = rest_of_sum(state[0], step.log_decay, faded);
    const auto fade = [&](const B& sum, const B& term) SEQMIX_INLINE_LAMBDA {
      const B kept = next.first * sum;
      return fma(kept, rest, kept) + term;
    };
    state[1] = fade(state[1], next.second * step.value);
    state[2] = fade(state[2], next.second);
    state[0] = next.largest;
    if (const auto drifted = log_average_drifted(state[0], state[2]); any(drifted)) {
      const B shift = log_average_shift(state[2]);
      const B scale = select(drifted, exp(-shift), broadcast(T(1)));
      state[0] = select(drifted, state[0] + shift, state[0]);
      state[1] = state[1] * scale, state[2] = state[2] * scale;
    }
  }
  /// The log of the decay.
  template <class B>
  SEQMIX_ALWAYS_INLINE static void compose(const Step<B>& step, B (&transition)[1]) {
    transition[0] = transition[0] + step.log_decay;
  }
  template <class B>
  SEQMIX_ALWAYS_INLINE static void add_before(const B (&transition)[1], const B (&before)[3], B (&state)[3]) {
    const Weights<B> weights(lowest(before[0] + transition[0]), state[0]);
    state[1] = fma(weights.first, before[1], weights.second * state[1]);
    state[2] = fma(weights.first, before[2], weights.second * state[2]);
    state[0] = weights.largest;
  }

 private:
  /// e^a and e^b over the larger of both: one of them is 1.
  template <class B>
  struct Weights {
    B largest, first, second;
    SEQMIX_ALWAYS_INLINE Weights(const B& a, const B& b) {
      using T = typename B::value_type;
      const auto larger = a > b;
      const B one = broadcast(T(1)), least = exp_decay(-abs(a - b));
      largest = select(larger, a, b);
      first = select(larger, one, least);
      second = select(larger, least, one);
    }
  };
  /// e^r - 1, r what was rounded off the sum p + log_decay = faded: a slow decay would be another one without it. |r| is at
  /// most a sixteenth, and far less where p is not huge.
  template <class B>
  SEQMIX_ALWAYS_INLINE static B rest_of_sum(const B& p, const B& log_decay, const B& faded) {
    using T = typename B::value_type;
    const B added = faded - p, rest = (p - (faded - added)) + (log_decay - added);
    const auto exact = (abs(p) < broadcast(log_average_exact<T>)) & (abs(rest) <= broadcast(T(0x1p-4)));
    const B series = fma(rest, fma(rest, broadcast(T(1.0 / 6)), broadcast(T(0.5))), broadcast(T(1)));
    return select(exact, rest * series, broadcast(T(0)));
  }
  /// Not -infinity, whose difference with itself is no number.
  template <class B>
  SEQMIX_ALWAYS_INLINE static B lowest(const B& x) {
    using T = typename B::value_type;
    return max_propagating(x, broadcast(std::numeric_limits<T>::lowest()));
  }
};

namespace detail {

/// What the caller's function of steps reads with: the channels of one register.
template <class T, bool whole>
struct ScanReader {
  Index channel, count;

  /// The channels of row t.
  SEQMIX_ALWAYS_INLINE Batch<T> operator()(const Sequence<const T>& rows, Index t) const { return at(rows.row(t)); }
  /// The channels of a vector of constants.
  SEQMIX_ALWAYS_INLINE Batch<T> operator()(const Token<const T>& constants) const { return at(constants.data()); }

 private:
  SEQMIX_ALWAYS_INLINE Batch<T> at(const T* row) const {
    return whole ? load(row + channel) : load_partial(row + channel, count);
  }
};

/// Asks for what a ScanReader would read.
template <class T>
struct ScanPrefetcher {
  Index channel;
  SEQMIX_ALWAYS_INLINE Batch<T> operator()(const Sequence<const T>& rows, Index t) const {
    prefetch_read(rows.row(t) + channel);
    return Batch<T>(T(0));
  }
  SEQMIX_ALWAYS_INLINE Batch<T> operator()(const Token<const T>&) const { return Batch<T>(T(0)); }
};

/// Rows of numbers for every channel: element (r, c) at data[r * stride + c].
template <class T>
struct ScanRows {
  T* data = nullptr;
  Index stride = 0;

  template <class Count, class B, std::size_t N>
  SEQMIX_ALWAYS_INLINE void read(Index channel, Count count, B (&rows)[N]) const {
    unroll<Index(N)>([&](auto r) SEQMIX_INLINE_LAMBDA {
      rows[r] =
          count == lanes<T> ? load(data + r * stride + channel) : load_partial(data + r * stride + channel, count);
    });
  }
  template <class Count, class B, std::size_t N>
  SEQMIX_ALWAYS_INLINE void write(Index channel, Count count, const B (&rows)[N]) const {
    unroll<Index(N)>([&](auto r) SEQMIX_INLINE_LAMBDA {
      if (count == lanes<T>) {
        store(data + r * stride + channel, rows[r]);
      } else {
        store_partial(data + r * stride + channel, rows[r], count);
      }
    });
  }
};

/// What a sweep leaves behind besides the state.
enum class ScanTask { outputs, outputs_and_transitions, transitions };

/// How many segments of time a scan is cut into: as many as make a machine busy, if they are long enough.
template <class Policy, class T>
constexpr Index scan_segments(Index length, Index channels) {
  constexpr Index least_segment = 2048, busy_blocks = 16, block_channels = Policy::vectors * lanes<T>;
  const Index blocks = (channels + block_channels - 1) / block_channels;
  if (blocks == 0 || blocks > busy_blocks / 4) return 1;
  return std::max<Index>(std::min(busy_blocks / blocks, length / least_segment), 1);
}

template <class Policy, class T, class Elements>
class Scan {
 public:
  Scan(const Elements& elements, Sequence<T> state, Sequence<T> output)
      : elements_(elements),
        state_{state.data(), state.stride()},
        output_(output),
        channels_(state.channels()),
        blocks_((channels_ + block_channels - 1) / block_channels) {}

  void run(Workspace& workspace) const {
    const Index segments = scan_segments<Policy, T>(output_.length(), channels_);
    if (segments > 1) {
      run_segments(segments, workspace);
      return;
    }
    const Index workers = std::min(workspace.concurrency(), blocks_);
    workspace.parallel_for(workers, [&](Index worker, Workspace&) {
      const Index first = blocks_ * worker / workers, last = blocks_ * (worker + 1) / workers;
      for (Index begin = 0; begin < output_.length(); begin += block_rows) {
        const Index end = std::min(begin + block_rows, output_.length());
        for (Index block = first; block < last; ++block) {
          // The rows of this worker in the order that they come in.
          const bool wraps = block + 1 == last;
          sweep<ScanTask::outputs>(block, begin, end, state_, {}, {}, (wraps ? first : block + 1) * block_channels,
                                   wraps ? block_rows : 0);
        }
      }
    });
  }

 private:
  static constexpr Index width = lanes<T>, vectors = Policy::vectors, block_channels = vectors * width;
  static constexpr Index block_rows = 32;
  static constexpr Index state_rows = Policy::state_rows, output_rows = Policy::output_rows;
  static constexpr Index transition_rows = Policy::transition_rows;
  static constexpr Index no_prefetch = -1;

  /// Calls f(vectors, count, channel) for pieces of the block: all of it at once, or register by register at the end of the
  /// channels. vectors is an integral constant; count, of channels in the last register, is one where that is full.
  template <class F>
  SEQMIX_ALWAYS_INLINE void for_registers(Index block, F&& f) const {
    constexpr std::integral_constant<Index, width> full;
    Index channel = block * block_channels;
    if (channel + block_channels <= channels_) {
      f(std::integral_constant<Index, vectors>{}, full, channel);
      return;
    }
    for (; channel + width <= channels_; channel += width) f(std::integral_constant<Index, 1>{}, full, channel);
    if (channel < channels_) f(std::integral_constant<Index, 1>{}, channels_ - channel, channel);
  }

  /// Rows begin .. end - 1 of a block of channels, from and into `state`. `transition` [transition_rows, C] is composed with
  /// these rows', and its course kept in `course` [L, transition_rows C]. Asks for row t + ahead of the channels from `next`
  /// on while it is at row t.
  template <ScanTask task>
  void sweep(Index block, Index begin, Index end, const ScanRows<T>& state, const ScanRows<T>& transition,
             const Sequence<T>& course, Index next = no_prefetch, Index ahead = 0) const {
    for_registers(block, [&](auto count_of_vectors, auto count, Index channel) SEQMIX_INLINE_LAMBDA {
      constexpr Index V = count_of_vectors;
      using Reader = ScanReader<T, !std::is_same_v<decltype(count), Index>>;
      Batch<T> h[V][state_rows], product[V][transition_rows];
      unroll<V>([&](auto v) SEQMIX_INLINE_LAMBDA {
        state.read(channel + v * width, count, h[v]);
        if constexpr (task != ScanTask::outputs) transition.read(channel + v * width, count, product[v]);
      });
      for (Index t = begin; t < end; ++t) {
        unroll<V>([&](auto v) SEQMIX_INLINE_LAMBDA {
          const Index at = channel + v * width;
          if constexpr (V > 1) {
            if (next != no_prefetch) prefetch(std::min(t + ahead, output_.length() - 1), next + v * width);
          }
          const auto step = elements_(t, Reader{at, count});
          Batch<T> y[output_rows];
          Policy::advance(step, h[v], y);
          if constexpr (task != ScanTask::transitions) {
            ScanRows<T>{output_.row(t), channels_}.write(at, count, y);
          }
          if constexpr (task != ScanTask::outputs) Policy::compose(step, product[v]);
          if constexpr (task == ScanTask::outputs_and_transitions) {
            flush(product[v]);
            ScanRows<T>{course.row(t), channels_}.write(at, count, product[v]);
          }
        });
      }
      unroll<V>([&](auto v) SEQMIX_INLINE_LAMBDA {
        state.write(channel + v * width, count, h[v]);
        if constexpr (task != ScanTask::outputs) transition.write(channel + v * width, count, product[v]);
      });
    });
  }

  SEQMIX_ALWAYS_INLINE void prefetch(Index t, Index channel) const {
    constexpr Index line = Index(memory_alignment / sizeof(T));
    if (channel >= channels_ || (width < line && channel / width % (line / width) != 0)) return;
    static_cast<void>(elements_(t, ScanPrefetcher<T>{channel}));
    unroll<output_rows>([&](auto r) SEQMIX_INLINE_LAMBDA { prefetch_write(output_.row(t) + r * channels_ + channel); });
  }

  /// Numbers too small to be normal become 0: products of many decays would stay there for long, at the pace of denormals.
  template <class B, std::size_t N>
  SEQMIX_ALWAYS_INLINE static void flush(B (&x)[N]) {
    unroll<Index(N)>([&](auto r) SEQMIX_INLINE_LAMBDA {
      const B zero = broadcast(T(0));
      x[r] = select(abs(x[r]) < broadcast(std::numeric_limits<T>::min()), zero, x[r]);
    });
  }

  // --- segments ---

  /// States and transitions of all segments [segments, rows, C], and how many rows of each have a course.
  struct Segments {
    Index count;
    T *states, *transitions;
    Index* alive;  // [segments, blocks]
    Sequence<T> course;
  };
  ScanRows<T> state_of(const Segments& segments, Index s) const {
    return {segments.states + s * state_rows * channels_, channels_};
  }
  ScanRows<T> transition_of(const Segments& segments, Index s) const {
    return {segments.transitions + s * transition_rows * channels_, channels_};
  }
  Index begin_of(const Segments& segments, Index s) const { return output_.length() * s / segments.count; }

  void run_segments(Index count, Workspace& workspace) const {
    const auto frame = workspace.frame();
    Segments segments{
        count, workspace.take<T>(count * state_rows * channels_).data(),
        workspace.take<T>(count * transition_rows * channels_).data(), workspace.take<Index>(count * blocks_).data(),
        Policy::additive ? workspace.sequence<T>(output_.length(), transition_rows * channels_) : Sequence<T>()};
    workspace.parallel_for(count * blocks_,
                           [&](Index piece, Workspace&) { run_alone(segments, piece / blocks_, piece % blocks_); });
    for (Index block = 0; block < blocks_; ++block) combine(segments, block);
    workspace.parallel_for((count - 1) * blocks_,
                           [&](Index piece, Workspace&) { complete(segments, 1 + piece / blocks_, piece % blocks_); });
  }

  /// Runs a segment from the empty state, the first one from that of the caller.
  void run_alone(const Segments& segments, Index s, Index block) const {
    const Index begin = begin_of(segments, s), end = begin_of(segments, s + 1);
    const ScanRows<T> state = state_of(segments, s), transition = transition_of(segments, s);
    for_registers(block, [&](auto count_of_vectors, auto count, Index channel) SEQMIX_INLINE_LAMBDA {
      unroll<count_of_vectors>([&](auto v) SEQMIX_INLINE_LAMBDA {
        const Index at = channel + v * width;
        Batch<T> h[state_rows], product[transition_rows];
        unroll<state_rows>([&](auto r) SEQMIX_INLINE_LAMBDA { h[r] = broadcast(T(0)); });
        unroll<transition_rows>([&](auto r) SEQMIX_INLINE_LAMBDA { product[r] = broadcast(T(0)); });
        if constexpr (Policy::additive) {
          product[0] = broadcast(T(1));
        } else {
          h[0] = broadcast(log_average_empty<T>);
        }
        if (s == 0) state_.read(at, count, h);
        state.write(at, count, h);
        transition.write(at, count, product);
      });
    });
    if (s == 0) {
      sweep<ScanTask::outputs>(block, begin, end, state, {}, {});
    } else if constexpr (!Policy::additive) {
      if (s + 1 < segments.count) sweep<ScanTask::transitions>(block, begin, end, state, transition, {});
    } else {
      Index t = begin;
      for (bool alive = true; alive && t < end; t += block_rows) {
        sweep<ScanTask::outputs_and_transitions>(block, t, std::min(t + block_rows, end), state, transition,
                                                 segments.course);
        alive = remains(transition, block);
      }
      segments.alive[s * blocks_ + block] = std::min(t, end);
      if (t < end) sweep<ScanTask::outputs>(block, t, end, state, {}, {});
    }
  }

  /// Whether a transition is not zero.
  bool remains(const ScanRows<T>& transition, Index block) const {
    const Index end = std::min((block + 1) * block_channels, channels_);
    for (Index r = 0; r < transition_rows; ++r) {
      for (Index c = block * block_channels; c < end; ++c) {
        if (!(transition.data[r * transition.stride + c] == T(0))) return true;
      }
    }
    return false;
  }

  /// Turns the states after the segments alone into those before them, in order, and leaves the last one with the caller.
  void combine(const Segments& segments, Index block) const {
    for_registers(block, [&](auto count_of_vectors, auto count, Index channel) SEQMIX_INLINE_LAMBDA {
      unroll<count_of_vectors>([&](auto v) SEQMIX_INLINE_LAMBDA {
        const Index at = channel + v * width;
        Batch<T> before[state_rows];
        state_of(segments, 0).read(at, count, before);
        for (Index s = 1; s < segments.count; ++s) {
          Batch<T> state[state_rows], transition[transition_rows];
          state_of(segments, s).read(at, count, state);
          transition_of(segments, s).read(at, count, transition);
          state_of(segments, s).write(at, count, before);
          add_missing(transition, before, state);
          unroll<state_rows>([&](auto r) SEQMIX_INLINE_LAMBDA { before[r] = state[r]; });
        }
        // The last segment of a LogAverage has not run yet; it leaves its state itself.
        if constexpr (Policy::additive) state_.write(at, count, before);
      });
    });
  }

  /// add_before, where a state of zero adds nothing even if the transition has overflowed.
  template <class B>
  SEQMIX_ALWAYS_INLINE static void add_missing(const B (&transition)[transition_rows], const B (&before)[state_rows],
                                               B (&state)[state_rows]) {
    if constexpr (Policy::additive) {
      auto none = before[0] == broadcast(T(0));
      if constexpr (state_rows == 2) none = none & (before[1] == broadcast(T(0)));
      B kept[transition_rows];
      unroll<transition_rows>([&](auto r)
                                  SEQMIX_INLINE_LAMBDA { kept[r] = select(none, broadcast(T(0)), transition[r]); });
      Policy::add_before(kept, before, state);
    } else {
      Policy::add_before(transition, before, state);
    }
  }

  /// The outputs of a segment whose state before it is known now.
  void complete(const Segments& segments, Index s, Index block) const {
    const Index begin = begin_of(segments, s), end = begin_of(segments, s + 1);
    const ScanRows<T> state = state_of(segments, s);
    if constexpr (!Policy::additive) {
      sweep<ScanTask::outputs>(block, begin, end, state, {}, {});
      if (s + 1 == segments.count) {
        for_registers(block, [&](auto count_of_vectors, auto count, Index channel) SEQMIX_INLINE_LAMBDA {
          unroll<count_of_vectors>([&](auto v) SEQMIX_INLINE_LAMBDA {
            Batch<T> h[state_rows];
            state.read(channel + v * width, count, h);
            state_.write(channel + v * width, count, h);
          });
        });
      }
    } else {
      const Index alive = segments.alive[s * blocks_ + block];
      for_registers(block, [&](auto count_of_vectors, auto count, Index channel) SEQMIX_INLINE_LAMBDA {
        unroll<count_of_vectors>([&](auto v) SEQMIX_INLINE_LAMBDA {
          const Index at = channel + v * width;
          Batch<T> before[state_rows], product[transition_rows], y[output_rows];
          state.read(at, count, before);
          for (Index t = begin; t < alive; ++t) {
            ScanRows<T>{segments.course.row(t), channels_}.read(at, count, product);
            ScanRows<T>{output_.row(t), channels_}.read(at, count, y);
            add_missing(product, before, y);
            ScanRows<T>{output_.row(t), channels_}.write(at, count, y);
          }
          // Zero times what is not finite is no number; the rest adds nothing.
          Batch<T> rest = before[0] * broadcast(T(0));
          if constexpr (state_rows == 2) rest = rest + before[1] * broadcast(T(0));
          if (any(isnan(rest))) {
            for (Index t = alive; t < end; ++t) {
              ScanRows<T>{output_.row(t), channels_}.read(at, count, y);
              unroll<output_rows>([&](auto r) SEQMIX_INLINE_LAMBDA { y[r] = y[r] + rest; });
              ScanRows<T>{output_.row(t), channels_}.write(at, count, y);
            }
          }
        });
      });
    }
  }

  const Elements& elements_;
  ScanRows<T> state_;
  Sequence<T> output_;
  Index channels_, blocks_;
};

}  // namespace detail

/// Scans output.length() tokens from and into `state` [Policy::state_rows, C]; output [L, Policy::output_rows C].
///
/// elements(t, read) gives the step of token t as a Policy::Step<Batch<T>>; it reads the channels at hand with read(rows, t)
/// from a Sequence<const T> [L, C] and with read(constants) from a Token<const T> [C], and is called with readers of several
/// types, more than once for a token, and for tokens to come: it must be pure and take its reader as `const auto&`. Streams
/// may be the output itself (of which a column block, where it has several), but not overlap it otherwise: for a LogAverage
/// not at all. Decays are meant for |a| <= 1.
///
/// O(L C) time. Scratch: none, or for few channels and long sequences of an additive policy as much as the output. Allocates
/// nothing once `workspace` is warm. The same bits for any number of threads.
template <class Policy, class T, class Elements>
void scan(const Elements& elements, Sequence<T> state, Sequence<T> output, Workspace& workspace) {
  assert(state.length() == Policy::state_rows && output.channels() == Policy::output_rows * state.channels());
  if (output.length() == 0 || state.channels() == 0) return;
  detail::Scan<Policy, T, Elements>(elements, state, output).run(workspace);
}

}  // namespace seqmix::inline SEQMIX_ARCH
