// Maps of rows that an engine applies as it reads them.
#pragma once

#include <seqmix/simd/batch.hpp>

namespace seqmix::inline SEQMIX_ARCH {

namespace detail {

/// to[i] = scale * Map()(from[i]) for i < count, and zeros up to whole vectors.
template <class T, class Map>
void map_padded_row(const void* /*parameters*/, const T* from, Index count, T scale, T* to) {
  const Index whole = count / lanes<T> * lanes<T>;
  for (Index i = 0; i < whole; i += lanes<T>) store(to + i, Map()(load(from + i)) * broadcast(scale));
  if (whole < count) {
    store(to + whole, broadcast(T(0)));
    store_partial(to + whole, Map()(load_partial(from + whole, count - whole)) * broadcast(scale), count - whole);
  }
}

/// Elements as they are.
struct Unmapped {
  template <class Batch>
  SEQMIX_ALWAYS_INLINE Batch operator()(const Batch& x) const {
    return x;
  }
};

}  // namespace detail

/// A map of the rows of queries or keys, from `count` numbers to the key_dim of the memory, applied as the rows are read.
/// function(parameters, from, count, scale, to) writes scale * map(from[0 .. count)) to `to`, and zeros up to whole vectors;
/// it knows from its parameters how many numbers a map gives that does not go element by element. A pointer, because it is
/// called once for many elements, and the kernels need not be compiled again for every map.
template <class T>
struct RowMap {
  void (*function)(const void* parameters, const T* from, Index count, T scale,
                   T* to) = &detail::map_padded_row<T, detail::Unmapped>;
  const void* parameters = nullptr;  ///< must outlive the call that the map is given to
};

/// The row map of an elementwise function object on batches, such as those of parts/feature_map.hpp.
template <class T, class Map = detail::Unmapped>
inline constexpr RowMap<T> row_map = {&detail::map_padded_row<T, Map>};

}  // namespace seqmix::inline SEQMIX_ARCH
