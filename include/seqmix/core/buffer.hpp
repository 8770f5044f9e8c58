// Owned, aligned arrays of numbers.
#pragma once

#include <concepts>
#include <cstddef>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace seqmix {

/// Alignment of all memory that the library owns: a cache line, and enough for every vector register.
inline constexpr std::size_t memory_alignment = 64;

/// Arrays of at least twice this many bytes are aligned to it, and the system is asked for pages of that size: a cache of
/// keys and values that spans thousands of small pages is read at the pace of the translation of their addresses.
inline constexpr std::size_t huge_page = std::size_t(1) << 21;

/// Standard allocator of memory aligned to memory_alignment bytes, or to huge_page where it is large.
template <class T>
struct AlignedAllocator {
  using value_type = T;

  AlignedAllocator() = default;
  template <class U>
  AlignedAllocator(const AlignedAllocator<U>&) {}

  T* allocate(std::size_t count) {
    if (count > std::size_t(-1) / sizeof(T)) throw std::bad_array_new_length();
    const std::size_t bytes = count * sizeof(T);
    void* const data = ::operator new(bytes, alignment_of(bytes));
#if defined(__linux__)
    // Advice only: where it is refused the memory serves as well.
    if (bytes >= 2 * huge_page) static_cast<void>(::madvise(data, bytes / huge_page * huge_page, MADV_HUGEPAGE));
#endif
    return static_cast<T*>(data);
  }
  void deallocate(T* data, std::size_t count) { ::operator delete(data, alignment_of(count * sizeof(T))); }

  /// Bytes, which are the memory of workspaces, are left as they are: to clear them takes as long as many an operator.
  template <std::same_as<std::byte> U>
  void construct(U*) noexcept {}

  bool operator==(const AlignedAllocator&) const { return true; }

 private:
  static constexpr std::align_val_t alignment_of(std::size_t bytes) {
    return std::align_val_t(bytes >= 2 * huge_page ? huge_page : memory_alignment);
  }
};

/// A copyable array of numbers, aligned to a cache line.
template <class T>
using Buffer = std::vector<T, AlignedAllocator<T>>;

}  // namespace seqmix
