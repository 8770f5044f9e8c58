// Averages over tokens with weights that every channel has of its own: the core of attention-free transformers.
//
//   y_t = sum over j of e^(k_j + bias(t, j)) v_j / (the same sum without v_j),   j <= t where causal
//
// Near tokens, those t - before < j <= t + after, have biases, the same for all channels of a head; far ones have bias 0.
//
//   Glossary  L length   H heads   d channels of a head   P tokens before the first that may still be near
//
// Far tokens are running sums over e^p, p the largest key so far, in two parts each (see engine/summed_memory.hpp), from the
// left and where not causal from the right too. They and the near ones are summed apart and then added: no sum over all
// tokens is ever corrected by what near tokens have too much of, which cancels where biases are very negative.
//
// Near tokens are products of register tiles: blocks of rows, whose weights e^(bias - largest of the row) are shared by
// many channels, times e^(k - r) and e^(k - r) v, where the reference r of a channel is the largest key that all rows of
// the block see. Later keys of the block may exceed it a little. A row that sees one far above it, or whose sum is so small
// that terms may have been lost below the smallest number (a large key may meet a very negative bias), is summed once more,
// directly, with the largest sum of key and bias as reference. Whether it is depends on nothing that the row doesn't see.
#pragma once

#include <algorithm>
#include <cassert>
#include <limits>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/simd/batch.hpp>
#include <seqmix/simd/math.hpp>
#include <seqmix/simd/microkernel.hpp>

namespace seqmix::inline SEQMIX_ARCH {

/// Rows of far sums: p, sum of e^(k - p) v, what that sum's last numbers are too short for, and the same without v.
inline constexpr Index attention_free_sums = 5;

/// p before the first token.
template <class T>
inline constexpr T attention_free_empty = std::numeric_limits<T>::lowest();

/// What attention_free evaluates. Tokens count from 0 at the first row; those before it are negative.
template <class T>
struct AttentionFreeProblem {
  HeadSequence<const T> key, value;  ///< [L, H, d]
  HeadSequence<T> output;            ///< [L, H, d]

  /// The last P tokens before, in two parts, oldest first: all that are still near to a row. Causal only.
  HeadSequence<const T> past_key[2] = {}, past_value[2] = {};

  /// The bias of token j for row t of head h is bias[h * head_step + t * row_step + j].
  const T* bias = nullptr;
  Index row_step = 0, head_step = 0;

  bool causal = true;
  Index before = 0;  ///< near tokens up to the row's own: j > t - before
  Index after = 0;   ///< near tokens after it; 0 where causal

  /// [5, H d]: all tokens that are neither rows nor in the past. Those that the row after the last is not near to are
  /// added. Causal only.
  Sequence<T> sums = {};
  Index position = 0;  ///< tokens before row 0

  Index past() const { return past_key[0].length() + past_key[1].length(); }
};

namespace detail {

/// Sums of weights and weighted values over e^reference.
template <class T>
struct WeightedSums {
  Batch<T> reference, numerator, denominator;

  static WeightedSums none() { return {broadcast(attention_free_empty<T>), broadcast(T(0)), broadcast(T(0))}; }
  WeightedSums operator+(const WeightedSums& other) const {
    const Batch<T> largest = max(reference, other.reference);
    const Batch<T> own = exp_decay(reference - largest), others = exp_decay(other.reference - largest);
    return {largest, fma(numerator, own, other.numerator * others), fma(denominator, own, other.denominator * others)};
  }
};

/// A registerful of channels of running sums; tokens are added one by one. `place` holds the five rows, `stride` apart.
template <class T>
class RunningSums {
 public:
  static constexpr Index width = lanes<T>;

  SEQMIX_ALWAYS_INLINE static void add(T* place, Index stride, const Batch<T>& key, const Batch<T>& value) {
    Batch<T> reference = load(place);
    if (any(key > reference)) {
      const Batch<T> larger = max(reference, key), factor = exp_decay(reference - larger);
      for (Index row = 1; row < attention_free_sums; ++row) {
        store(place + row * stride, load(place + row * stride) * factor);
      }
      store(place, reference = larger);
    }
    const Batch<T> weight = exp_decay(key - reference);
    store(place + 2 * stride, fma(weight, value, load(place + 2 * stride)));
    store(place + 4 * stride, load(place + 4 * stride) + weight);
  }

  /// Moves what is large enough of the second parts into the first.
  static void settle(T* place, Index stride) {
    for (Index row = 1; row < attention_free_sums; row += 2) {
      T *const sum = place + row * stride, *const rest = sum + stride;
      const ExactSum<T> exact = two_sum<T>(load(sum), load(rest));
      store(sum, exact.sum);
      store(rest, exact.error);
    }
  }

  SEQMIX_ALWAYS_INLINE static WeightedSums<T> read(const T* place, Index stride) {
    return {load(place), load(place + stride) + load(place + 2 * stride),
            load(place + 3 * stride) + load(place + 4 * stride)};
  }
};

/// Some registers of channels of one head, over all rows.
template <class T>
class AttentionFreeKernel {
 public:
  static constexpr Index width = lanes<T>;

  /// Registers first .. first + count - 1 of head h.
  AttentionFreeKernel(const AttentionFreeProblem<T>& problem, Index h, Index first, Index count, Workspace& workspace)
      : problem_(problem),
        key_(problem.key.head(h)),
        value_(problem.value.head(h)),
        output_(problem.output.head(h)),
        bias_(problem.bias + h * problem.head_step),
        column_(first * width),
        vectors_(count),
        channels_(std::min(count * width, key_.channels() - column_)),
        far_(problem.before <= problem.past() + problem.key.length() || problem.position > problem.past() ||
             (!problem.causal && problem.after + 1 < problem.key.length())),
        near_(problem.before + problem.after > 0) {
    for (Index part = 0; part < 2; ++part) {
      if (problem.past_key[part].length() == 0) continue;
      past_key_[part] = problem.past_key[part].head(h);
      past_value_[part] = problem.past_value[part].head(h);
    }
    const Index blocks = (key_.length() + block_rows - 1) / block_rows;
    const Index sums = attention_free_sums * vectors_ * width;
    left_ = workspace.take<T>(sums).data();
    if (!problem.causal) checkpoints_ = workspace.take<T>((blocks + 1) * sums).data();
    if (!near_) return;
    far_sums_ = workspace.take<T>(block_rows * vectors_ * 3 * width).data();
    near_sums_ = workspace.take<T>(block_rows * vectors_ * 2 * width).data();
    terms_ = workspace.take<T>(block_tokens * vectors_ * 2 * width).data();
    reference_ = workspace.take<T>(vectors_ * width).data();
    too_large_from_ = workspace.take<Index>(vectors_).data();
    weights_ = workspace.take<T>(tall_tile_rows * block_tokens + width).data();
    largest_bias_ = workspace.take<T>(block_rows).data();
  }

  void run(Index head_column) {
    const Index L = key_.length();
    begin_left(head_column);
    if (!problem_.causal && far_) sum_from_right();
    if (!problem_.causal && !near_) {  // the same for all rows
      for (Index v = 0; v < vectors_; ++v) {
        const WeightedSums<T> all = Sums::read(checkpoints_ + v * width, sums_stride());
        const Batch<T> y = divide(all.numerator, all.denominator);
        for (Index t = 0; t < L; ++t) put(t, v, y);
      }
      return;
    }
    for (Index t = 0; t < L && !near_; ++t) {
      add_token(left_, t, problem_.position + t);
      for (Index v = 0; v < vectors_; ++v) {
        const WeightedSums<T> sums = Sums::read(left_ + v * width, sums_stride());
        put(t, v, divide(sums.numerator, sums.denominator));
      }
    }
    for (Index begin = 0; begin < L && near_; begin += block_rows) {
      const Index end = std::min(begin + block_rows, L);
      sum_far(begin, end);
      sum_near(begin, end);
      for (Index t = begin; t < end; ++t) {
        for (Index v = 0; v < vectors_; ++v) {
          WeightedSums<T> sums = near_at(t, t - begin, v);
          if (far_) sums = far_at(t - begin, v) + sums;
          put(t, v, divide(sums.numerator, sums.denominator));
        }
      }
    }
    if (problem_.causal && far_) end_left(head_column);
  }

 private:
  /// Rows that share terms and references; tokens whose terms are in the caches at a time.
  static constexpr Index block_rows = 120, block_tokens = 64;
  /// Tokens after which running sums are settled.
  static constexpr Index settle_tokens = 32;
  /// Keys may exceed the reference by this; sums below `least` may have lost terms: each is below 2^-102 (2^-998), for
  /// e^16 times the smallest number, and there may be millions.
  static constexpr T excess = 16, least = sizeof(T) == 4 ? T(0x1p-56) : T(0x1p-900);
  using Sums = RunningSums<T>;

  Index sums_stride() const { return vectors_ * width; }

  Batch<T> get(const T* row, Index v) const { return load_some(row + v * width, channels_ - v * width); }
  void put(Index t, Index v, const Batch<T>& value) const {
    store_some(output_.row(t) + column_ + v * width, value, channels_ - v * width);
  }

  /// Token j of keys or values, from the past or of this call.
  const T* row(const Sequence<const T>& rows, const Sequence<const T> (&past)[2], Index j) const {
    if (j >= 0) return rows.row(j) + column_;
    j += past[1].length();
    return (j >= 0 ? past[1].row(j) : past[0].row(j + past[0].length())) + column_;
  }
  const T* key_at(Index j) const { return row(key_, past_key_, j); }
  const T* value_at(Index j) const { return row(value_, past_value_, j); }

  // --- far tokens ---

  void begin_left(Index head_column) {
    for (Index row = 0; row < attention_free_sums; ++row) {
      T* const to = left_ + row * sums_stride();
      std::fill_n(to, sums_stride(), row == 0 ? attention_free_empty<T> : T(0));
      if (problem_.causal) std::copy_n(problem_.sums.row(row) + head_column + column_, channels_, to);
    }
  }
  /// Those that are not near to the next row either.
  void end_left(Index head_column) const {
    const Index L = key_.length(), j = L - problem_.before;
    if (problem_.before > 0 && j >= -problem_.past()) add_token(left_, j, problem_.position + L);
    for (Index row = 0; row < attention_free_sums; ++row) {
      std::copy_n(left_ + row * sums_stride(), channels_, problem_.sums.row(row) + head_column + column_);
    }
  }

  void add_token(T* sums, Index j, Index count) const {
    const T *const key = key_at(j), *const value = value_at(j);
    const bool settle = count % settle_tokens == settle_tokens - 1;
    for (Index v = 0; v < vectors_; ++v) {
      Sums::add(sums + v * width, sums_stride(), get(key, v), get(value, v));
      if (settle) Sums::settle(sums + v * width, sums_stride());
    }
  }

  /// checkpoints_[b]: the tokens that are far on the right of the last row of block b.
  void sum_from_right() {
    const Index L = key_.length(), blocks = (L + block_rows - 1) / block_rows;
    const Index size = attention_free_sums * sums_stride();
    T* const sums = checkpoints_ + blocks * size;
    std::fill_n(sums, sums_stride(), attention_free_empty<T>);
    std::fill_n(sums + sums_stride(), size - sums_stride(), T(0));
    Index next = L - 1;
    for (Index b = blocks - 1; b >= 0; --b) {
      const Index last = near_ ? std::min((b + 1) * block_rows, L) - 1 + problem_.after : -1;
      for (; next > last; --next) add_token(sums, next, L - 1 - next);
      std::copy_n(sums, size, checkpoints_ + b * size);
    }
  }

  /// The far tokens of every row of the block.
  void sum_far(Index begin, Index end) {
    if (!far_) return;
    for (Index t = begin; t < end; ++t) {
      const Index j = t - problem_.before;
      if (j >= (problem_.causal ? -problem_.past() : Index(0))) add_token(left_, j, problem_.position + t);
      for (Index v = 0; v < vectors_; ++v) put_far(t - begin, v, Sums::read(left_ + v * width, sums_stride()));
    }
    if (problem_.causal) return;
    const Index L = key_.length();
    T* const right = checkpoints_ + begin / block_rows * attention_free_sums * sums_stride();
    for (Index t = end - 1; t >= begin; --t) {
      for (Index v = 0; v < vectors_; ++v) {
        put_far(t - begin, v, far_at(t - begin, v) + Sums::read(right + v * width, sums_stride()));
      }
      if (t + problem_.after < L) add_token(right, t + problem_.after, L - t);
    }
  }

  WeightedSums<T> far_at(Index row, Index v) const {
    const T* const from = far_sums_ + (row * vectors_ + v) * 3 * width;
    return {load(from), load(from + width), load(from + 2 * width)};
  }
  void put_far(Index row, Index v, const WeightedSums<T>& sums) const {
    T* const to = far_sums_ + (row * vectors_ + v) * 3 * width;
    store(to, sums.reference), store(to + width, sums.numerator), store(to + 2 * width, sums.denominator);
  }

  // --- near tokens ---

  struct Range {
    Index begin, end;
  };
  /// The near tokens of row t.
  Range near_of(Index t) const {
    return {std::max(t - problem_.before + 1, -problem_.past()), std::min(t + problem_.after + 1, key_.length())};
  }
  const T* bias_of(Index t, Index j) const { return bias_ + (t * problem_.row_step + j); }

  /// Near sums of the rows of a block, over the references.
  void sum_near(Index begin, Index end) {
    const Range tokens{near_of(begin).begin, near_of(end - 1).end};
    std::fill_n(near_sums_, (end - begin) * vectors_ * 2 * width, T(0));
    std::fill_n(too_large_from_, vectors_, end);
    for (Index v = 0; v < vectors_; ++v) {
      Batch<T> largest = broadcast(attention_free_empty<T>);
      const Index seen_by_all = problem_.causal ? std::min(begin + 1, tokens.end) : tokens.end;
      for (Index j = tokens.begin; j < seen_by_all; ++j) largest = max(get(key_at(j), v), largest);
      store(reference_ + v * width, largest);
    }
    for (Index t = begin; t < end; ++t) {
      const Range near = near_of(t);
      T largest = attention_free_empty<T>;
      const T* const bias = bias_of(t, near.begin);
      for (Index i = 0; i < near.end - near.begin; ++i) largest = std::max(largest, bias[i]);
      largest_bias_[t - begin] = largest;
    }
    for (Index first = tokens.begin; first < tokens.end; first += block_tokens) {
      const Range block{first, std::min(first + block_tokens, tokens.end)};
      for (Index v = 0; v < vectors_; ++v) make_terms(begin, block, v);
      for (Index t = begin; t < end; t += tall_tile_rows) {
        const Index rows = std::min(tall_tile_rows, end - t);
        // Tokens that some row of the strip sees, and those after which not all rows see all.
        const Range seen{std::max(near_of(t).begin, block.begin), std::min(near_of(t + rows - 1).end, block.end)};
        if (seen.begin >= seen.end) continue;
        const Index common = problem_.causal ? std::clamp(t + 1, seen.begin, seen.end) : seen.end;
        weigh(t, rows, begin, seen);
        with_rows<tall_tile_rows>(
            rows, [&](auto count) { add_strip<count>(t - begin, seen.begin - block.begin, common - seen.begin); });
        for (Index r = 1; r < rows; ++r) {
          const Index from = std::max(common, seen.begin), to = std::min(t + r + 1, seen.end);
          if (problem_.causal && from < to) add_row(t + r - begin, r, from - seen.begin, from - block.begin, to - from);
        }
      }
    }
  }

  /// e^(k - r) v and e^(k - r) of a block of tokens; notes the first that is far above the reference.
  void make_terms(Index begin, Range block, Index v) {
    const Batch<T> reference = load(reference_ + v * width);
    T* to = terms_ + v * block_tokens * 2 * width;
    for (Index j = block.begin; j < block.end; ++j, to += 2 * width) {
      const Batch<T> exponent = get(key_at(j), v) - reference, weight = exp_decay(exponent);
      if (j > begin && any(exponent > broadcast(excess))) too_large_from_[v] = std::min(too_large_from_[v], j);
      store(to, weight * get(value_at(j), v));
      store(to + width, weight);
    }
  }

  /// The weights of some rows and the tokens `seen`: e^(bias - largest of the row), 0 where not near.
  void weigh(Index t, Index rows, Index begin, Range seen) const {
    for (Index r = 0; r < rows; ++r) {
      const Range all = near_of(t + r);
      const Range near{std::clamp(all.begin, seen.begin, seen.end), std::clamp(all.end, seen.begin, seen.end)};
      T* const to = weights_ + r * block_tokens;
      std::fill(to, to + near.begin - seen.begin, T(0));
      if (near.begin < near.end) {
        const Batch<T> largest = broadcast(largest_bias_[t + r - begin]);
        transform(bias_of(t + r, near.begin), to + near.begin - seen.begin, near.end - near.begin,
                  [&](const Batch<T>& bias) SEQMIX_INLINE_LAMBDA { return exp_decay(bias - largest); });
      }
      std::fill(to + near.end - seen.begin, to + seen.end - seen.begin, T(0));
    }
  }

  /// Adds `count` tokens, from number `place` of the block on, to Rows rows.
  template <Index Rows>
  [[gnu::noinline]] void add_strip(Index row, Index place, Index count) const {
    const Index stride = vectors_ * 2 * width;
    for (Index v = 0; v < vectors_; ++v) {
      T* const sums = near_sums_ + (row * vectors_ + v) * 2 * width;
      multiply_tile<Rows, 2>(
          static_cast<const T*>(weights_), block_tokens, Index(1),
          static_cast<const T*>(terms_ + (v * block_tokens + place) * 2 * width), 2 * width, Index(0), count,
          [&](auto r, auto vector) SEQMIX_INLINE_LAMBDA { return load(sums + r * stride + vector * width); },
          [&](auto r, auto vector, const Batch<T>& sum)
              SEQMIX_INLINE_LAMBDA { store(sums + r * stride + vector * width, sum); });
    }
  }

  /// The same for row r of a strip alone, with weights from number `weight` on.
  void add_row(Index row, Index r, Index weight, Index place, Index count) const {
    const T* const weights = weights_ + r * block_tokens + weight;
    for (Index v = 0; v < vectors_; ++v) {
      T* const sums = near_sums_ + (row * vectors_ + v) * 2 * width;
      const T* const terms = terms_ + (v * block_tokens + place) * 2 * width;
      Batch<T> numerator = load(sums), denominator = load(sums + width);
      for (Index i = 0; i < count; ++i) {
        numerator = fma(broadcast(weights[i]), load(terms + i * 2 * width), numerator);
        denominator = fma(broadcast(weights[i]), load(terms + i * 2 * width + width), denominator);
      }
      store(sums, numerator), store(sums + width, denominator);
    }
  }

  /// What the near tokens give row t, which is `row` of its block.
  WeightedSums<T> near_at(Index t, Index row, Index v) const {
    const T* const sums = near_sums_ + (row * vectors_ + v) * 2 * width;
    const Batch<T> denominator = load(sums + width);
    if (t >= too_large_from_[v] || any(denominator < broadcast(least))) [[unlikely]] {
      return near_directly(t, v);
    }
    return {load(reference_ + v * width) + broadcast(largest_bias_[row]), load(sums), denominator};
  }

  [[gnu::noinline]] WeightedSums<T> near_directly(Index t, Index v) const {
    const Range near = near_of(t);
    const T* const bias = bias_of(t, near.begin);
    WeightedSums<T> sums = WeightedSums<T>::none();
    for (Index j = near.begin; j < near.end; ++j) {
      sums.reference = max(get(key_at(j), v) + broadcast(bias[j - near.begin]), sums.reference);
    }
    for (Index j = near.begin; j < near.end; ++j) {
      const Batch<T> weight = exp_decay(get(key_at(j), v) + broadcast(bias[j - near.begin]) - sums.reference);
      sums.numerator = fma(weight, get(value_at(j), v), sums.numerator);
      sums.denominator += weight;
    }
    return sums;
  }

  const AttentionFreeProblem<T>& problem_;
  Sequence<const T> key_, value_;
  Sequence<T> output_;
  Sequence<const T> past_key_[2], past_value_[2];
  const T* bias_;
  Index column_, vectors_, channels_;
  bool far_, near_;                  // whether there are such tokens
  T* left_ = nullptr;                // [5][vectors][width]
  T* checkpoints_ = nullptr;         // [blocks + 1] times the same
  T* far_sums_ = nullptr;            // [block_rows][vectors][3][width]
  T* near_sums_ = nullptr;           // [block_rows][vectors][2][width]
  T* terms_ = nullptr;               // [vectors][block_tokens][2][width]
  T* reference_ = nullptr;           // [vectors][width]
  Index* too_large_from_ = nullptr;  // [vectors]
  T* weights_ = nullptr;             // [tall_tile_rows][block_tokens]
  T* largest_bias_ = nullptr;        // [block_rows]
};

}  // namespace detail

/// Evaluates `problem`. Shapes are asserted only. The same bits for any number of threads, and whatever the tokens hold that a
/// row doesn't see. O(L H d (before + after)) time; scratch for some rows, and where not causal L / 20 times the channels.
/// Allocates nothing once `workspace` is warm.
template <class T>
void attention_free(const AttentionFreeProblem<T>& problem, Workspace& workspace) {
  const Index L = problem.output.length(), H = problem.output.heads(), d = problem.output.head_dim();
  assert(problem.key.length() == L && problem.value.length() == L &&
         problem.past() <= std::max(problem.before, Index(0)));
  if (L == 0 || d == 0) return;
  const Index vectors = (d + lanes<T> - 1) / lanes<T>;
  // Registers of channels that share the weights of near tokens, and without such the rows of memory.
  const Index alone = problem.before + problem.after > 0 ? 16 : 128;
  const Index together = workspace.concurrency() == 1 ? alone : 8, groups = (vectors + together - 1) / together;
  workspace.parallel_for(H * groups, [&](Index piece, Workspace& local) {
    const Index h = piece / groups, group = piece % groups;
    const Index first = group * vectors / groups, last = (group + 1) * vectors / groups;
    detail::AttentionFreeKernel<T>(problem, h, first, last - first, local).run(h * d);
  });
}

}  // namespace seqmix::inline SEQMIX_ARCH
