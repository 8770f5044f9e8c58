// Runs the same mixer from every object of this program and compares. If the linker had merged functions of different
// instruction sets, the objects would report each other's register width, or crash.
#include <cmath>
#include <cstdio>

#include "object.hpp"

namespace {

bool agrees(const char* name, const Outcome& given, const Outcome& expected, int lanes) {
  float largest = 0, difference = 0;
  for (std::size_t i = 0; i < expected.values.size(); ++i) {
    largest = std::fmax(largest, std::fabs(expected.values[i]));
    difference = std::fmax(difference, std::fabs(given.values[i] - expected.values[i]));
    if (!std::isfinite(given.values[i])) difference = largest = 1;
  }
  // The objects differ in the width of their sums and in fused multiplications: a few hundred roundings of 6e-8.
  const bool good = largest > 0 && difference <= 2e-5F * largest && (lanes == 0 || given.lanes == lanes);
  std::printf("%-9s %-11s %2d lanes, difference %.1e of %.1e: %s\n", name, given.instruction_set, given.lanes,
              double(difference), double(largest), good ? "agrees" : "DIFFERS");
  return good;
}

}  // namespace

int main() {
#ifdef SEQMIX_TEST_v3
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2")) {
    std::puts("skipped: this processor has no x86-64-v3 instructions");
    return 77;
  }
#endif
  const Outcome expected = baseline();
  bool good = agrees("baseline", expected, expected, 0);
#ifdef SEQMIX_TEST_v2
  good = agrees("v2", v2(), expected, 4) && good;
#endif
#ifdef SEQMIX_TEST_v3
  good = agrees("v3", v3(), expected, 8) && good;
#endif
#ifdef SEQMIX_TEST_native
  good = agrees("native", native(), expected, 0) && good;
#endif
  return good ? 0 : 1;
}
