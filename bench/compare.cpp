// Whole mixers, with their projections, against the length of the sequence. support/mixers.hpp says what is measured;
// compare/<operator>.cpp registers a mixer in one line.

#include "support/benchmark.hpp"

int main(int argc, char** argv) { return seqmix::bench::run_benchmarks(argc, argv, {"forward", "prefill", "step"}); }
