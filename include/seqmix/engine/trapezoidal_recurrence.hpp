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

template <class T>
class TrapezoidalRecurrence {
 public:
  TrapezoidalRecurrence(const TrapezoidalStreams<T>& streams, const TrapezoidalParameters<T>& parameters,
                        const TrapezoidalState<T>& state, const HeadSequence<T>& output, Workspace& workspace)
      : streams_(streams), parameters_(parameters), state_(state), output_(output) {
    const Index most = std::min(output.length(), piece), ranks = most * rows_;
    queries_ = workspace.heads<T>(ranks, heads_, key_dim_), keys_ = workspace.heads<T>(ranks, heads_, key_dim_);
    weight_ = workspace.sequence<T>(ranks, heads_), own_ = workspace.sequence<T>(ranks, heads_);
    log_decay_ = workspace.sequence<T>(ranks, heads_);
    early_ = workspace.sequence<T>(most + 1, heads_), late_ = workspace.sequence<T>(most + 1, heads_);
    ones_ = workspace.take<T>(value_dim_).data();
    std::fill_n(ones_, value_dim_, T(1));
    if (!spreads_) return;
    values_ = workspace.heads<T>(ranks, heads_, value_dim_), outputs_ = workspace.heads<T>(ranks, heads_, value_dim_);
    // What is only read, or only written, has zeros for the rest.
    for (Index row = 0; rank_ > 1 && row < ranks; ++row) {
      const bool reads = row % rows_ < rank_;
      std::fill_n((reads ? keys_ : queries_).row(row, 0), heads_ * key_dim_, T(0));
      if (reads) std::fill_n(values_.row(row, 0), heads_ * value_dim_, T(0));
    }
  }

  void run(Workspace& workspace) {
    const Index length = output_.length();
    for (Index begin = 0; begin < length; begin += piece) run_piece(begin, std::min(piece, length - begin), workspace);
  }

 private:
  // So that scratch does not grow with the length. Each piece copies the memory, which takes as long as ten tokens.
  static constexpr Index piece = 128;

  void run_piece(Index begin, Index count, Workspace& workspace) {
    set_weights(begin, count);
    workspace.parallel_for(heads_, [&](Index h, Workspace& local) {
      if (begin == 0) write_again(h);
      turn(h, begin, count, local);
    });
    ConstHeadSequence<T> values = streams_.value.rows(begin, count);
    HeadSequence<T> outputs = output_.rows(begin, count);
    const auto rows = [&](const auto& scratch) { return scratch.rows(0, count * rows_); };
    if (spreads_) {
      values = rows(values_), outputs = rows(outputs_);
      workspace.for_row_blocks(count, [&](Index first, Index some) { spread(begin, first, some); });
    }
    linear_recurrence(
        LinearRecurrenceProblem<T, decay::PerToken<T>, readout::Weighted<T>>{
            rows(queries_),
            rows(keys_),
            values,
            {rows(log_decay_)},
            {rows(weight_), rows(own_), rank_ > 1 ? ConstToken<T>() : parameters_.d},
            {},
            T(1),
            state_.memory,
            outputs},
        workspace);
    workspace.for_row_blocks(count, [&](Index first, Index some) { finish(begin, first, some); });
    if (begin + count < output_.length()) return;
    for (Index row = 0; row < heads_ * rank_; ++row) {
      const Index h = row / rank_, token = written(count - 1, row % rank_);
      std::copy_n(keys_.row(token, h), key_dim_, state_.key.row(row));
      std::copy_n(values.row(token, h), value_dim_, state_.value.row(row));
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
        map_row(heads_, early_.row(t), early, streams_.trapezoid.row(begin + t), streams_.dt.row(begin + t));
        map_row(heads_, late_.row(t), late, streams_.trapezoid.row(begin + t), streams_.dt.row(begin + t));
      }
    }
    for (Index row = 0; row < count * rows_; ++row) {
      const Index t = row / rows_;
      std::fill_n(log_decay_.row(row), heads_, T(0));
      if (row % rows_ == 0) std::copy_n(streams_.log_decay.row(begin + t), heads_, log_decay_.row(row));
      std::copy_n(early_.row(t), heads_, own_.row(row));
      map_row(heads_, weight_.row(row), sum, early_.row(t), late_.row(t + 1));
      if (row % rows_ < rows_ - rank_) std::fill_n(weight_.row(row), heads_, T(0));
    }
  }

  /// The second use of the token before the first.
  void write_again(Index h) {
    for (Index row = h * rank_; row < (h + 1) * rank_; ++row) {
      for (Index i = 0; i < key_dim_; ++i) {
        const Batch<T> k = broadcast(late_(0, h) * state_.key(row, i));
        const auto add = [&](const Batch<T>& s, const Batch<T>& v) SEQMIX_INLINE_LAMBDA { return fma(k, v, s); };
        map_row(value_dim_, state_.memory.row(h, i), add, state_.memory.row(h, i), state_.value.row(row));
      }
    }
  }

  /// Queries and keys of a head, with their biases, turned by the sums of the angles.
  void turn(Index h, Index begin, Index count, Workspace& workspace) {
    constexpr double pi = std::numbers::pi;
    const Index angles = state_.angle.channels(), groups = streams_.query.heads() / rank_;
    const Index group = h / (heads_ / groups), source = streams_.angle.heads() > 1 ? h : 0;
    T* const sine = workspace.take<T>(angles).data();
    T* const cosine = workspace.take<T>(angles).data();
    double* const sum = state_.angle.row(h);
    const auto plus = [](const Batch<T>& x, const Batch<T>& y) SEQMIX_INLINE_LAMBDA { return x + y; };
    for (Index t = 0; t < count; ++t) {
      const double pace = pi * double(streams_.dt(begin + t, h));
      map_row(
          angles, sine, [](const Batch<T>& x) SEQMIX_INLINE_LAMBDA { return tanh(x); },
          streams_.angle.row(begin + t, source));
      for (Index i = 0; i < angles; ++i) {
        const double turned = sum[i] + pace * double(sine[i]);
        sum[i] = turned - 2 * pi * std::floor(turned / (2 * pi) + 0.5);
        sine[i] = T(sum[i]);
      }
      for (Index i = 0; i < angles; i += lanes<T>) {
        const Index some = std::min(lanes<T>, angles - i);
        const auto [s, c] = sincos(load_partial(sine + i, some));
        store_partial(sine + i, s, some);
        store_partial(cosine + i, c, some);
      }
      for (Index r = 0; r < rank_; ++r) {
        const auto set = [&](const auto& from, const auto& bias, T* to) {
          map_row(key_dim_, to, plus, from.row(begin + t, r * groups + group), bias.row(h * rank_ + r));
          turn_pairs(to, parameters_.pairs, key_dim_, angles, sine, cosine);
        };
        set(streams_.query, parameters_.query_bias, queries_.row(t * rows_ + r, h));
        set(streams_.key, parameters_.key_bias, keys_.row(written(t, r), h));
      }
    }
  }

  /// Values of all ranks.
  void spread(Index begin, Index first, Index count) {
    const auto times = [](const Batch<T>& x, const Batch<T>& y) SEQMIX_INLINE_LAMBDA { return x * y; };
    for (Index t = first; t < first + count; ++t) {
      for (Index row = 0; row < heads_ * rank_; ++row) {
        const Index h = row / rank_;
        map_row(value_dim_, values_.row(written(t, row % rank_), h), times, streams_.value.row(begin + t, h),
                factors(parameters_.value_in, row));
      }
    }
  }

  /// Outputs of all ranks, added up; or the only one in place.
  void finish(Index begin, Index first, Index count) {
    const bool gates = streams_.gate.length() > 0;
    if (!spreads_ && !gates && !parameters_.norm && parameters_.output_out.length() == 0) return;
    for (Index t = first; t < first + count; ++t) {
      for (Index h = 0; h < heads_; ++h) {
        T* const y = output_.row(begin + t, h);
        for (Index r = 0; r < rank_; ++r) {
          T* const o = spreads_ ? outputs_.row(t * rows_ + r, h) : y;
          if (rank_ > 1) add_token(t, h, r, o);
          const T* const weights = parameters_.norm ? factors(parameters_.norm_weight, h) : ones_;
          const Batch<T> scale = broadcast(parameters_.norm ? inverse_rms(o, value_dim_, parameters_.norm_eps) : T(1));
          map_row(
              value_dim_, y,
              [&](const Batch<T>& before, const Batch<T>& x, const Batch<T>& weight, const Batch<T>& z,
                  const Batch<T>& in, const Batch<T>& out) SEQMIX_INLINE_LAMBDA {
                Batch<T> result = x * scale * weight;
                if (gates) result *= silu(z * in);
                return r == 0 ? result * out : fma(result, out, before);
              },
              y, o, weights, gates ? streams_.gate.row(begin + t, h) : ones_,
              factors(parameters_.gate_in, h * rank_ + r), factors(parameters_.output_out, h * rank_ + r));
        }
      }
    }
  }

  /// What rank r of a token sees of the token itself.
  void add_token(Index t, Index h, Index r, T* o) {
    const auto product = [](const Batch<T>& q, const Batch<T>& k) SEQMIX_INLINE_LAMBDA { return q * k; };
    for (Index other = 0; other < rank_; ++other) {
      const Index row = written(t, other);
      T weight = early_(t, h) * sum_row(key_dim_, product, queries_.row(t * rows_ + r, h), keys_.row(row, h));
      if (other == r && parameters_.d.channels() > 0) weight += parameters_.d[h];
      const auto add = [&](const Batch<T>& x, const Batch<T>& v)
                           SEQMIX_INLINE_LAMBDA { return fma(broadcast(weight), v, x); };
      map_row(value_dim_, o, add, o, values_.row(row, h));
    }
  }

  /// Where the recurrence writes rank r of token t. It reads it at t * rows_ + r.
  Index written(Index t, Index r) const { return (t + 1) * rows_ - rank_ + r; }

  const T* factors(const Sequence<const T>& all, Index row) const { return all.length() > 0 ? all.row(row) : ones_; }

  const TrapezoidalStreams<T>& streams_;
  const TrapezoidalParameters<T>& parameters_;
  const TrapezoidalState<T>& state_;
  const HeadSequence<T> output_;
  const Index rank_ = parameters_.rank, heads_ = state_.memory.heads(), key_dim_ = state_.memory.key_dim(),
              value_dim_ = state_.memory.value_dim();
  const Index rows_ = rank_ > 1 ? 2 * rank_ : 1;  // tokens of the linear recurrence for one of this
  const bool spreads_ = rank_ > 1 || parameters_.value_in.length() > 0;  // values are others than the recurrence's
  HeadSequence<T> queries_, keys_, values_, outputs_;                    // [count * rows, H, N or P]
  Sequence<T> weight_, own_, log_decay_;                                 // [count * rows, H]
  Sequence<T> early_, late_;                                             // [count + 1, H]
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
  detail::TrapezoidalRecurrence<T>(streams, parameters, state, output, workspace).run(workspace);
}

}  // namespace seqmix::inline SEQMIX_ARCH
