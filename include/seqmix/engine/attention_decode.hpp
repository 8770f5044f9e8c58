// A few rows of queries against keys that lie in memory as rows: the streaming kernel of the attention engine.
//
// For one token per call every key and value is used once per query head, so the time is that of reading them. A block of
// as many keys as a vector has lanes gives one vector of logits: one accumulator per key runs along head_dim, then their
// lanes are added up. Nothing is packed or copied; memory is asked for ahead of its use, and query heads that share keys
// and values read them from memory once.
//
// The keys are cut into pieces, each with an online softmax of its own, and the pieces are put together in order: so
// several threads can share even a single head, and the bits don't depend on how many they are.
#pragma once

#include <algorithm>
#include <seqmix/core/view.hpp>
#include <seqmix/core/workspace.hpp>
#include <seqmix/engine/attention_mask.hpp>
#include <seqmix/engine/attention_pack.hpp>
#include <seqmix/engine/attention_score.hpp>
#include <seqmix/engine/attention_tile.hpp>
#include <seqmix/simd/batch.hpp>
#include <seqmix/simd/microkernel.hpp>
#include <span>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// Keys that are worked on together: their logits and, for heads of usual size, their keys or values fit the first- or
/// second-level cache when several query heads share them.
inline constexpr Index decode_chunk = 256;

/// Keys of a piece, a multiple of decode_chunk: so many that putting pieces together costs nothing, and that there are no
/// more than most_decode_pieces.
inline constexpr Index most_decode_pieces = 64;
constexpr Index decode_piece(Index keys) {
  return std::max(2 * decode_chunk, round_up((keys + most_decode_pieces - 1) / most_decode_pieces, decode_chunk));
}

/// How far ahead of its use memory is asked for: what is on its way within one latency of the third-level cache.
inline constexpr Index prefetch_bytes = 4096;

/// scaled[0 .. width) = factor * row; zeros follow up to `padded`.
template <class T>
void load_scaled(const T* row, T factor, T* scaled, Index width, Index padded) {
  for (Index d = 0; d < width; ++d) scaled[d] = row[d] * factor;
  std::fill(scaled + width, scaled + padded, T(0));
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
  return reduce_add_rows(sum);
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

/// Rows that share a pass over the values.
inline constexpr Index most_value_rows = 4;

/// sums[row] += sum over t of weights[row * decode_chunk + t] * values[t], for Rows rows; sums [Rows, sums_stride] is
/// writable up to a whole vector.
template <Index Rows, class T>
void add_values(const T* weights, Sequence<const T> values, T* sums, Index sums_stride) {
  constexpr Index W = lanes<T>, ahead = prefetch_bytes / Index(sizeof(T));
  constexpr Index most_vectors = Rows == 1 ? 8 : vector_registers >= 32 ? 4 : 2;
  Index column = 0;
  const auto add_columns = [&](auto vectors, const auto& load_values) SEQMIX_INLINE_LAMBDA {
    Batch<T> sum[Rows][vectors];
    T* const place = sums + column;
    unroll<Rows>([&](auto row) SEQMIX_INLINE_LAMBDA {
      unroll<vectors>([&](auto v) SEQMIX_INLINE_LAMBDA { sum[row][v] = load(place + row * sums_stride + v * W); });
    });
    for (Index t = 0; t < values.length(); ++t) {
      const T* source = values.row(t) + column;
      Batch<T> value[vectors];
      unroll<vectors>([&](auto v) SEQMIX_INLINE_LAMBDA {
        if constexpr (v * W * Index(sizeof(T)) % Index(memory_alignment) == 0) prefetch_read(source + ahead + v * W);
        value[v] = load_values(source + v * W);
      });
      unroll<Rows>([&](auto row) SEQMIX_INLINE_LAMBDA {
        const Batch<T> weight = broadcast(weights[row * decode_chunk + t]);
        unroll<vectors>([&](auto v) SEQMIX_INLINE_LAMBDA { sum[row][v] = fma(weight, value[v], sum[row][v]); });
      });
    }
    unroll<Rows>([&](auto row) SEQMIX_INLINE_LAMBDA {
      unroll<vectors>([&](auto v) SEQMIX_INLINE_LAMBDA { store(place + row * sums_stride + v * W, sum[row][v]); });
    });
    column += vectors * W;
  };
  const Index width = values.channels();
  for_halves<most_vectors>([&](auto vectors) SEQMIX_INLINE_LAMBDA {
    while (column + vectors * W <= width) {
      add_columns(vectors, [](const T* source) SEQMIX_INLINE_LAMBDA { return load(source); });
    }
  });
  if (column < width) {
    add_columns(std::integral_constant<Index, 1>{},
                [&](const T* source) SEQMIX_INLINE_LAMBDA { return load_partial(source, width - column); });
  }
}

/// What some keys give some rows: mixed [rows, stride] = sum of weights times values, weights as the softmax of each row
/// says.
template <class T>
struct DecodeSums {
  std::span<RowSoftmax<T>> softmax;
  T* mixed = nullptr;
  Index stride = 0;  // a multiple of the vector width

  static DecodeSums take(Index rows, Index value_dim, Workspace& workspace) {
    const Index stride = round_up(value_dim, lanes<T>);
    return {workspace.take<RowSoftmax<T>>(rows), workspace.take<T>(rows * stride).data(), stride};
  }

  void clear() {
    std::fill(softmax.begin(), softmax.end(), RowSoftmax<T>());
    std::fill_n(mixed, std::ssize(softmax) * stride, T(0));
  }

  /// Adds what further keys give the same rows.
  void add(const DecodeSums& more) {
    for (std::size_t r = 0; r < softmax.size(); ++r) {
      const auto [own, others] = softmax[r].add(more.softmax[r]);
      for (Index c = Index(r) * stride; c < (Index(r) + 1) * stride; c += lanes<T>) {
        store(mixed + c, fma(load(mixed + c), broadcast(own), load(more.mixed + c) * broadcast(others)));
      }
    }
  }
};

/// Attention of all rows of the query heads that share one head of keys and values. query: all heads, [rows, heads,
/// head_dim]; the heads are first_head .. first_head + group - 1. Row i of head first_head + g is row g * rows + i here.
template <class T, class Mask, class Score>
class DecodeKernel {
 public:
  DecodeKernel(const Mask& mask, const Score& score, std::span<const KeyValueSegment<T>> segments, Index kv_head,
               HeadSequence<const T> query, Index first_head, Index group)
      : mask_(mask),
        score_(score),
        segments_(segments),
        kv_head_(kv_head),
        query_(query),
        first_head_(first_head),
        group_(group) {}

  /// Adds to `result` what the keys begin .. end - 1 give.
  void run(IndexRange keys, DecodeSums<T>& result, Workspace& workspace) {
    const auto frame = workspace.frame();
    const Index rows = query_.length(), head_dim = query_.head_dim(), padded_query = round_up(head_dim, W);
    T* scaled = workspace.take<T>(group_ * rows * padded_query).data();
    sums_ = workspace.take<T>(group_ * rows * result.stride).data();
    logits_ = workspace.take<T>(group_ * rows * decode_chunk).data();
    rescale_ = workspace.take<T>(group_ * rows).data();
    for (Index r = 0; r < group_ * rows; ++r) {
      load_scaled(query_.row(r % rows, first_head_ + r / rows), score_.query_factor(), scaled + r * padded_query,
                  head_dim, padded_query);
    }
    const IndexRange seen = seen_by_any().intersect(keys);
    Index base = 0;
    for (const auto& segment : segments_) {
      const Sequence<const T> key = segment.key.head(kv_head_), value = segment.value.head(kv_head_);
      const IndexRange here = seen.intersect({base, base + segment.length()});
      for (Index begin = here.begin; begin < here.end; begin += decode_chunk) {
        const IndexRange chunk{begin, std::min(begin + decode_chunk, here.end)};
        multiply_chunk(scaled, padded_query, group_ * rows, key.rows(chunk.begin - base, chunk.size()), logits_);
        attend_chunk(chunk, value.rows(chunk.begin - base, chunk.size()), result);
      }
      base += segment.length();
    }
  }

 private:
  static constexpr Index W = lanes<T>;

  IndexRange seen_by_any() const {
    const IndexRange rows{0, query_.length()};
    IndexRange any = mask_.head(first_head_).range(rows);
    for (Index g = 1; g < group_; ++g) {
      const IndexRange range = mask_.head(first_head_ + g).range(rows);
      any = {std::min(any.begin, range.begin), std::max(any.end, range.end)};
    }
    return any;
  }

  void attend_chunk(IndexRange chunk, Sequence<const T> values, DecodeSums<T>& result) {
    const Index rows = query_.length(), all_rows = group_ * rows;
    bool avoids = excludes_any(chunk);
    for (Index r = 0; r < all_rows; ++r) {
      avoids |= weigh(mask_.head(first_head_ + r / rows), score_.head(first_head_ + r / rows), r, chunk, result);
    }
    std::fill_n(sums_, all_rows * result.stride, T(0));
    if (!avoids) {
      for (Index r = 0; r < all_rows; r += most_value_rows) {
        with_rows<most_value_rows>(std::min(most_value_rows, all_rows - r), [&](auto count) {
          add_values<count>(logits_ + r * decode_chunk, values, sums_ + r * result.stride, result.stride);
        });
      }
    } else {
      for (Index r = 0; r < all_rows; ++r) {
        add_seen_values(mask_.head(first_head_ + r / rows), r, chunk, values, sums_ + r * result.stride);
      }
    }
    for (Index r = 0; r < all_rows; ++r) {
      const Batch<T> rescale = broadcast(rescale_[r]);
      for (Index c = r * result.stride; c < (r + 1) * result.stride; c += W) {
        store(result.mixed + c, fma(load(result.mixed + c), rescale, load(sums_ + c)));
      }
    }
  }

  /// Turns the logits of row r into weights and sets its rescale_. Returns whether the mask hides some key of the chunk.
  template <class HeadMask, class HeadScore>
  bool weigh(const HeadMask& mask, const HeadScore& score, Index r, IndexRange chunk, DecodeSums<T>& result) {
    const Index row = r % query_.length(), count = chunk.size(), padded = round_up(count, 2 * W);
    const Coverage coverage = mask.cover({row, row + 1}, chunk);
    const auto logit = score.row(row);
    const Batch<T> outside = broadcast(minus_infinity<T>);
    T* logits = logits_ + r * decode_chunk;
    Batch<T> maximum = outside;
    for (Index j = 0; j < padded; j += W) {
      Batch<T> value = outside;
      if (j < count && coverage != Coverage::none) {
        value = logit(load(logits + j), chunk.begin + j);
        if (count - j < W) value = select(lane_index<T>() < broadcast(static_cast<T>(count - j)), value, outside);
        if (coverage == Coverage::partial) {
          const IndexRange keys{chunk.begin + j, chunk.begin + std::min(j + W, count)};
          if (mask.cover({row, row + 1}, keys) != Coverage::full) {
            value = select(mask.template keep<T>(row, keys.begin), value, outside);
          }
        }
      }
      store(logits + j, value);
      maximum = max_propagating(value, maximum);
    }
    rescale_[r] = result.softmax[std::size_t(r)].weigh(logits, padded, reduce_max(maximum));
    return coverage != Coverage::full;
  }

  /// Adds the values of the keys that row r sees, run by run: weight 0 times an infinite or NaN value would be NaN.
  template <class HeadMask>
  void add_seen_values(const HeadMask& mask, Index r, IndexRange chunk, Sequence<const T> values, T* sums) {
    const Index row = r % query_.length(), count = chunk.size();
    const Coverage coverage = mask.cover({row, row + 1}, chunk);
    if (coverage == Coverage::none) return;
    const auto seen = [&](Index j) {
      return (coverage == Coverage::full || mask.template keep<T>(row, chunk.begin + j).get(0)) &&
             !score_.excludes(chunk.begin + j);
    };
    for (Index begin = 0; begin < count;) {
      Index end = begin;
      while (end < count && seen(end)) ++end;
      if (end > begin) {
        add_values<1>(logits_ + r * decode_chunk + begin, values.rows(begin, end - begin), sums, 0);
      }
      begin = end;
      while (begin < count && !seen(begin)) ++begin;
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
  HeadSequence<const T> query_;
  Index first_head_, group_;
  T* logits_ = nullptr;   // [group * rows][decode_chunk]
  T* sums_ = nullptr;     // [group * rows][stride]: of one chunk
  T* rescale_ = nullptr;  // [group * rows]
};

}  // namespace detail

}  // namespace seqmix::inline SEQMIX_ARCH
