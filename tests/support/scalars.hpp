// The scalars that the mixers are tested with: both, unless CMake's SEQMIX_TEST_SCALARS names one. A tree with a sanitizer
// compiles one of them only, in half the time; its laws then take the exact values from the naive references.
#pragma once

#include <concepts>
#include <type_traits>

namespace seqmix::test {

#if defined(SEQMIX_TEST_ONLY_FLOAT)
template <class T>
inline constexpr bool scalar_tested = std::same_as<T, float>;
#elif defined(SEQMIX_TEST_ONLY_DOUBLE)
template <class T>
inline constexpr bool scalar_tested = std::same_as<T, double>;
#else
template <class T>
inline constexpr bool scalar_tested = true;
#endif

// For tests that need one scalar, whichever it is.
using TestedScalar = std::conditional_t<scalar_tested<float>, float, double>;

}  // namespace seqmix::test
