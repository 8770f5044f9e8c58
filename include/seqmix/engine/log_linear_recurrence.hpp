// Log-linear recurrences: a fading memory for each part of the past, where parts double in length with their distance.
//
// Token t sees token s <= t at level l = bit_width(t xor s): level 0 is t itself, level l >= 1 exists where bit l - 1 of t is
// set, and holds the 2^(l-1) tokens from t with its low l bits cleared on (a Fenwick tree). With decays d and weights lambda,
//
//     y_t = scale * sum over s <= t of lambda[t, l(t, s)] d_{s+1} .. d_t (q_t . k_s) v_s
//
//   Glossary  L length   H heads   K key_dim   V value_dim, all per head   b position of a block's first token
//
// State. After p tokens there is one memory S_i = sum of (decays since) k_s v_s^T over 2^i tokens for every set bit i of p:
// a binary counter, in which two memories of equal length become one of twice the length. The next token sees S_i at level
// i + 1. Decays are not multiplied into the memories: S_i comes with a factor, its fade, that a reader applies to its
// query. So a token reads the memories and writes, amortised, two.
//
// Blocks. Tokens b .. b + n - 1, where n is at most the chunk and the largest power of two that divides b, see the memories
// left at b, all at the same levels, and one another at the levels of their offsets:
//     O = A V + sum over bits i of b of diag(scale lambda[:, i + 1] fade_i d_1..t) Q S_i
// where A is lower triangular. A sequence of chunks so costs O(L log L): products of matrices on register tiles. A step is a
// block of one token. Decays are products of factors <= 1, never quotients: nothing overflows, and -infinity is legal.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <seqmix/core/tensor.hpp>
#include <seqmix/engine/linear_recurrence_problem.hpp>
#include <seqmix/simd/microkernel.hpp>
#include <string_view>

namespace seqmix::inline SEQMIX_ARCH {

/// What a log-linear recurrence keeps of the tokens seen: room for 2^levels - 1 of them, O(levels H K V) numbers. A copyable
/// value.
template <class T>
struct LogLinearState {
  Tensor<T> memory;    // [levels, H, K, V]; level i holds 2^i tokens if bit i of the position is set, else nothing
  Tensor<T> fade;      // [levels, H], factors of the memories
  Index position = 0;  // tokens seen

  LogLinearState() = default;

  /// Empty, with room for at least `tokens` tokens. Allocates.
  LogLinearState(Index tokens, Index heads, Index key_dim, Index value_dim)
      : memory(Shape{levels_for(tokens), heads, key_dim, value_dim}), fade(Shape{levels_for(tokens), heads}) {}

  Index levels() const { return fade.shape().rank() == 2 ? fade.shape()[0] : 0; }

  /// The most tokens that there is room for, in all.
  Index capacity() const { return (Index(1) << levels()) - 1; }

  /// Makes room for at least `tokens` tokens in all. Copies the state where it has less; allocates.
  void reserve(Index tokens) {
    if (tokens <= capacity()) return;
    LogLinearState grown(tokens, memory.shape()[1], memory.shape()[2], memory.shape()[3]);
    std::copy(memory.begin(), memory.end(), grown.memory.begin());
    std::copy(fade.begin(), fade.end(), grown.fade.begin());
    grown.position = position;
    *this = std::move(grown);
  }

  /// Levels that hold `tokens` tokens.
  static Index levels_for(Index tokens) { return Index(std::bit_width(std::uint64_t(tokens))); }

  template <class Self, class Visitor>
  static void visit(Self& self, Visitor&& visitor) {
    visitor("memory", self.memory), visitor("fade", self.fade), visitor("position", self.position);
  }
};

/// Everything that one evaluation reads and writes. query, key [L, H', K], value [L, H', V], log_decay [L, H'], level_scales
/// [L, H', more than bit_width(position of the last token)], output [L, H, V], state of H heads; each H' divides H:
/// consecutive heads of the output share one of theirs. The state has room for L more tokens.
template <class T>
struct LogLinearProblem {
  HeadSequence<const T> query, key, value;
  Sequence<const T> log_decay;
  HeadSequence<const T> level_scales;
  T scale;
  LogLinearState<T>& state;
  HeadSequence<T> output;
};

namespace detail {

/// Tokens of the largest block, a power of two. Doubling it replaces half a product with a memory for each token by one with as
/// many more tokens of the block: the costs meet where it is about as large as the memory is wide.
inline constexpr Index log_linear_chunk = 64;

/// The work of one thread: panels first .. last - 1 of two vectors of value columns, counted over heads and the panels of each.
template <class T>
class LogLinearSweep {
 public:
  LogLinearSweep(const LogLinearProblem<T>& problem, const T* initial_fade, Index first, Index last,
                 Workspace& workspace)
      : problem_(problem), first_(first), last_(last) {
    const Index columns = std::min(last - first, panels_) * panel_columns;
    const auto take = [&](Index count) { return workspace.take<T>(count).data(); };
    query_ = take(chunk * pitch_), faded_query_ = take(chunk * pitch_);
    key_ = take(chunk * pitch_), packed_key_ = take(chunk * key_dim_);
    mix_ = take(chunk * chunk), values_ = take(chunk * panel_columns), sums_ = take(chunk * columns);
    edge_ = take(key_dim_ * panel_columns);
    fade_ = take(levels_ * (last_head_ - first_head_ + 1));
    for (Index h = first_head_; h <= last_head_; ++h) {
      for (Index i = 0; i < levels_; ++i) fade(i, h) = initial_fade[i * heads_ + h];
    }
  }

  /// Runs all tokens.
  void run() {
    for (Index begin = 0, count = 0; begin < problem_.output.length(); begin += count) {
      const Index position = problem_.state.position + begin;
      const Index aligned = position == 0 ? chunk : std::min(chunk, position & -position);
      count = std::min(aligned, problem_.output.length() - begin);
      for (Index h = first_head_; h <= last_head_; ++h) run_block(h, begin, count, position);
    }
    for (Index h = first_head_; h <= last_head_; ++h) {
      if (h * panels_ < first_) continue;  // another thread has the head's first panel
      for (Index i = 0; i < levels_; ++i) problem_.state.fade[std::size_t(i * heads_ + h)] = fade(i, h);
    }
  }

 private:
  static constexpr Index width = lanes<T>, panel_columns = 2 * width, chunk = log_linear_chunk;
  static_assert(chunk % panel_columns == 0);

  T& fade(Index level, Index h) { return fade_[(h - first_head_) * levels_ + level]; }
  T* memory(Index level, Index h) {
    return problem_.state.memory.data() + (level * heads_ + h) * key_dim_ * value_dim_;
  }
  template <class U>
  Sequence<const T> of_head(const HeadSequence<U>& all, Index h) const {
    return all.head(h * all.heads() / heads_);
  }

  /// Calls f(rows, begin) for tiles of at most tile_rows rows that together are 0 .. count - 1; rows is an integral constant.
  template <class F>
  SEQMIX_ALWAYS_INLINE void for_tiles(Index count, F&& f) {
    Index begin = 0;
    for (; begin + tile_rows <= count; begin += tile_rows) {
      prefetch();
      f(std::integral_constant<Index, tile_rows>{}, begin);
    }
    if (count - begin >= 4) f(std::integral_constant<Index, 4>{}, begin), begin += 4;
    if (count - begin >= 2) f(std::integral_constant<Index, 2>{}, begin), begin += 2;
    if (count - begin >= 1) f(std::integral_constant<Index, 1>{}, begin);
  }

  /// Sets what prefetch asks for: some tokens of one head.
  void prefetch_next(Index h, Index begin, Index count) {
    next_head_ = h, next_ = begin;
    next_end_ = std::min(begin + count, problem_.output.length());
  }

  /// Asks for the rows of one of the next tokens. Rows of a head lie far apart, which defeats the hardware's prefetcher.
  SEQMIX_ALWAYS_INLINE void prefetch() {
    if (next_ >= next_end_) return;
    constexpr Index line = Index(memory_alignment / sizeof(T));
    const auto shared = [&](Index heads) { return next_head_ * heads / heads_; };
    const T* query = problem_.query.row(next_, shared(problem_.query.heads()));
    const T* key = problem_.key.row(next_, shared(problem_.key.heads()));
    const T* value = problem_.value.row(next_, shared(problem_.value.heads()));
    T* output = problem_.output.row(next_, next_head_);
    for (Index i = 0; i < key_dim_; i += line) prefetch_read(query + i), prefetch_read(key + i);
    for (Index j = 0; j < value_dim_; j += line) prefetch_read(value + j), prefetch_write(output + j);
    prefetch_read(problem_.level_scales.row(next_, shared(problem_.level_scales.heads())));
    ++next_;
  }

  /// Tokens begin .. begin + count - 1 of one head, the first of which is at `position`.
  void run_block(Index h, Index begin, Index count, Index position) {
    if (h < last_head_) {
      prefetch_next(h + 1, begin, count);
    } else {
      prefetch_next(first_head_, begin + count, chunk);
    }
    prepare(h, begin, count);
    const Index first = std::max(first_ - h * panels_, Index(0)), last = std::min(last_ - h * panels_, panels_);
    const Index pitch = (last - first) * panel_columns;
    for (Index panel = first; panel < last; ++panel) {
      load_values(h, begin, count, panel);
      mix_values(count, sums_ + (panel - first) * panel_columns, pitch);
      if (count > 1) add_to_memory(h, count, position, panel);
    }
    if (count == 1) {
      add_token(h, begin, position, first * panel_columns, std::min(value_dim_, last * panel_columns));
    }
    for (Index i = 0; i < levels_; ++i) {
      if (position >> i & 1) read_memory(h, begin, count, i, first, last, pitch);
    }
    for (Index t = 0; t < count; ++t) {
      for (Index j = first * panel_columns; j < std::min(value_dim_, last * panel_columns); j += width) {
        store_some(problem_.output.row(begin + t, h) + j, load(sums_ + t * pitch + j - first * panel_columns),
                   value_dim_ - j);
      }
    }
    count_up(h, count, position);
  }

  /// Queries, keys, decays, and A [count][chunk] of a block.
  void prepare(Index h, Index begin, Index count) {
    const Sequence<const T> log_decay = problem_.log_decay.columns(h * problem_.log_decay.channels() / heads_, 1);
    // Weak decays are lost in products of factors that are rounded one by one.
    log_ = T(0);
    for (Index t = 0; t < count; ++t) factor_[t] = *log_decay.row(begin + t), since_[t] = log_ += factor_[t];
    for (Index t = 0; t < count; t += width) {
      store_some(factor_ + t, factor_of(load_some(factor_ + t, count - t)), count - t);
      store_some(since_ + t, factor_of(load_some(since_ + t, count - t)), count - t);
    }
    stage_rows(of_head(problem_.query, h), row_map<T>, problem_.scale, begin, count, key_dim_, query_);
    stage_rows(of_head(problem_.key, h), row_map<T>, T(1), begin, count, key_dim_, key_);
    weigh(of_head(problem_.level_scales, h), begin, count);
    if (count == 1) {
      mix_[0] *= dot(query_, key_, T(1));
    } else if (!score(count)) [[unlikely]] {
      decay_before_products(of_head(problem_.level_scales, h), begin, count);
    }
    T until = T(1);
    for (Index s = count - 1; s >= 0; until *= factor_[s--]) {
      for (Index i = 0; i < pitch_; i += width)
        store(key_ + s * pitch_ + i, load(key_ + s * pitch_ + i) * broadcast(until));
    }
  }

  /// A without the products of queries and keys: lambda[t, level of s] times the decays between.
  void weigh(const Sequence<const T>& level_scales, Index begin, Index count) {
    alignas(memory_alignment) T between[chunk] = {};
    for (Index t = 0; t < count; ++t) {
      const T* scales = level_scales.row(begin + t);
      const Batch<T> factor = broadcast(factor_[t]);
      T* row = mix_ + t * chunk;
      Index s = 0;
      for (; s <= t; s += width) {
        const Batch<T> lane = lane_index<T>() + broadcast(T(s));
        // The tokens before t with its low i bits cleared are at level i + 1, those that are further yet at higher ones.
        Batch<T> scale = broadcast(scales[0]);
        for (Index i = 0; t >> i != 0; ++i) {
          if (t >> i & 1) scale = select(lane < broadcast(T(t >> i << i)), broadcast(scales[i + 1]), scale);
        }
        const Batch<T> decay = select(lane == broadcast(T(t)), broadcast(T(1)), load(between + s) * factor);
        store(between + s, decay);
        store(row + s, scale * decay);
      }
      for (; s < chunk; s += width) store(row + s, broadcast(T(0)));
    }
  }

  /// query . (factor key)
  T dot(const T* query, const T* key, T factor) const {
    Batch<T> sum = broadcast(T(0));
    for (Index i = 0; i < pitch_; i += width) sum = fma(load(query + i), load(key + i) * broadcast(factor), sum);
    return reduce_add(sum);
  }

  /// Multiplies A by the products of queries and keys. False if some of these are infinite or NaN.
  bool score(Index count) {
    for (Index s = 0; s < (count + panel_columns - 1) / panel_columns * panel_columns; s += width) {
      T* packed = packed_key_ + s / panel_columns * key_dim_ * panel_columns + s % panel_columns;
      for (Index i = 0; i < key_dim_; i += width) {
        Batch<T> tile[std::size_t(width)];
        unroll<width>([&](auto lane) SEQMIX_INLINE_LAMBDA {
          tile[lane] = s + lane < count ? load(key_ + (s + lane) * pitch_ + i) : broadcast(T(0));
        });
        transpose(tile);
        if (i + width <= key_dim_) {
          unroll<width>([&](auto lane)
                            SEQMIX_INLINE_LAMBDA { store(packed + (i + lane) * panel_columns, tile[lane]); });
        } else {
          for (Index r = 0; r < key_dim_ - i; ++r) store(packed + (i + r) * panel_columns, tile[r]);
        }
      }
    }
    Batch<T> poison = broadcast(T(0));  // stays 0 unless a product is infinite or NaN
    for_tiles(count, [&](auto rows, Index t) SEQMIX_INLINE_LAMBDA {
      for (Index s = 0; s < t + rows; s += panel_columns) {
        T* mix = mix_ + t * chunk + s;
        multiply_tile<rows, 2>(
            static_cast<const T*>(query_ + t * pitch_), pitch_, Index(1),
            static_cast<const T*>(packed_key_ + s * key_dim_), panel_columns, Index(0), key_dim_,
            [](auto, auto) SEQMIX_INLINE_LAMBDA -> Batch<T> { return broadcast(T(0)); },
            [&](auto row, auto vector, const Batch<T>& sum) SEQMIX_INLINE_LAMBDA {
              poison = fma(sum, broadcast(T(0)), poison);
              store(mix + row * chunk + vector * width, load(mix + row * chunk + vector * width) * sum);
            });
      }
    });
    return reduce_add(poison) == T(0);
  }

  /// Multiplies decays into keys before queries are, for the rare product q_t . k_s that is beyond the largest number, or was
  /// before the decays.
  [[gnu::noinline]] void decay_before_products(const Sequence<const T>& level_scales, Index begin, Index count) {
    for (Index t = 0; t < count; ++t) {
      T between = T(1);
      for (Index s = t; s >= 0; between *= factor_[s--]) {
        T& mix = mix_[t * chunk + s];
        if (std::isfinite(mix)) continue;
        mix = level_scales.row(begin + t)[std::bit_width(std::uint64_t(t ^ s))] *
              dot(query_ + t * pitch_, key_ + s * pitch_, between);
      }
    }
  }

  void load_values(Index h, Index begin, Index count, Index panel) {
    const auto value = of_head(problem_.value, h);
    for (Index t = 0; t < count; ++t) {
      unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA {
        const Index j = std::min(panel * panel_columns + b * width, value_dim_);
        store(values_ + t * panel_columns + b * width, load_some(value.row(begin + t) + j, value_dim_ - j));
      });
    }
  }

  /// sums [count][pitch] = A V for one panel.
  void mix_values(Index count, T* sums, Index pitch) {
    for_tiles(count, [&](auto rows, Index first) SEQMIX_INLINE_LAMBDA {
      Batch<T> sum[rows][2];
      const T *mix = mix_ + first * chunk, *values = values_;
      multiply_tile<rows, 2>(
          mix, chunk, Index(1), values, panel_columns, Index(0), first,
          [](auto, auto) SEQMIX_INLINE_LAMBDA -> Batch<T> { return broadcast(T(0)); },
          [&](auto row, auto vector, const Batch<T>& x) SEQMIX_INLINE_LAMBDA { sum[row][vector] = x; });
      // The triangle on the diagonal, entry by entry: a later token must not reach a row even as 0 * NaN.
      unroll<rows>([&](auto s) SEQMIX_INLINE_LAMBDA {
        unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA {
          const Batch<T> v = load(values + (first + s) * panel_columns + b * width);
          unroll<rows>([&](auto t) SEQMIX_INLINE_LAMBDA {
            if constexpr (t >= s) sum[t][b] = fma(broadcast(mix[t * chunk + first + s]), v, sum[t][b]);
          });
        });
      });
      unroll<rows>([&](auto t) SEQMIX_INLINE_LAMBDA {
        unroll<2>([&](auto b) SEQMIX_INLINE_LAMBDA { store(sums + (first + t) * pitch + b * width, sum[t][b]); });
      });
    });
  }

  /// The level that 2^i tokens end up at when they are added at `position`: beyond those that are full.
  static Index free_level(Index position, Index i) {
    while (position >> i & 1) ++i;
    return i;
  }

  /// Writes a block's tokens into one panel of the memories: whole if they are as many as a level has, else the set bits of
  /// `count`, the earlier tokens at the higher levels. Full levels on the way are merged.
  void add_to_memory(Index h, Index count, Index position, Index panel) {
    const Index column = panel * panel_columns, columns = std::min(panel_columns, value_dim_ - column);
    const bool whole = columns == panel_columns;
    const Index stride = whole ? value_dim_ : panel_columns;
    for (Index i = Index(std::bit_width(std::uint64_t(count))) - 1, begin = 0; i >= 0; --i) {
      if (!(count >> i & 1)) continue;
      const Index tokens = Index(1) << i, target = free_level(position, i);
      const bool merges = target > i;
      T* to = whole ? memory(target, h) + column : edge_;
      for (Index full = i; full < target; ++full) {
        merge(memory(full, h) + column, value_dim_, fade(full, h) * since_[count - 1], full > i, key_dim_, columns, to,
              stride);
      }
      for_tiles(key_dim_, [&](auto rows, Index k) SEQMIX_INLINE_LAMBDA {
        T* row_to = to + k * stride;
        multiply_tile<rows, 2>(
            static_cast<const T*>(key_ + begin * pitch_ + k), Index(1), pitch_,
            static_cast<const T*>(values_ + begin * panel_columns), panel_columns, Index(0), tokens,
            [&](auto row, auto vector) SEQMIX_INLINE_LAMBDA -> Batch<T> {
              return merges ? load(row_to + row * stride + vector * width) : broadcast(T(0));
            },
            [&](auto row, auto vector, const Batch<T>& sum)
                SEQMIX_INLINE_LAMBDA { store(row_to + row * stride + vector * width, sum); });
      });
      if (!whole) merge(edge_, panel_columns, T(1), false, key_dim_, columns, memory(target, h) + column, value_dim_);
      begin += tokens;
    }
  }

  /// The same for a block of one token: columns begin .. end - 1 of all rows, in the order of the memories.
  void add_token(Index h, Index token, Index position, Index begin, Index end) {
    const Index target = free_level(position, 0), rows = key_dim_, stride = value_dim_, columns = end - begin;
    const bool merges = target > 0;
    const T *value = of_head(problem_.value, h).row(token) + begin, *key = key_;
    const T* from = memory(0, h) + begin;
    T* const to = memory(target, h) + begin;
    const Batch<T> factor = broadcast(merges ? fade(0, h) * since_[0] : T(0));
    for (Index k = 0; k < rows; ++k, from += stride) {
      const auto add = [&](Index j, Index some) SEQMIX_INLINE_LAMBDA {
        const Batch<T> x = broadcast(key[k]) * load_some(value + j, some);
        store_some(to + k * stride + j, merges ? fma(load_some(from + j, some), factor, x) : x, some);
      };
      Index j = 0;
      for (; j + width <= columns; j += width) add(j, width);
      if (j < columns) add(j, columns - j);
    }
    for (Index full = 1; full < target; ++full) {
      merge(memory(full, h) + begin, stride, fade(full, h) * since_[0], true, rows, columns, to, stride);
    }
  }

  /// to = factor * from [rows, columns], added to what is there or not.
  static void merge(const T* from, Index from_stride, T factor, bool add, Index rows, Index columns, T* to,
                    Index to_stride) {
    const Batch<T> f = broadcast(factor);
    for (Index i = 0; i < rows; ++i, from += from_stride, to += to_stride) {
      Index j = 0;
      for (; j + width <= columns; j += width) {
        store(to + j, add ? fma(load(from + j), f, load(to + j)) : load(from + j) * f);
      }
      if (j < columns) {
        const Batch<T> x = load_partial(from + j, columns - j) * f;
        store_partial(to + j, add ? x + load_partial(to + j, columns - j) : x, columns - j);
      }
    }
  }

  /// Adds what the tokens of a block read from the memory of one level to sums_.
  void read_memory(Index h, Index begin, Index count, Index level, Index first, Index last, Index pitch) {
    const auto level_scales = of_head(problem_.level_scales, h);
    for (Index t = 0; t < count; ++t) {
      const Batch<T> weight = broadcast(fade(level, h) * since_[t] * level_scales.row(begin + t)[level + 1]);
      for (Index i = 0; i < pitch_; i += width) {
        store(faded_query_ + t * pitch_ + i, load(query_ + t * pitch_ + i) * weight);
      }
    }
    const auto read = [&](auto rows, auto panels, Index t, const T* from, Index stride, T* sums) SEQMIX_INLINE_LAMBDA {
      multiply_tile<rows, 2, panels>(
          static_cast<const T*>(faded_query_ + t * pitch_), pitch_, Index(1), from, stride, panel_columns, key_dim_,
          [&](auto row, auto vector)
              SEQMIX_INLINE_LAMBDA -> Batch<T> { return load(sums + (t + row) * pitch + vector * width); },
          [&](auto row, auto vector, const Batch<T>& sum)
              SEQMIX_INLINE_LAMBDA { store(sums + (t + row) * pitch + vector * width, sum); });
    };
    constexpr std::integral_constant<Index, 1> one;
    for (Index panel = first; panel < last; ++panel) {
      const Index column = panel * panel_columns, columns = value_dim_ - column;
      const T* from = memory(level, h) + column;
      T* sums = sums_ + (panel - first) * panel_columns;
      Index stride = value_dim_;
      if (count == 1 && columns >= 2 * panel_columns && panel + 1 < last) {
        // A row alone has too few sums to hide the latency of the multiply-adds.
        read(one, std::integral_constant<Index, 2>{}, 0, from, stride, sums);
        ++panel;
        continue;
      }
      if (columns < panel_columns) {
        merge(from, value_dim_, T(1), false, key_dim_, columns, edge_, panel_columns);
        from = edge_, stride = panel_columns;
      }
      for_tiles(count, [&](auto rows, Index t) SEQMIX_INLINE_LAMBDA { read(rows, one, t, from, stride, sums); });
    }
  }

  /// Lets the fades follow the memories.
  void count_up(Index h, Index count, Index position) {
    const T rest = since_[count - 1], loss = expm1(log_);
    for (Index i = 0; i < levels_; ++i) {
      if (position >> i & 1) fade(i, h) = log_ > T(-0.25) ? std::fma(fade(i, h), loss, fade(i, h)) : fade(i, h) * rest;
    }
    for (Index i = 0; i < levels_; ++i) {
      if (count >> i & 1) fade(free_level(position, i), h) = T(1);
    }
  }

  const LogLinearProblem<T>& problem_;
  const Index first_, last_;
  const Index heads_ = problem_.state.memory.shape()[1], key_dim_ = problem_.state.memory.shape()[2];
  const Index value_dim_ = problem_.state.memory.shape()[3], levels_ = problem_.state.levels();
  const Index pitch_ = padded<T>(key_dim_), panels_ = (value_dim_ + panel_columns - 1) / panel_columns;
  const Index first_head_ = first_ / panels_, last_head_ = (last_ - 1) / panels_;
  Index next_head_ = 0, next_ = 0, next_end_ = 0;
  T factor_[chunk], since_[chunk];  // decays of the tokens of a block, and of what came before it
  T log_;                           // of the decay over the block
  T *query_, *faded_query_;         // [chunk][pitch]
  T *key_, *packed_key_;      // [chunk][pitch], faded until the block's end; [chunk / panel_columns][K][panel_columns]
  T *mix_, *values_, *sums_;  // [chunk][chunk], A; [chunk][panel_columns]; [chunk][columns of this thread]
  T *edge_, *fade_;           // [K][panel_columns]; [heads of this thread][levels]
};

}  // namespace detail

/// Evaluates the recurrence, and leaves the state as after the last token. Shapes are asserted only. Runs in parallel over
/// heads and value columns, where there are enough tokens; results have the same bits for any number of threads.
/// O(L H K V log(position)) time, O(H K + K V) scratch for each thread. Allocates nothing once `workspace` is warm.
template <class T>
void log_linear_recurrence(const LogLinearProblem<T>& problem, Workspace& workspace) {
  constexpr Index fewest_to_share = 8;
  const Index length = problem.output.length(), value_dim = problem.output.head_dim();
  assert(problem.state.position + length <= problem.state.capacity());
  const Index units = problem.output.heads() * ((value_dim + 2 * lanes<T> - 1) / (2 * lanes<T>));
  if (length == 0 || units == 0) return;
  const auto frame = workspace.frame();
  // Threads that share a head all start from its fades, so none may overwrite them before the others have read them.
  const auto fade = workspace.take<T>(Index(problem.state.fade.size()));
  std::copy(problem.state.fade.begin(), problem.state.fade.end(), fade.begin());
  const Index workers = length < fewest_to_share ? 1 : std::min(workspace.concurrency(), units);
  workspace.parallel_for(workers, [&](Index worker, Workspace& local) {
    detail::LogLinearSweep<T>(problem, fade.data(), units * worker / workers, units * (worker + 1) / workers, local)
        .run();
  });
  problem.state.position += length;
}

}  // namespace seqmix::inline SEQMIX_ARCH
