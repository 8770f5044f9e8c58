// The core functions and engines at fixed sizes, against what the machine can do. See support/benchmark.hpp for how
// they are measured and support/roofline.hpp for what `roofline` means; kernels/*.cpp register the benchmarks.

#include "support/benchmark.hpp"

int main(int argc, char** argv) {
  return seqmix::bench::run_benchmarks(argc, argv, {"probe", "kernel", "core", "core_step"});
}
