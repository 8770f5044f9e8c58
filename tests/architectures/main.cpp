// Runs the same mixer from every object of this program and compares. If the linker had merged functions of different
// instruction sets, the objects would report each other's register width, or crash.
#include <cmath>
#include <cstdio>
#include <seqmix/core/random.hpp>

#include "object.hpp"

namespace {

using seqmix::Index;

/// Whether `run` has registers of `lanes` numbers (0: any) and agrees with `expected`, which is filled if it is empty.
bool agrees(const char* name, Run& run, int lanes, const seqmix::Matrix<float>& x, seqmix::Matrix<float>& expected) {
  seqmix::Workspace workspace;
  seqmix::Matrix<float> y = seqmix::Matrix<float>::Constant(x.rows(), x.cols(), std::nanf(""));
  const Outcome outcome = run(x, y, workspace);
  if (expected.size() == 0) expected = y;
  float largest = 0, difference = 0;
  for (Index i = 0; i < y.size(); ++i) {
    largest = std::fmax(largest, std::fabs(expected.data()[i]));
    if (!std::isfinite(y.data()[i])) difference = INFINITY;
    difference = std::fmax(difference, std::fabs(y.data()[i] - expected.data()[i]));
  }
  // The objects differ in the order of their sums and in fused multiplications. Every output passes through four sums of
  // at most 96 products, each a relative error of at most 96 * 6e-8 of the sum of magnitudes; 2e-5 is their total.
  const bool good = largest > 0 && difference <= 2e-5F * largest && (lanes == 0 || outcome.lanes == lanes);
  std::printf("%-9s %-11s %2d lanes, difference %.1e of %.1e: %s\n", name, outcome.instruction_set, outcome.lanes,
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
  seqmix::Rng rng(2);
  const seqmix::Matrix<float> x = seqmix::Matrix<float>::NullaryExpr(75, 48, [&] { return float(rng.normal()); });
  seqmix::Matrix<float> expected;
  bool good = agrees("baseline", baseline, 0, x, expected);
#ifdef SEQMIX_TEST_v2
  good = agrees("v2", v2, 4, x, expected) && good;
#endif
#ifdef SEQMIX_TEST_v3
  good = agrees("v3", v3, 8, x, expected) && good;
#endif
#ifdef SEQMIX_TEST_native
  good = agrees("native", native, 0, x, expected) && good;
#endif
  return good ? 0 : 1;
}
