// A few rows of queries against keys that lie in memory as rows: the streaming kernel of the attention engine.
//
// For one token per call every key and value is used once per query head, so the time is that of reading them. A block of
// as many keys as a vector has lanes gives one vector of logits: one accumulator per key runs along head_dim, a
// transposition adds up their lanes. Nothing is packed or copied; memory is asked for ahead of its use.
#pragma once

#include <algorithm>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/attention_mask.hpp>
#include <seqmix/engine/attention_pack.hpp>
#include <seqmix/engine/attention_score.hpp>
#include <seqmix/engine/attention_tile.hpp>
#include <seqmix/simd/batch.hpp>
#include <span>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// Keys that are worked on together: their logits and, for heads of usual size, their keys or values fit the first- or
/// second-level cache when several query heads share them.
inline constexpr Index decode_chunk = 256;

/// How far ahead of its use memory is asked for: what is on its way within one latency of the third-level cache.
inline constexpr Index prefetch_bytes = 4096;

/// The sums of the lanes of each batch: lane i of the result is that of sum[i].
template <class T>
SEQMIX_ALWAYS_INLINE Batch<T> add_across(Batch<T> (&sum)[std::size_t(lanes<T>)]) {
  transpose(sum);
  // As a balanced tree: a chain of additions would take longer than the loads.
  const auto add_halves = [&]<Index Half>(auto self, std::integral_constant<Index, Half>) SEQMIX_INLINE_LAMBDA {
    unroll<Half>([&](auto i) SEQMIX_INLINE_LAMBDA { sum[i] = sum[i] + sum[i + Half]; });
    if constexpr (Half > 1) self(self, std::integral_constant<Index, Half / 2>());
  };
  if constexpr (lanes < T >> 1) add_halves(add_halves, std::integral_constant<Index, lanes<T> / 2>());
  return sum[0];
}

/// products[0 .. lanes) = <query, rows 0 .. count - 1 of keys>, anything in the lanes beyond. query is padded with zeros
/// to whole vectors. 1 <= count <= lanes.
template <class T>
SEQMIX_ALWAYS_INLINE Batch<T> multiply_rows(const T* query, const T* keys, Index stride, Index count, Index head_dim) {
  constexpr Index W = lanes<T>;
  Batch<T> sum[std::size_t(W)];
  unroll<W>([&](auto key) SEQMIX_INLINE_LAMBDA { sum[key] = broadcast(T(0)); });
  const Index whole = head_dim / W * W;
  if (count == W) {
    for (Index d = 0; d < whole; d += W) {
      const Batch<T> q = load(query + d);
      unroll<W>([&](auto key) SEQMIX_INLINE_LAMBDA { sum[key] = fma(q, load(keys + key * stride + d), sum[key]); });
    }
  } else {
    for (Index d = 0; d < whole; d += W) {
      const Batch<T> q = load(query + d);
      unroll<W>([&](auto key) SEQMIX_INLINE_LAMBDA {
        if (key < count) sum[key] = fma(q, load(keys + key * stride + d), sum[key]);
      });
    }
  }
  if (whole < head_dim) {
    const Batch<T> q = load(query + whole);
    unroll<W>([&](auto key) SEQMIX_INLINE_LAMBDA {
      if (key < count) sum[key] = fma(q, load_partial(keys + key * stride + whole, head_dim - whole), sum[key]);
    });
  }
  return add_across(sum);
}

/// Inner products of `rows` queries [rows, padded_query] with the keys of a chunk, into logits [rows, decode_chunk]: every
/// key is read from memory once.
template <class T>
void multiply_chunk(const T* queries, Index padded_query, Index rows, Sequence<const T> keys, T* logits) {
  constexpr Index W = lanes<T>;
  const Index head_dim = keys.channels();
  const Index ahead = std::max(W, round_up(prefetch_bytes / Index(sizeof(T)) / std::max<Index>(1, head_dim), W));
  for (Index t = 0; t < keys.length(); t += W) {
    const Index count = std::min(W, keys.length() - t);
    const T* later = keys.data() + (t + ahead) * keys.stride();
    if (keys.stride() == head_dim) {
      prefetch_row(later, W * head_dim);
    } else {
      for (Index lane = 0; lane < W; ++lane) prefetch_row(later + lane * keys.stride(), head_dim);
    }
    for (Index r = 0; r < rows; ++r) {
      store(logits + r * decode_chunk + t,
            multiply_rows(queries + r * padded_query, keys.row(t), keys.stride(), count, head_dim));
    }
  }
}

/// mixed[0 .. Vectors vectors) += sum over t of weights[t] * rows[t].
template <Index Vectors, class T>
SEQMIX_ALWAYS_INLINE void add_rows(const T* weights, const T* rows, Index stride, Index count, T* mixed) {
  constexpr Index W = lanes<T>;
  const Index ahead = prefetch_bytes / Index(sizeof(T));
  Batch<T> sum[std::size_t(Vectors)];
  unroll<Vectors>([&](auto v) SEQMIX_INLINE_LAMBDA { sum[v] = load(mixed + v * W); });
  for (Index t = 0; t < count; ++t) {
    const T* row = rows + t * stride;
    const Batch<T> weight = broadcast(weights[t]);
    unroll<Vectors>([&](auto v) SEQMIX_INLINE_LAMBDA {
      if constexpr (v * W * Index(sizeof(T)) % Index(memory_alignment) == 0) prefetch_read(row + ahead + v * W);
      sum[v] = fma(weight, load(row + v * W), sum[v]);
    });
  }
  unroll<Vectors>([&](auto v) SEQMIX_INLINE_LAMBDA { store(mixed + v * W, sum[v]); });
}

/// mixed[0 .. width) += sum over t of weights[t] * rows[t]; mixed is writable up to a whole vector.
template <class T>
void add_value_rows(const T* weights, const T* rows, Index stride, Index count, Index width, T* mixed) {
  constexpr Index W = lanes<T>;
  Index c = 0;
  for (; c + 8 * W <= width; c += 8 * W) add_rows<8>(weights, rows + c, stride, count, mixed + c);
  for (; c + 2 * W <= width; c += 2 * W) add_rows<2>(weights, rows + c, stride, count, mixed + c);
  for (; c + W <= width; c += W) add_rows<1>(weights, rows + c, stride, count, mixed + c);
  if (c < width) {
    Batch<T> sum = load(mixed + c);
    for (Index t = 0; t < count; ++t) {
      sum = fma(broadcast(weights[t]), load_partial(rows + t * stride + c, width - c), sum);
    }
    store(mixed + c, sum);
  }
}

/// Attention of all rows of the query heads that share one head of keys and values. query, output: all heads,
/// [rows, heads, ..]; the heads are first_head .. first_head + group - 1.
template <class T, class Mask, class Score>
class DecodeKernel {
 public:
  DecodeKernel(const Mask& mask, const Score& score, std::span<const KeyValueSegment<T>> segments, Index kv_head)
      : mask_(mask), score_(score), segments_(segments), kv_head_(kv_head) {}

  void run(HeadSequence<const T> query, Index first_head, Index group, ConstToken<T> sink, HeadSequence<T> output,
           Workspace& workspace) {
    const auto frame = workspace.frame();
    const Index rows = query.length();
    head_dim_ = query.head_dim();
    value_dim_ = output.head_dim();
    const Index padded_query = round_up(head_dim_, W), padded_value = round_up(value_dim_, W);
    T* scaled = workspace.take<T>(group * rows * padded_query).data();
    T* mixed = workspace.take<T>(group * rows * padded_value).data();
    sums_ = workspace.take<T>(padded_value).data();
    logits_ = workspace.take<T>(group * rows * decode_chunk).data();
    RowSoftmax<T>* softmax = workspace.take<RowSoftmax<T>>(group * rows).data();
    for (Index g = 0; g < group; ++g) {
      const RowSoftmax<T> start =
          sink.channels() > 0 ? RowSoftmax<T>(to_log2_domain(sink[first_head + g])) : RowSoftmax<T>();
      for (Index i = 0; i < rows; ++i) {
        load_scaled(query.row(i, first_head + g), score_.query_factor(), scaled + (g * rows + i) * padded_query,
                    head_dim_, padded_query);
        softmax[g * rows + i] = start;
      }
    }
    std::fill(mixed, mixed + group * rows * padded_value, T(0));

    Index base = 0;
    for (const auto& segment : segments_) {
      const Sequence<const T> keys = segment.key.head(kv_head_), values = segment.value.head(kv_head_);
      const IndexRange all = seen_by_any(first_head, group, rows).intersect({base, base + segment.length()});
      for (Index begin = all.begin; begin < all.end; begin += decode_chunk) {
        const IndexRange chunk{begin, std::min(begin + decode_chunk, all.end)};
        multiply_chunk(scaled, padded_query, group * rows, keys.rows(chunk.begin - base, chunk.size()), logits_);
        for (Index g = 0; g < group; ++g) {
          const auto mask = mask_.head(first_head + g);
          const auto score = score_.head(first_head + g);
          for (Index i = 0; i < rows; ++i) {
            const Index r = g * rows + i;
            attend_chunk(mask, score, i, chunk, values.rows(chunk.begin - base, chunk.size()),
                         logits_ + r * decode_chunk, softmax[r], mixed + r * padded_value);
          }
        }
      }
      base += segment.length();
    }
    for (Index g = 0; g < group; ++g) {
      for (Index i = 0; i < rows; ++i) {
        const Index r = g * rows + i;
        store_scaled(mixed + r * padded_value, softmax[r].inverse_sum(), output.row(i, first_head + g), value_dim_);
      }
    }
  }

 private:
  static constexpr Index W = lanes<T>;

  IndexRange seen_by_any(Index first_head, Index group, Index rows) const {
    IndexRange any = mask_.head(first_head).range({0, rows});
    for (Index g = 1; g < group; ++g) {
      const IndexRange range = mask_.head(first_head + g).range({0, rows});
      any = {std::min(any.begin, range.begin), std::max(any.end, range.end)};
    }
    return any;
  }

  template <class HeadMask, class HeadScore>
  void attend_chunk(const HeadMask& mask, const HeadScore& score, Index row, IndexRange chunk, Sequence<const T> values,
                    T* logits, RowSoftmax<T>& softmax, T* mixed) {
    const Coverage coverage = mask.cover({row, row + 1}, chunk);
    if (coverage == Coverage::none) return;
    const Index count = chunk.size(), padded = round_up(count, 2 * W);
    const auto logit = score.row(row);
    const Batch<T> outside = broadcast(minus_infinity<T>);
    Batch<T> maximum = outside;
    bool all = true;  // no key of the chunk has to be avoided
    for (Index j = 0; j < padded; j += W) {
      Batch<T> value = outside;
      if (j < count) {
        value = logit(load(logits + j), chunk.begin + j);
        if (count - j < W) value = select(lane_index<T>() < broadcast(static_cast<T>(count - j)), value, outside);
        if (coverage == Coverage::partial) {
          const IndexRange keys{chunk.begin + j, chunk.begin + std::min(j + W, count)};
          if (mask.cover({row, row + 1}, keys) != Coverage::full) {
            value = select(mask.template keep<T>(row, keys.begin), value, outside);
          }
        }
        all &= coverage == Coverage::full;
      }
      store(logits + j, value);
      maximum = max_propagating(value, maximum);
    }
    const T rescale = softmax.weigh(logits, padded, reduce_max(maximum));
    std::fill(sums_, sums_ + round_up(value_dim_, W), T(0));
    const auto seen = [&](Index j) {
      return (all || mask.template keep<T>(row, chunk.begin + j).get(0)) && !score_.excludes(chunk.begin + j);
    };
    if (all && !excludes_any(chunk)) {
      add_value_rows(logits, values.data(), values.stride(), count, value_dim_, sums_);
    } else {
      // Run by run of keys that the row sees: weight 0 times an infinite or NaN value would be NaN.
      for (Index begin = 0; begin < count;) {
        Index end = begin;
        while (end < count && seen(end)) ++end;
        if (end > begin) {
          add_value_rows(logits + begin, values.row(begin), values.stride(), end - begin, value_dim_, sums_);
        }
        begin = end;
        while (begin < count && !seen(begin)) ++begin;
      }
    }
    for (Index c = 0; c < value_dim_; c += W) {
      store(mixed + c, fma(load(mixed + c), broadcast(rescale), load(sums_ + c)));
    }
  }

  bool excludes_any(IndexRange keys) const {
    bool any = false;
    if constexpr (Score::may_exclude) {
      for (Index key = keys.begin; key < keys.end; ++key) any |= score_.excludes(key);
    }
    return any;
  }

  const Mask& mask_;
  const Score& score_;
  std::span<const KeyValueSegment<T>> segments_;
  Index kv_head_;
  Index head_dim_ = 0, value_dim_ = 0;
  T* logits_ = nullptr;  // [group * rows][decode_chunk]
  T* sums_ = nullptr;    // [value_dim]: of one row and chunk
};

}  // namespace detail

}  // namespace seqmix::inline SEQMIX_ARCH
