// The linear recurrence token by token, on the memory where it is.
#pragma once

#include <algorithm>
#include <cmath>
#include <seqmix/engine/linear_recurrence_fading.hpp>
#include <seqmix/engine/linear_recurrence_problem.hpp>
#include <seqmix/engine/linear_recurrence_sums.hpp>
#include <seqmix/simd/batch.hpp>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// What one token of a head multiplies by. Rows of key channels are where the problem has them, unless a map, a weight or a
/// decay is applied or they are no whole vectors.
///   query      row i of the memory, as it was before the token, is read with query[i],
///   decay      then multiplied by decay[i], or decay[0] where all channels decay alike,
///   key        and gets key[i] times the token's value
///   probe, b   with a delta policy, what finds the part to take out, and b of a low-rank one
///   query_key  how much the token reads of its own value, and
///   query_b    of what b is multiplied by
template <class T>
struct TokenCoefficients {
  const T *query = nullptr, *decay = nullptr, *key = nullptr, *probe = nullptr, *b = nullptr;
  T query_key = T(0), query_b = T(0);
  T beta = T(0), output_scale = T(1);
};

/// Takes `Vectors` vectors of every row of a memory in place over one token. Of each, `columns` exist: all of them unless
/// Vectors is 1. In two parts, the memory is the recent part, and `settled` the other. Where columns fade,
/// column_factors says by how much.
template <Index Vectors, class Decay, bool two_parts, class T>
SEQMIX_ALWAYS_INLINE void sweep_in_place(const TokenCoefficients<T>& token, Index key_dim, T* memory, Index row_stride,
                                         const T* value, T* output, Index columns, [[maybe_unused]] const T* settled,
                                         [[maybe_unused]] Index settled_stride,
                                         [[maybe_unused]] const T* column_factors) {
  constexpr Index width = lanes<T>;
  constexpr bool columns_fade = Decay::per_value_channel, decays = Decay::any && !columns_fade;
  // In registers: as far as the compiler knows, what is written to the memory may be these pointers.
  const T *const query = token.query, *const key = token.key, *const decay = token.decay;
  Batch<T> v[Vectors], o[Vectors], fade[Vectors];
  unroll<Vectors>([&](auto b) SEQMIX_INLINE_LAMBDA {
    v[b] = load_some(value + b * width, columns);
    o[b] = broadcast(token.query_key) * v[b];
    if constexpr (columns_fade) fade[b] = load(column_factors + b * width);
  });
  for (Index i = 0; i < key_dim; ++i) {
    const Batch<T> k = broadcast(key[i]), q = broadcast(query[i]);
    const Batch<T> d = decays ? broadcast(decay[Decay::per_channel ? i : 0]) : k;
    T* row = memory + i * row_stride;
    unroll<Vectors>([&](auto b) SEQMIX_INLINE_LAMBDA {
      Batch<T> x = load_some(row + b * width, columns);
      // Else the compiler reads it twice, and the ports for loads are what limits this loop.
      keep_in_register<T>(x);
      if constexpr (columns_fade) x *= fade[b];
      if constexpr (two_parts) {
        o[b] = fma(q, x + load_some(settled + i * settled_stride + b * width, columns), o[b]);
      } else {
        o[b] = fma(q, x, o[b]);
      }
      // Rounded once, with what is added: see linear_recurrence_fading.hpp.
      store_some(row + b * width, decays ? fma(x, d, k * v[b]) : fma(k, v[b], x), columns);
    });
  }
  unroll<Vectors>([&](auto b) SEQMIX_INLINE_LAMBDA {
    store_some(output + b * width, o[b] * broadcast(token.output_scale), columns);
  });
}

/// The same with a delta policy. `upcoming` are the same vectors of what is swept next: they are asked for while the second
/// pass, which has most to calculate, goes over the first-level cache.
template <Index Vectors, class Decay, class Delta, class T>
SEQMIX_ALWAYS_INLINE void sweep_in_place(const TokenCoefficients<T>& token, Index key_dim, T* memory, Index row_stride,
                                         const T* value, T* output, Index columns, const T* upcoming) {
  constexpr Index width = lanes<T>;
  constexpr bool low_rank = Delta::low_rank;
  constexpr Index line = Index(memory_alignment / sizeof(T));
  // Both products with the memory as it was are taken in one pass, so that the other one has registers for the values. Narrow
  // sweeps have two chains of additions for each, which hide their latency.
  constexpr Index chains = Vectors < 4 ? 2 : 1;
  Batch<T> probed[chains][Vectors], queried[chains][Vectors];
  unroll<chains>([&](auto c) SEQMIX_INLINE_LAMBDA {
    unroll<Vectors>([&](auto b) SEQMIX_INLINE_LAMBDA { probed[c][b] = queried[c][b] = broadcast(T(0)); });
  });
  const T *const query = token.query, *const probe = token.probe;
  const T* row = memory;
  const auto read_row = [&](auto c, Index i) SEQMIX_INLINE_LAMBDA {
    const Batch<T> a = broadcast(probe[i]), q = broadcast(query[i]);
    unroll<Vectors>([&](auto b) SEQMIX_INLINE_LAMBDA {
      Batch<T> m = load_some(row + b * width, columns);
      // Else the compiler reads it twice, and the ports for loads are what limits this loop.
      keep_in_register<T>(m);
      probed[c][b] = fma(a, m, probed[c][b]);
      queried[c][b] = fma(q, m, queried[c][b]);
    });
    row += row_stride;
  };
  Index i = 0;
  for (; i + chains <= key_dim; i += chains) {
    unroll<chains>([&](auto c) SEQMIX_INLINE_LAMBDA { read_row(c, i + c); });
  }
  if (chains > 1 && i < key_dim) read_row(std::integral_constant<Index, 0>{}, i);

  // What is added to the memory is x times the key, and, of low rank, w times b.
  Batch<T> x[Vectors], w[Vectors];
  unroll<Vectors>([&](auto b) SEQMIX_INLINE_LAMBDA {
    const Batch<T> v = load_some(value + b * width, columns),
                   p = chains == 1 ? probed[0][b] : probed[0][b] + probed[chains - 1][b];
    x[b] = low_rank ? v : (v - p) * broadcast(token.beta);
    w[b] = p;
    Batch<T> o = broadcast(token.query_key) * x[b];
    if constexpr (low_rank) o = fma(broadcast(token.query_b), w[b], o);
    o += chains == 1 ? queried[0][b] : queried[0][b] + queried[chains - 1][b];
    store_some(output + b * width, o * broadcast(token.output_scale), columns);
  });
  const T *const key = token.key, *const b_row = token.b, *const decay = token.decay;
  const auto write_row = [&](auto r, Index at) SEQMIX_INLINE_LAMBDA {
    if constexpr (r % 2 == 0) {
      // Every other row: all of them hold up what the pass itself loads, and the processor guesses those between.
      unroll<(Vectors * width + line - 1) / line>([&](auto l)
                                                      SEQMIX_INLINE_LAMBDA { prefetch_soon(upcoming + l * line); });
    }
    const Batch<T> k = broadcast(key[at]), source = low_rank ? broadcast(b_row[at]) : k;
    const Batch<T> d = Decay::any ? broadcast(decay[Decay::per_channel ? at : 0]) : k;
    unroll<Vectors>([&](auto b) SEQMIX_INLINE_LAMBDA {
      Batch<T> m = load_some(memory + b * width, columns);
      if constexpr (Decay::any) {
        // Rounded once, with what is added: see linear_recurrence_fading.hpp.
        m = fma(m, d, low_rank ? fma(k, x[b], source * w[b]) : k * x[b]);
      } else {
        if constexpr (low_rank) m = fma(source, w[b], m);
        m = fma(k, x[b], m);
      }
      store_some(memory + b * width, m, columns);
    });
    memory += row_stride, upcoming += row_stride;
  };
  constexpr Index turn = 4;
  i = 0;
  for (; i + turn <= key_dim; i += turn) {
    unroll<turn>([&](auto r) SEQMIX_INLINE_LAMBDA { write_row(r, i + r); });
  }
  for (; i < key_dim; ++i) write_row(std::integral_constant<Index, 0>{}, i);
}

/// Settles some rows of one head of a memory in two parts after the token at `position`, so that every row has its turn
/// once in settle_interval tokens.
template <class T>
void settle_rows(const Sequence<T>& recent, const Sequence<T>& settled, Index position) {
  if (settled.length() == 0) return;
  const Index count = (settled.length() + settle_interval - 1) / settle_interval;
  const Index first = position % ((settled.length() + count - 1) / count) * count;
  for (Index i = first; i < std::min(first + count, settled.length()); ++i) {
    settle(recent.row(i), settled.row(i), settled.channels());
  }
}

/// Value columns that the order in place sweeps at a time, as far as there are so many.
template <class T>
inline constexpr Index in_place_columns = 8 * lanes<T>;

/// The rows of one head after the other of a stream, which may have fewer heads than the memory.
template <class T>
class StreamOfHeads {
 public:
  StreamOfHeads() = default;
  StreamOfHeads(const T* first, Index to_next_token, Index to_next_head, Index own_heads, Index heads)
      : row_(first),
        to_next_token_(to_next_token),
        to_next_head_(to_next_head),
        readers_(own_heads == heads ? 1 : heads / own_heads) {}
  StreamOfHeads(const HeadSequence<const T>& view, Index heads)
      : StreamOfHeads(view.data(), view.row_stride(), view.head_stride(), view.heads(), heads) {}
  /// One number for each token and head.
  StreamOfHeads(const Sequence<const T>& view, Index heads)
      : StreamOfHeads(view.data(), view.stride(), 1, view.channels(), heads) {}

  SEQMIX_ALWAYS_INLINE const T* row(Index token) const { return row_ + token * to_next_token_; }
  /// Goes on to what the next head of the memory reads.
  SEQMIX_ALWAYS_INLINE void next_head() {
    if (++reader_ < readers_) return;
    reader_ = 0;
    row_ += to_next_head_;
  }

 private:
  const T* row_ = nullptr;
  Index to_next_token_ = 0, to_next_head_ = 0;
  Index readers_ = 1, reader_ = 0;  // consecutive heads of the memory read one of the stream's
};

/// The tokens of one call, one after the other. Steps wait for all that is done beside the sweeps, so streams go from head
/// to head by additions, and rows are copied only where they must be.
template <class T, class Problem>
class InPlaceRecurrence {
 public:
  /// Of a problem with heads.
  InPlaceRecurrence(const Problem& problem, Workspace& workspace)
      : problem_(problem),
        rows_(workspace.take<T>((Delta::low_rank ? 5 : 4) * std::max(pitch_, width)).data()),
        factors_(workspace.take<T>(std::max(factor_pitch<Decay, T>(key_dim_, value_dim_), width)).data()),
        key_sum_(workspace.take<T>(Normalizer::any ? 2 * pitch_ : 0).data()) {
    const Index heads = problem.heads();
    if constexpr (Decay::any) {
      const Sequence<const T> first = problem.decay.head(0);
      const Index own = problem.decay.heads();
      log_decay_ = {first.data(), first.stride(), own > 1 ? problem.decay.head(1).data() - first.data() : 0, own,
                    heads};
    }
    if constexpr (Delta::low_rank) {
      a_ = {problem.delta.a, heads}, b_ = {problem.delta.b, heads};
    } else if constexpr (Delta::any) {
      beta_ = {problem.delta.beta, heads};
    }
    if constexpr (Readout::weighted) weight_ = {problem.readout.weight, heads}, own_ = {problem.readout.own, heads};
    if constexpr (Readout::bonus) {
      const auto& bonus = problem.readout.weight;
      bonus_ = {bonus.data(), 0, bonus.stride(), bonus.length(), heads};
    }
  }

  void run() {
    for (Index h = 0; h < problem_.heads(); ++h) {
      if constexpr (Normalizer::any) load_key_sum<Decay>(problem_.normalizer, h, key_sum_);
      if constexpr (Decay::constant) load_factors<Decay>(problem_.head(h), 0, 1, factors_);
      for (Index t = 0; t < problem_.length(); ++t) {
        prepare(h, t);
        if constexpr (Decay::per_value_channel) load_factors<Decay>(problem_.head(h), t, 1, factors_);
        sweep(h, t);
      }
      if constexpr (Normalizer::any) save_key_sum<Decay>(key_sum_, problem_.normalizer, h);
      query_.next_head(), key_.next_head(), value_.next_head();
      if constexpr (Decay::any) log_decay_.next_head();
      if constexpr (Delta::low_rank) a_.next_head(), b_.next_head();
      if constexpr (Delta::any && !Delta::low_rank) beta_.next_head();
      if constexpr (Readout::weighted) weight_.next_head(), own_.next_head();
      if constexpr (Readout::bonus) bonus_.next_head();
    }
  }

 private:
  using Decay = decltype(Problem::decay);
  using Readout = decltype(Problem::readout);
  using Normalizer = decltype(Problem::normalizer);
  using Delta = decltype(Problem::delta);
  using FadingRows = RowDecay<Decay, T>;

  static constexpr Index width = lanes<T>;
  static constexpr bool sums = Problem::sums;

  /// Computes the coefficients of token t of head h, in one pass over the key channels: what prepare_coefficients does for many.
  /// A step waits for this before it can touch the memory. Out of line: among the loops over heads and tokens the compiler
  /// would keep far more numbers than there are registers.
  [[gnu::noinline]] void prepare(Index h, Index t) {
    T *const queries = rows_, *const keys = rows_ + pitch_, *const decays = rows_ + 2 * pitch_,
             *const probes = rows_ + 3 * pitch_;
    const T *query = query_.row(t), *key = key_.row(t);
    const T* const value = value_.row(t);
    if (!direct_query_) {
      const auto& map = problem_.query_map;
      map.function(map.parameters, query, problem_.query.head_dim(), problem_.scale, queries);
      query = queries;
    }
    if (!direct_key_) {
      const auto& map = problem_.key_map;
      map.function(map.parameters, key, problem_.key.head_dim(), T(1), keys);
      key = keys;
    }
    const T *probe = key, *b = nullptr;
    T beta = T(0);
    if constexpr (Delta::low_rank) {
      probe = a_.row(t), b = b_.row(t);
      if (key_dim_ != pitch_) {
        stage(probe, probes), stage(b, rows_ + 4 * pitch_);
        probe = probes, b = rows_ + 4 * pitch_;
      }
    } else if constexpr (Delta::any) {
      if constexpr (Decay::any) probe = probes;
      beta = *beta_.row(t);
    }
    [[maybe_unused]] const T* const log_decay = FadingRows::any ? log_decay_.row(Decay::constant ? 0 : t) : nullptr;
    [[maybe_unused]] const T* const bonus = Readout::bonus ? bonus_.row(0) : nullptr;
    [[maybe_unused]] const bool empty = key_dim_ == 0 || value_dim_ == 0;
    const Batch<T> scale = broadcast(scale_);
    Batch<T> head_decay = broadcast(T(1));
    if constexpr (FadingRows::any && !FadingRows::per_channel) {
      const T log = *log_decay;
      if (dithers<T> && !empty && std::abs(log) < weak_decay<T>) {
        head_decay = dithered_factor(broadcast(log), noise_of(broadcast(*key), broadcast(*query), broadcast(*value)));
      } else {
        head_decay = Decay::constant ? broadcast(*factors_) : factor_of(broadcast(log));
      }
      store(decays, head_decay);
    }
    Batch<T> key_dot = broadcast(T(0)), b_dot = broadcast(T(0)), sum = broadcast(T(0)), most = broadcast(T(0));
    Batch<T> weight = broadcast(T(1)), own = broadcast(T(1));
    if constexpr (Readout::weighted) weight = broadcast(*weight_.row(t)), own = broadcast(*own_.row(t));
    const auto prepare_vector = [&](Index i, Index channels) SEQMIX_INLINE_LAMBDA {
      Batch<T> d = head_decay, q = load(query + i) * scale, k = load(key + i);
      if constexpr (FadingRows::per_channel) {
        d = Decay::constant ? load(factors_ + i) : factor_of(load_some(log_decay + i, channels));
        most = max(d, most);
        store(decays + i, d);
      }
      if constexpr (Delta::low_rank) {
        b_dot = fma(q, load(b + i), b_dot);
      } else if constexpr (Delta::any && Decay::any) {
        store(probes + i, k * d);
      }
      if constexpr (Readout::bonus) {
        key_dot = fma(q * load_some(bonus + i, channels), k, key_dot);
      } else {
        key_dot = fma(q, Readout::weighted ? k * own : k, key_dot);
        if constexpr (FadingRows::any) q *= d;
        if constexpr (Readout::weighted) store(keys + i, k * weight);
      }
      if constexpr (Normalizer::any) {
        Batch<T> z = load(key_sum_ + i);
        sum = fma(q, whole_key_sum<Decay>(z, key_sum_, pitch_, i), sum);
        if constexpr (Decay::any) {
          const Batch<T> log = Decay::per_channel ? load_some(log_decay + i, channels) : broadcast(*log_decay);
          const auto weak = abs(log) < broadcast(weak_decay<T>);
          store(key_sum_ + i, select(weak, z + fma(z, expm1_fraction(log), k), fma(z, d, k)));
        } else {
          store(key_sum_ + i, z + k);
        }
      }
      store(queries + i, q);
    };
    const Index key_dim = key_dim_;
    Index i = 0;
    for (; i + width <= key_dim; i += width) prepare_vector(i, width);
    if (i < key_dim) prepare_vector(i, key_dim - i);
    T query_key = reduce_add(key_dot), query_b = T(0), output_scale = T(1);
    if constexpr (Readout::weighted)
      query_key += problem_.readout.skip.channels() > 0 ? problem_.readout.skip[h] : T(0);
    if constexpr (Delta::low_rank) query_b = reduce_add(b_dot);
    if constexpr (Normalizer::any) {
      output_scale = problem_.normalizer.output_scale / (reduce_add(sum) + query_key + problem_.normalizer.epsilon);
    }
    token_ = {queries, decays, Readout::weighted ? keys : key, probe, b, query_key, query_b, beta, output_scale};
    if constexpr (FadingRows::per_channel && dithers<T>) {
      if (any(most > broadcast(1 - weak_decay<T>)) && !empty) [[unlikely]] {
        dither_weak_decays(Sequence<const T>(log_decay, 1, key_dim), 0, key_dim, query, key, *value,
                           {decays, width, width, 1});
      }
    }
  }

  /// A row in whole vectors, zeros in the padding.
  void stage(const T* row, T* scratch) const { row_map<T>.function(nullptr, row, key_dim_, T(1), scratch); }

  /// Takes the memory of head h over token t, and writes its output.
  [[gnu::noinline]] void sweep(Index h, Index t) {
    const TokenCoefficients<T>& token = token_;
    const Index key_dim = key_dim_, value_dim = value_dim_, stride = problem_.memory.row_stride();
    T* const memory = problem_.memory.row(h, 0);
    const T* const value = value_.row(t);
    T* const output = problem_.output.row(t, h);
    Sequence<T> recent;
    if constexpr (sums) recent = problem_.decay.compensation.head(h);
    const auto sweep_columns = [&](auto vectors, Index column, auto columns) SEQMIX_INLINE_LAMBDA {
      if constexpr (Delta::any) {
        const Index next = column + vectors * width;
        const T* upcoming =
            next < value_dim ? memory + next : problem_.memory.row(std::min(h + 1, problem_.heads() - 1), 0);
        sweep_in_place<vectors, Decay, Delta>(token, key_dim, memory + column, stride, value + column, output + column,
                                              columns, upcoming);
      } else {
        if constexpr (sums) {
          if (recent.data()) {
            sweep_in_place<vectors, Decay, true>(
                token, key_dim, recent.data() + column, recent.stride(), value + column, output + column, columns,
                static_cast<const T*>(memory) + column, stride, static_cast<const T*>(nullptr));
            return;
          }
        }
        const T* column_factors = nullptr;
        if constexpr (Decay::per_value_channel) column_factors = factors_ + column;
        sweep_in_place<vectors, Decay, false>(token, key_dim, memory + column, stride, value + column, output + column,
                                              columns, static_cast<const T*>(nullptr), Index(0), column_factors);
      }
    };
    constexpr std::integral_constant<Index, width> full;
    Index column = 0;
    // With a delta policy two products are summed up for each column, which is twice as many registers.
    constexpr Index wide = Delta::any ? 4 : in_place_columns<T> / width;
    for (; column + wide * width <= value_dim; column += wide * width) {
      sweep_columns(std::integral_constant<Index, wide>{}, column, full);
    }
    if constexpr (wide > 4) {
      // Two vectors alone are two chains of sums, which wait for each other.
      if (column + 4 * width <= value_dim) {
        sweep_columns(std::integral_constant<Index, 4>{}, column, full);
        column += 4 * width;
      }
    }
    for (; column + 2 * width <= value_dim; column += 2 * width) {
      sweep_columns(std::integral_constant<Index, 2>{}, column, full);
    }
    for (; column < value_dim; column += width) {
      sweep_columns(std::integral_constant<Index, 1>{}, column, std::min(width, value_dim - column));
    }
    const auto& map = problem_.output_map;
    if (map.function) map.function(map.parameters, h, t, 0, problem_.head(h).output.rows(t, 1));
    if constexpr (sums) {
      if (recent.data()) {
        const Sequence<T> settled = problem_.memory.head(h);
        for (Index i = 0; Decay::any && i < key_dim; ++i) rescale(settled.row(i), value_dim, *token.decay);
        settle_rows(recent, settled, problem_.decay.position + t);
      }
    }
  }

  const Problem& problem_;
  const Index key_dim_ = problem_.key_dim(), value_dim_ = problem_.value_dim(), pitch_ = padded<T>(key_dim_);
  const bool direct_query_ = key_dim_ == pitch_ && problem_.query_map.function == row_map<T>.function,
             direct_key_ = key_dim_ == pitch_ && problem_.key_map.function == row_map<T>.function;
  const T scale_ = direct_query_ ? problem_.scale : T(1);
  StreamOfHeads<T> query_{problem_.query, problem_.heads()}, key_{problem_.key, problem_.heads()},
      value_{problem_.value, problem_.heads()};
  StreamOfHeads<T> log_decay_, a_, b_, beta_, weight_, own_, bonus_;
  T *const rows_, *const factors_, *const key_sum_;
  TokenCoefficients<T> token_;
};

}  // namespace detail

/// The recurrence token by token on the memory where it is: for single steps and a few tokens. Serial.
template <class T, class Decay, class Readout, class Normalizer, class Delta>
void linear_recurrence_in_place(const LinearRecurrenceProblem<T, Decay, Readout, Normalizer, Delta>& problem,
                                Workspace& workspace) {
  if (problem.heads() == 0) return;
  const auto frame = workspace.frame();
  detail::InPlaceRecurrence<T, LinearRecurrenceProblem<T, Decay, Readout, Normalizer, Delta>>(problem, workspace).run();
}

}  // namespace seqmix::inline SEQMIX_ARCH
