// Every law for every registered mixer in every configuration.
#include "support/laws.hpp"

#include <catch2/catch_test_macros.hpp>
#include <cstdio>

#include "support/allocations.hpp"
#include "support/scalars.hpp"

namespace seqmix::test {
namespace {

template <class T>
void check_all(const char* scalar) {
  if (!scalar_tested<T>) SKIP("this tree tests the other scalar");
  int cases = 0, failed = 0;
  for (const auto& entry : mixer_registry()) {
    const Index count = entry.configurations();
    for (Index which = 0; which < count; ++which) {
      ++cases;
      const auto mixer = entry.make<T>(which);
      const auto foreign = entry.make<T>((which + 1) % count);
      for (const auto& failure : check_laws(mixer, test_effort(), count > 1 ? foreign.mixer.get() : nullptr)) {
        ++failed;
        std::printf("%s, %s, %s: %s: %s\n", entry.name.c_str(), mixer.configuration.c_str(), scalar,
                    failure.law.c_str(), failure.message.c_str());
      }
    }
  }
  std::printf("laws: %d configurations in %s, %d laws broken\n", cases, scalar, failed);
  CHECK(cases > 0);
  CHECK(failed == 0);
}

TEST_CASE("laws, float") { check_all<float>("float"); }
TEST_CASE("laws, double") { check_all<double>("double"); }

// In every kind of build, sanitizers included: else the law that step allocates nothing would hold for all.
TEST_CASE("allocations are counted") {
  Rng rng(1);
  const std::size_t before = allocation_count();
  const Matrix<double> some = normal_matrix<double>(3, 5, 1.0, rng);
  CHECK(some.size() == 15);
  CHECK(allocation_count() > before);
}

}  // namespace
}  // namespace seqmix::test
