// Owned, aligned arrays of numbers.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace seqmix {

/// Alignment of all memory that the library owns: a cache line, and enough for every vector register.
inline constexpr std::size_t memory_alignment = 64;

/// Standard allocator of memory aligned to memory_alignment bytes.
template <class T>
struct AlignedAllocator {
  using value_type = T;

  AlignedAllocator() = default;
  template <class U>
  AlignedAllocator(const AlignedAllocator<U>&) {}

  T* allocate(std::size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(memory_alignment)));
  }
  void deallocate(T* data, std::size_t) { ::operator delete(data, std::align_val_t(memory_alignment)); }

  bool operator==(const AlignedAllocator&) const { return true; }
};

/// A copyable array of numbers, aligned to a cache line: what the states of mixers are made of.
template <class T>
using Buffer = std::vector<T, AlignedAllocator<T>>;

}  // namespace seqmix
