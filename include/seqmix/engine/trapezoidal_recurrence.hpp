// The linear recurrence of Mamba-3: the trapezoidal rule, queries and keys that turn as the data say, and several inputs and
// outputs for each memory (MIMO).
//
//   Source    state-spaces/mamba, the reference functions in tests/ops/triton/test_mamba3_siso.py and
//             tests/ops/tilelang/test_mamba3_mimo.py
//   Glossary  L length   H heads of P channels   N state size   G groups of heads that share queries and keys   R rank
//             S angles
//
//   th_t = th_{t-1} + pi tanh(angle_t) dt_t,   q_t = turned(query_t + query_bias, th_t),   k_t likewise,
//   lam_t = sigmoid(trapezoid_t)
//   S_t = exp(g_t) (S_{t-1} + (1 - lam_t) dt_t k_{t-1} v_{t-1}^T) + lam_t dt_t k_t v_t^T
//   y_t = (q_t^T S_t + D v_t) silu(z_t)
//
// A token is written once, with the weight of both its uses: with w_t = lam_t dt_t + (1 - lam_{t+1}) dt_{t+1},
//   M_t = exp(g_t) M_{t-1} + w_t k_t v_t^T,   q_t^T S_t = exp(g_t) q_t^T M_{t-1} + lam_t dt_t (q_t . k_t) v_t^T
// which is linear_recurrence with readout::Weighted. The last token's second use waits in the state, as its key and value,
// for the next dt.
//
// MIMO: R queries, keys, and values v_r = value * value_in_r share a memory, to which the sum of k_r v_r^T is added. y is the
// sum of o_r * output_out_r, o_r being the y above with silu(z * gate_in_r), and normalised before the gate where asked for.
// To the linear recurrence they are 2 R tokens: R that only read, then R that only write. What a token sees of itself is added.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <seqmix/engine/linear_recurrence.hpp>
#include <seqmix/parts/norm.hpp>
#include <seqmix/parts/rotary.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// What the recurrence reads, token by token.
template <class T>
struct TrapezoidalStreams {
  ConstHeadSequence<T> query, key;  ///< [L, R * G, N]: the groups of the first rank, then those of the next
  ConstHeadSequence<T> value;       ///< [L, H, P]
  ConstSequence<T> log_decay;       ///< [L, H], <= 0
  ConstSequence<T> dt, trapezoid;   ///< [L, H]
  ConstHeadSequence<T> angle;       ///< [L, H, S], or [L, 1, S] for all heads; 2 S <= N
  ConstHeadSequence<T> gate = {};   ///< [L, H, P], or empty: no gate
};

/// What it reads beside them. The rows of biases and factors are the ranks of the first head, then those of the next.
template <class T>
struct TrapezoidalParameters {
  ConstSequence<T> query_bias, key_bias;                          ///< [H * R, N]
  ConstToken<T> d = {};                                           ///< [H], or empty: 0
  RotaryPairs pairs = RotaryPairs::interleaved;                   ///< half: channels i and i + N/2
  Index rank = 1;                                                 ///< R
  ConstSequence<T> value_in = {}, gate_in = {}, output_out = {};  ///< [H * R, P], or empty: 1
  bool norm = false;                                              ///< over the channels of a head and rank
  ConstSequence<T> norm_weight = {};                              ///< [H, P], or empty: 1
  T norm_eps = T(1e-5);
};

/// Where a sequence is continued from and to: zeros before its first token.
template <class T>
struct TrapezoidalState {
  Sequence<double> angle;  ///< [H, S] radians, summed in double because their error grows with the length
  MemoryView<T> memory;    ///< [H, N, P]
  Sequence<T> key, value;  ///< [H * R, N] turned, [H * R, P]: of the last token
};

namespace detail {

/// The work on heads `first` .. first + heads - 1, of which `together` (one or all of them) are done side by side.
template <class T>
class TrapezoidalRecurrence {
 public:
  TrapezoidalRecurrence(const TrapezoidalStreams<T>& streams, const TrapezoidalParameters<T>& parameters,
                        const TrapezoidalState<T>& state, const HeadSequence<T>& output, Index first, Index heads,
                        Index together, Workspace& workspace)
      : streams_(streams),
        parameters_(parameters),
        state_(state),
        output_(output),
        first_(first),
        heads_(heads),
        together_(together) {
    const Index most = std::min(output.length(), piece), ranks = most * rows_;
    queries_ = workspace.heads<T>(ranks, together, key_dim_), keys_ = workspace.heads<T>(ranks, together, key_dim_);
    weight_ = workspace.sequence<T>(ranks, heads), own_ = workspace.sequence<T>(ranks, heads);
    log_decay_ = workspace.sequence<T>(ranks, heads);
    early_ = workspace.sequence<T>(most + 1, heads), late_ = workspace.sequence<T>(most + 1, heads);
    if (shares_angles()) pace_ = workspace.sequence<T>(most, state.angle.channels());
    ones_ = workspace.take<T>(value_dim_).data();
    std::fill_n(ones_, value_dim_, T(1));
    if (!spreads_) return;
    values_ = workspace.heads<T>(ranks, together, value_dim_),
    outputs_ = workspace.heads<T>(ranks, together, value_dim_);
    // What is only read, or only written, has zeros for the rest.
    for (Index row = 0; rank_ > 1 && row < ranks; ++row) {
      const bool reads = row % rows_ < rank_;
      std::fill_n((reads ? keys_ : queries_).row(row, 0), together * key_dim_, T(0));
      if (reads) std::fill_n(values_.row(row, 0), together * value_dim_, T(0));
    }
  }

  void run(Workspace& workspace) {
    const Index length = output_.length();
    for (Index begin = 0; begin < length; begin += piece) {
      const Index count = std::min(piece, length - begin);
      set_weights(begin, count);
      if (shares_angles()) set_paces(0, begin, count, pace_);
      for (Index h = 0; h < heads_; h += together_) run_heads(h, begin, count, workspace);
    }
  }

 private:
  // So that scratch does not grow with the length. Each piece copies the memory, which takes as long as ten tokens.
  static constexpr Index piece = 128;

  bool shares_angles() const { return streams_.angle.heads() == 1; }

  template <class U>
  HeadSequence<U> some_heads(const HeadSequence<U>& all, Index first) const {
    return {all.data() + first * all.head_stride(),
            all.length(),
            together_,
            all.head_dim(),
            all.row_stride(),
            all.head_stride()};
  }

  /// Heads from `first` of ours on.
  void run_heads(Index first, Index begin, Index count, Workspace& workspace) {
    workspace.parallel_for(together_, [&](Index i, Workspace& local) {
      if (begin == 0) write_again(first + i);
      turn(first + i, i, begin, count, local);
    });
    ConstHeadSequence<T> values = some_heads(streams_.value.rows(begin, count), first_ + first);
    HeadSequence<T> outputs = some_heads(output_.rows(begin, count), first_ + first);
    const auto rows = [&](const auto& scratch) { return scratch.rows(0, count * rows_); };
    const auto columns = [&](const Sequence<T>& scratch) { return rows(scratch).columns(first, together_); };
    if (spreads_) {
      values = rows(values_), outputs = rows(outputs_);
      workspace.for_row_blocks(count, [&](Index row, Index some) { spread(first, begin, row, some); });
    }
    const MemoryView<T>& memory = state_.memory;
    const bool skips = rank_ == 1 && parameters_.d.channels() > 0;
    linear_recurrence(
        LinearRecurrenceProblem<T, decay::PerToken<T>, readout::Weighted<T>>{
            rows(queries_),
            rows(keys_),
            values,
            {columns(log_decay_)},
            {columns(weight_), columns(own_),
             skips ? ConstToken<T>(parameters_.d.data() + first_ + first, together_) : ConstToken<T>()},
            {},
            T(1),
            {memory.row(first_ + first, 0), together_, key_dim_, value_dim_, memory.head_stride(), memory.row_stride()},
            outputs},
        workspace);
    workspace.for_row_blocks(count, [&](Index row, Index some) { finish(first, begin, row, some); });
    if (begin + count < output_.length()) return;
    for (Index i = 0; i < together_ * rank_; ++i) {
      const Index token = written(count - 1, i % rank_), row = (first_ + first) * rank_ + i;
      std::copy_n(keys_.row(token, i / rank_), key_dim_, state_.key.row(row));
      std::copy_n(values.row(token, i / rank_), value_dim_, state_.value.row(row));
    }
  }

  /// The weights of the two uses: early_, when a token is read, and late_, that of the token before, of one token more than
  /// the piece has; and from them what the linear recurrence takes. No token follows the last.
  void set_weights(Index begin, Index count) {
    const auto early = [](const Batch<T>& x, const Batch<T>& dt) SEQMIX_INLINE_LAMBDA { return sigmoid(x) * dt; };
    const auto late = [](const Batch<T>& x, const Batch<T>& dt) SEQMIX_INLINE_LAMBDA { return sigmoid(-x) * dt; };
    const auto sum = [](const Batch<T>& x, const Batch<T>& y) SEQMIX_INLINE_LAMBDA { return x + y; };
    for (Index t = 0; t <= count; ++t) {
      if (begin + t == output_.length()) {
        std::fill_n(late_.row(t), heads_, T(0));
      } else {
        const T *trapezoid = streams_.trapezoid.row(begin + t) + first_, *dt = streams_.dt.row(begin + t) + first_;
        map_row(heads_, early_.row(t), early, trapezoid, dt);
        map_row(heads_, late_.row(t), late, trapezoid, dt);
      }
    }
    for (Index row = 0; row < count * rows_; ++row) {
      const Index t = row / rows_;
      std::fill_n(log_decay_.row(row), heads_, T(0));
      if (row % rows_ == 0) std::copy_n(streams_.log_decay.row(begin + t) + first_, heads_, log_decay_.row(row));
      std::copy_n(early_.row(t), heads_, own_.row(row));
      map_row(heads_, weight_.row(row), sum, early_.row(t), late_.row(t + 1));
      if (row % rows_ < rows_ - rank_) std::fill_n(weight_.row(row), heads_, T(0));
    }
  }

  /// By how much angles change in a time of 1 / pi.
  void set_paces(Index source, Index begin, Index count, const Sequence<T>& to) const {
    for (Index t = 0; t < count; ++t) {
      map_row(
          to.channels(), to.row(t), [](const Batch<T>& x) SEQMIX_INLINE_LAMBDA { return tanh(x); },
          streams_.angle.row(begin + t, source));
    }
  }

  /// The second use of the token before the first.
  void write_again(Index h) {
    for (Index row = (first_ + h) * rank_; row < (first_ + h + 1) * rank_; ++row) {
      for (Index i = 0; i < key_dim_; ++i) {
        const Batch<T> k = broadcast(late_(0, h) * state_.key(row, i));
        const auto add = [&](const Batch<T>& s, const Batch<T>& v) SEQMIX_INLINE_LAMBDA { return fma(k, v, s); };
        T* const memory = state_.memory.row(first_ + h, i);
        map_row(value_dim_, memory, add, memory, state_.value.row(row));
      }
    }
  }

  /// Queries and keys of a head, with their biases, turned by the sums of the angles.
  void turn(Index h, Index place, Index begin, Index count, Workspace& workspace) {
    const Index angles = state_.angle.channels(), groups = streams_.query.heads() / rank_, head = first_ + h;
    const Index group = head / (state_.memory.heads() / groups);
    Sequence<T> pace = pace_;
    if (!shares_angles()) {
      pace = workspace.sequence<T>(count, angles);
      set_paces(head, begin, count, pace);
    }
    // The angles of a piece, then their sines; and cosines.
    T* const sine = workspace.take<T>(count * angles).data();
    T* const cosine = workspace.take<T>(count * angles).data();
    double* const sum = state_.angle.row(head);
    for (Index t = 0; t < count; ++t) {
      advance_angles(angles, std::numbers::pi * double(streams_.dt(begin + t, head)), pace.row(t), sum,
                     sine + t * angles);
    }
    for (Index i = 0; i < count * angles; i += lanes<T>) {
      const Index some = std::min(lanes<T>, count * angles - i);
      const auto [s, c] = sincos(load_some(sine + i, some));
      store_some(sine + i, s, some), store_some(cosine + i, c, some);
    }
    const auto plus = [](const Batch<T>& x, const Batch<T>& y) SEQMIX_INLINE_LAMBDA { return x + y; };
    for (Index t = 0; t < count; ++t) {
      for (Index r = 0; r < rank_; ++r) {
        const auto set = [&](const auto& from, const auto& bias, T* to) {
          map_row(key_dim_, to, plus, from.row(begin + t, r * groups + group), bias.row(head * rank_ + r));
          turn_pairs(to, parameters_.pairs, key_dim_, angles, sine + t * angles, cosine + t * angles);
        };
        set(streams_.query, parameters_.query_bias, queries_.row(t * rows_ + r, place));
        set(streams_.key, parameters_.key_bias, keys_.row(written(t, r), place));
      }
    }
  }

  /// sum += time pace, less whole turns; to `angle` too.
  static void advance_angles(Index count, double time, const T* pace, double* sum, T* angle) {
    constexpr double turn = 2 * std::numbers::pi, round_magic = 0x1.8p+52;
    for (Index i = 0; i < count; ++i) {
      const double turned = sum[i] + time * double(pace[i]);
      sum[i] = turned - turn * ((turned * (1 / turn) + round_magic) - round_magic);
    }
    for (Index i = 0; i < count; ++i) angle[i] = T(sum[i]);
  }

  /// Values of all ranks.
  void spread(Index first, Index begin, Index row, Index count) {
    const auto times = [](const Batch<T>& x, const Batch<T>& y) SEQMIX_INLINE_LAMBDA { return x * y; };
    for (Index t = row; t < row + count; ++t) {
      for (Index i = 0; i < together_ * rank_; ++i) {
        const Index head = first_ + first + i / rank_;
        map_row(value_dim_, values_.row(written(t, i % rank_), i / rank_), times, streams_.value.row(begin + t, head),
                factors(parameters_.value_in, (first_ + first) * rank_ + i));
      }
    }
  }

  /// Outputs of all ranks, added up; or the only one in place.
  void finish(Index first, Index begin, Index row, Index count) {
    const bool gates = streams_.gate.length() > 0;
    if (!spreads_ && !gates && !parameters_.norm && parameters_.output_out.length() == 0) return;
    for (Index t = row; t < row + count; ++t) {
      for (Index i = 0; i < together_; ++i) {
        const Index head = first_ + first + i;
        T* const y = output_.row(begin + t, head);
        for (Index r = 0; r < rank_; ++r) {
          T* const o = spreads_ ? outputs_.row(t * rows_ + r, i) : y;
          if (rank_ > 1) add_token(t, first + i, i, r, o);
          const T* const weights = parameters_.norm ? factors(parameters_.norm_weight, head) : ones_;
          const Batch<T> scale = broadcast(parameters_.norm ? inverse_rms(o, value_dim_, parameters_.norm_eps) : T(1));
          map_row(
              value_dim_, y,
              [&](const Batch<T>& before, const Batch<T>& x, const Batch<T>& weight, const Batch<T>& z,
                  const Batch<T>& in, const Batch<T>& out) SEQMIX_INLINE_LAMBDA {
                Batch<T> result = x * scale * weight;
                if (gates) result *= silu(z * in);
                return r == 0 ? result * out : fma(result, out, before);
              },
              y, o, weights, gates ? streams_.gate.row(begin + t, head) : ones_,
              factors(parameters_.gate_in, head * rank_ + r), factors(parameters_.output_out, head * rank_ + r));
        }
      }
    }
  }

  /// What rank r of a token sees of the token itself.
  void add_token(Index t, Index h, Index place, Index r, T* o) {
    const auto product = [](const Batch<T>& q, const Batch<T>& k) SEQMIX_INLINE_LAMBDA { return q * k; };
    for (Index other = 0; other < rank_; ++other) {
      const Index row = written(t, other);
      T weight = early_(t, h) * sum_row(key_dim_, product, queries_.row(t * rows_ + r, place), keys_.row(row, place));
      if (other == r && parameters_.d.channels() > 0) weight += parameters_.d[first_ + h];
      const auto add = [&](const Batch<T>& x, const Batch<T>& v)
                           SEQMIX_INLINE_LAMBDA { return fma(broadcast(weight), v, x); };
      map_row(value_dim_, o, add, o, values_.row(row, place));
    }
  }

  /// Where the recurrence writes rank r of token t. It reads it at t * rows_ + r.
  Index written(Index t, Index r) const { return (t + 1) * rows_ - rank_ + r; }

  const T* factors(const Sequence<const T>& all, Index row) const { return all.length() > 0 ? all.row(row) : ones_; }

  const TrapezoidalStreams<T>& streams_;
  const TrapezoidalParameters<T>& parameters_;
  const TrapezoidalState<T>& state_;
  const HeadSequence<T> output_;
  const Index first_, heads_, together_;
  const Index rank_ = parameters_.rank, key_dim_ = state_.memory.key_dim(), value_dim_ = state_.memory.value_dim();
  const Index rows_ = rank_ > 1 ? 2 * rank_ : 1;  // tokens of the linear recurrence for one of this
  const bool spreads_ = rank_ > 1 || parameters_.value_in.length() > 0;  // values are others than the recurrence's
  HeadSequence<T> queries_, keys_, values_, outputs_;                    // [count * rows, together, N or P]
  Sequence<T> weight_, own_, log_decay_;                                 // [count * rows, heads]
  Sequence<T> early_, late_;                                             // [count + 1, heads]
  Sequence<T> pace_;                                                     // [count, S], of all heads
  T* ones_;                                                              // [P]
};

}  // namespace detail

/// Evaluates the recurrence from and into `state`. Shapes, asserted only, as above, output [L, H, P]. O(L R H N P) time,
/// scratch of a few tokens and O(H N P). Runs in parallel over heads and value columns; the same bits for any number of
/// threads. Allocates nothing once `workspace` is warm.
template <class T>
void trapezoidal_recurrence(const TrapezoidalStreams<T>& streams, const TrapezoidalParameters<T>& parameters,
                            const TrapezoidalState<T>& state, const HeadSequence<T>& output, Workspace& workspace) {
  assert(streams.query.length() == output.length() && streams.query.heads() % parameters.rank == 0);
  if (output.length() == 0) return;
  const auto frame = workspace.frame();
  // Heads are cut between the workers where that keeps them busy: what one head reads then stays in a cache. Not for a few
  // tokens, when it would take longer to begin with a head than to go on.
  const Index heads = state.memory.heads(), workers = workspace.concurrency();
  const bool apart = output.length() >= 16 && heads * 8 >= (heads + workers - 1) / workers * workers * 7;
  const Index parts = apart ? std::min(workers, heads) : 1;
  const auto run = [&](Index part, Workspace& local) {
    const Index first = heads * part / parts, count = heads * (part + 1) / parts - first;
    detail::TrapezoidalRecurrence<T>(streams, parameters, state, output, first, count, apart ? 1 : heads, local)
        .run(local);
  };
  if (apart) {
    workspace.parallel_for(parts, run);
  } else {
    run(0, workspace);
  }
}

}  // namespace seqmix::inline SEQMIX_ARCH
